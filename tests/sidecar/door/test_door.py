from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from workspace_adapter.turns import OutcomeKind, State

from .stage import (
    DEADLINE,
    Stage,
    cursor_of,
    know_secret,
    listening,
    message,
    message10,
    stage,
    streaming,
)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as made:
        yield made


class Asked:
    """A request under way."""

    def __init__(self, tasks: anyio.abc.TaskGroup, call: Any) -> None:
        self._done = anyio.Event()
        self._response: httpx.Response | None = None
        tasks.start_soon(self._run, call)

    async def _run(self, call: Any) -> None:
        self._response = await call
        self._done.set()

    @property
    def over(self) -> bool:
        return self._response is not None

    async def response(self) -> httpx.Response:
        with anyio.fail_after(DEADLINE):
            await self._done.wait()
        assert self._response is not None
        return self._response

    async def result(self) -> dict[str, Any]:
        response = await self.response()
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        assert "error" not in body, body
        result: dict[str, Any] = body["result"]
        return result


@pytest.fixture
async def tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


async def settle() -> None:
    """Let everybody who can go on do so."""
    for _ in range(20):
        await anyio.sleep(0)


def error_of(response: httpx.Response) -> tuple[int, str]:
    assert response.status_code == 200, response.text
    error = response.json()["error"]
    assert response.json()["id"] == "r-1"
    return error["code"], error["message"]


# --- what the existing platform sends, and can read ---------------------------------------


async def test_the_platforms_own_envelope_is_answered_as_it_reads_answers(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    path = door.root / "work" / "ab-x.pdf"
    path.write_text("pdf")
    context = "canvas-" + "12345678-1234-1234-1234-123456789012"
    envelope = {
        "jsonrpc": "2.0",
        "id": "7f",
        "method": "message/send",
        "params": {
            "message": {
                "role": "user",
                "messageId": "m-1",
                "contextId": context,
                "parts": [
                    {"kind": "text", "text": "hi"},
                    {
                        "kind": "file",
                        "file": {
                            "uri": f"workspace:{path}",
                            "name": "x.pdf",
                            "mimeType": "application/pdf",
                            "size": 123,
                        },
                    },
                    {"type": "image", "file": {"uri": str(path), "mime_type": "image/png", "name": "y"}},
                ],
                "metadata": {"delegation_id": "d-1", "numbers": [1, 2]},
            },
            "metadata": {
                "source": "canvas_user",
                "user_identity_status": "AUTHENTICATED",
                "user_id": "u",
                "wake_idempotency_key": "k",
            },
            "expires_in_seconds": 600,
        },
    }
    asked = Asked(tasks, door.http.post("/", json=envelope))
    turn = await door.taken()
    assert len(turn.session_id) == 43
    assert (turn.caller, turn.source, turn.message_id) == (None, None, "m-1")
    assert turn.expires_at == pytest.approx(turn.accepted_at + 600)
    assert json.loads(door.journal.message(turn.id) or b"") == envelope["params"]["message"]  # type: ignore[index]
    await door.answer(turn, "done")
    response = await asked.response()
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "jsonrpc": "2.0",
        "id": "7f",
        "result": {
            "kind": "message",
            "role": "agent",
            "messageId": f"{turn.id}-1",
            "contextId": context,
            "taskId": turn.task_id,
            "parts": [{"kind": "text", "text": "done"}],
            "metadata": {"usage": {"inputTokens": 3, "outputTokens": 5}},
        },
    }


async def test_a_turn_of_the_platforms_own_making_is_known_as_such(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    params = {"message": message("hi"), "metadata": {"source_type": "self-idle"}}
    Asked(tasks, door.rpc("message/send", params))
    assert (await door.taken()).source == "self-idle"


async def test_a_message_without_a_context_gets_one(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    asked = Asked(tasks, door.send("hi", contextId=...))
    turn = await door.answer_next("done")
    assert (await asked.result())["contextId"] == turn.session_id


# --- what the asker hears -----------------------------------------------------------------


async def end(door: Stage, how: str) -> None:
    turn = await door.start(await door.taken())
    match how:
        case "answered":
            await door.finish(turn, "done")
        case "silent":
            await door.finish(turn, "")
        case "asked back":
            await door.finish(turn, "which one?", kind=OutcomeKind.ASKED_BACK)
        case "rejected":
            await door.finish(turn, to=State.FAILED, kind=OutcomeKind.REJECTED, reason="I will not")
        case "failed":
            await door.fail(turn, "model unreachable", retryable=True)
        case "canceled":
            await door.sessions.cancel(turn.id)
        case "expired":
            await door.give_up(turn, State.EXPIRED, "silent for 2 days")
        case "suspended":
            await door.give_up(turn, State.SUSPENDED, "3 attempts without progress")


SUSPENDED = (
    "suspended: 3 attempts without progress; it waits for a person: workspace-adapter turns release {turn}"
)

HEARD = [
    ("answered", "done", None, "completed", "done", ""),
    (
        "silent",
        "(the agent finished without a word)",
        None,
        "completed",
        "(the agent finished without a word)",
        "",
    ),
    ("asked back", "which one?", {"state": "input-required"}, "input-required", None, "which one?"),
    (
        "rejected",
        "Agent error: I will not",
        {"state": "failed", "retryable": False},
        "rejected",
        None,
        "I will not",
    ),
    (
        "failed",
        "Agent error: model unreachable",
        {"state": "failed", "retryable": True},
        "failed",
        None,
        "model unreachable",
    ),
    (
        "canceled",
        "Agent error: canceled by its asker",
        {"state": "canceled", "retryable": False},
        "canceled",
        None,
        "canceled by its asker",
    ),
    (
        "expired",
        "Agent error: silent for 2 days",
        {"state": "expired", "retryable": True},
        "failed",
        None,
        "silent for 2 days",
    ),
    (
        "suspended",
        f"Agent error: {SUSPENDED}",
        {"state": "suspended", "retryable": False},
        "input-required",
        None,
        SUSPENDED,
    ),
]


@pytest.mark.parametrize(("how", "text", "metadata", "state", "artifact", "status"), HEARD)
async def test_the_asker_hears_how_it_ended(
    door: Stage,
    tasks: anyio.abc.TaskGroup,
    how: str,
    text: str,
    metadata: dict[str, Any] | None,
    state: str,
    artifact: str | None,
    status: str,
) -> None:
    asked = Asked(tasks, door.send("hi"))
    await end(door, how)
    turn = await door.taken()
    result = await asked.result()
    assert result["kind"] == "message"
    assert result["parts"] == [{"kind": "text", "text": text.format(turn=turn.id)}]
    told = result.get("metadata", {})
    told.pop("usage", None)
    assert told == (metadata or {})

    got = (await door.rpc("tasks/get", {"id": turn.task_id})).json()["result"]
    assert (got["kind"], got["id"], got["contextId"]) == ("task", turn.task_id, "c-1")
    assert got["status"]["state"] == state
    if status:
        assert got["status"]["message"]["parts"][0]["text"] == status.format(turn=turn.id)
    else:
        assert "message" not in got["status"]
    if artifact is None:
        assert "artifacts" not in got
    else:
        assert [part["text"] for part in got["artifacts"][0]["parts"]] == [artifact]

    got10 = (await door.rpc("GetTask", {"id": turn.task_id})).json()["result"]
    assert got10["status"]["state"] == "TASK_STATE_" + state.upper().replace("-", "_")


@pytest.mark.parametrize(
    ("reply", "kind03", "kind10"),
    [
        ("auto", "message", "task"),
        ("task", "task", "task"),
        ("message", "message", "message"),
    ],
)
async def test_what_answers_depends_on_the_dialect_unless_a_setting_says_otherwise(
    tmp_path: Path, tasks: anyio.abc.TaskGroup, reply: str, kind03: str, kind10: str
) -> None:
    async with stage(tmp_path, a2a_reply=reply) as door:
        asked = Asked(tasks, door.send("hi"))
        await door.answer_next("done")
        assert (await asked.result())["kind"] == kind03
        asked = Asked(tasks, door.rpc("SendMessage", {"message": message10("hi", messageId="m-2")}))
        await door.answer_next("done", 2)
        assert list(await asked.result()) == [kind10]


async def test_who_will_not_wait_gets_the_task_at_once(door: Stage) -> None:
    for number, (method, made, configuration) in enumerate(
        (
            ("message/send", message, {"blocking": False}),
            ("SendMessage", message10, {"returnImmediately": True}),
        ),
        start=1,
    ):
        params = {"message": made("hi", messageId=f"m-{number}"), "configuration": configuration}
        result = (await door.rpc(method, params)).json()["result"]
        task = result if number == 1 else result["task"]
        assert task["status"]["state"] in ("submitted", "TASK_STATE_SUBMITTED")
        turn = await door.taken(number)
        await door.answer(turn, "done")
        result = (await door.rpc(method, params)).json()["result"]
        task = result if number == 1 else result["task"]
        assert task["artifacts"][0]["parts"][0]["text"] == "done"


# --- one message, one turn ----------------------------------------------------------------


async def test_two_callers_with_one_message_at_once_share_one_turn(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    first, second = (Asked(tasks, door.send("hi")) for _ in range(2))
    turn = await door.taken()
    await settle()
    await door.answer(turn, "done")
    assert await first.result() == await second.result()
    assert [turn_id for turn_id, _ in door.sessions.submitted] == [turn.id]
    assert len(door.journalled()) == 1


async def test_the_same_message_serialised_anew_joins(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    asked = Asked(tasks, door.send("hi", metadata={"a": 1}))
    await door.taken()
    anew = {
        "params": {
            "extra": 1,
            "message": {
                "parts": [{"text": "hi", "type": "text"}],
                "contextId": "c-1",
                "messageId": "m-1",
                "metadata": {"queued": True},
            },
        },
        "method": "message/send",
        "id": 99,
        "jsonrpc": "2.0",
    }
    joined = Asked(tasks, door.http.post("/", content=json.dumps(anew, indent=3), headers=JSON))
    await settle()
    turn = await door.answer_next("done")
    assert (await asked.result()) == (await joined.result())
    assert (await joined.response()).json()["id"] == 99
    assert [found.id for found in door.journalled()] == [turn.id]


JSON = {"Content-Type": "application/json"}


async def test_the_same_identity_with_other_content_is_an_error(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    Asked(tasks, door.send("hi"))
    turn = await door.taken()
    code, text = error_of(await door.send("something else"))
    assert code == -32602
    assert "messageId" in text
    assert door.journalled() == [door.turn(turn.id)]


async def test_the_same_message_id_in_another_context_is_another_turn(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    for number, context in enumerate(("c-1", "c-2", ...), start=1):
        Asked(tasks, door.send("hi", contextId=context))
        await door.taken(number)
    assert len({turn.id for turn in door.journalled()}) == 3


async def test_a_caller_that_hangs_up_does_not_stop_the_turn(door: Stage) -> None:
    async with listening(door.app) as url:
        with anyio.move_on_after(DEADLINE) as hung_up:
            async with httpx.AsyncClient() as client, anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.post(url, json=envelope(message("hi"))))
                turn = await door.taken()
                hung_up.cancel()
        await door.answer(turn, "done")
        async with httpx.AsyncClient() as client:
            collected = await client.post(url, json=envelope(message("hi")))
    assert collected.json()["result"]["parts"][0]["text"] == "done"
    assert door.sessions.submitted == [(turn.id, False)]


def envelope(sent: dict[str, Any], method: str = "message/send") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": "r-1", "method": method, "params": {"message": sent}}


async def test_an_answer_survives_the_restart(tmp_path: Path, tasks: anyio.abc.TaskGroup) -> None:
    async with stage(tmp_path) as door:
        asked = Asked(tasks, door.send("hi"))
        await door.answer_next("done")
        before = await asked.result()
    async with stage(tmp_path) as door:
        after = await door.send("hi")
        assert after.json()["result"] == before
        assert door.sessions.submitted == []


async def test_a_file_that_is_gone_does_not_hide_the_answer(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    path = door.root / "work" / "x"
    path.write_text("x")
    parts = [{"kind": "file", "file": {"uri": "x"}}]
    asked = Asked(tasks, door.send("", parts=parts))
    await door.answer_next("done")
    path.unlink()
    assert (await door.send("", parts=parts)).json()["result"] == await asked.result()
    assert error_of(await door.send("", parts=parts, messageId="m-2"))[0] == -32602


# --- asked again --------------------------------------------------------------------------


async def test_who_asked_again_is_told_when_the_conversation_is_forgotten(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    asked = Asked(tasks, door.send("hi"))
    await end(door, "failed")
    await asked.result()
    async with listening(door.app) as url:
        params = {"message": message("hi")}
        async with streaming(url, "message/stream", params) as stream:
            again = Asked(tasks, door.send("hi"))
            await door.until(lambda: len(door.sessions.submitted) == 3, "both")
            await stream.next()
            await door.journal.forget("c-1", through=1 << 60)
            assert "was forgotten" in (await again.response()).json()["error"]["message"]
            with anyio.fail_after(DEADLINE):
                said = [line async for line in stream._lines]  # to its end
            assert any('"error"' in line for line in said)


@pytest.mark.parametrize("how", ["failed", "expired"])
async def test_a_retryable_end_is_tried_again_once_by_those_who_send_again(
    door: Stage, tasks: anyio.abc.TaskGroup, how: str
) -> None:
    first = Asked(tasks, door.send("hi"))
    await end(door, how)
    assert (await first.result())["metadata"]["retryable"] is True
    second, third = (Asked(tasks, door.send("hi")) for _ in range(2))
    await door.until(lambda: len(door.sessions.submitted) == 3, "both")
    turn = await door.taken()
    assert set(door.sessions.submitted[1:]) == {(turn.id, True)}
    await settle()
    assert not second.over  # the old end is no answer to who asks again
    assert not third.over
    await door.answer(turn, "at last")
    assert (await second.result())["parts"][0]["text"] == "at last"
    assert await second.result() == await third.result()


async def test_a_final_failure_is_replayed_as_stored(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    first = Asked(tasks, door.send("hi"))
    await door.fail(await door.start(await door.taken()), "no such model")
    assert (await door.send("hi")).json()["result"] == await first.result()
    assert len(door.sessions.submitted) == 1


async def test_a_suspended_turn_says_why_and_how_to_release_it(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    first = Asked(tasks, door.send("hi"))
    await end(door, "suspended")
    turn = await door.taken()
    again = (await door.send("hi")).json()["result"]
    assert again == await first.result()
    assert f"workspace-adapter turns release {turn.id}" in again["parts"][0]["text"]
    assert len(door.sessions.submitted) == 1


async def test_who_asks_for_a_stream_of_a_failed_turn_gets_the_next_attempt_too(door: Stage) -> None:
    async with anyio.create_task_group() as group:
        Asked(group, door.send("hi"))
        await end(door, "failed")
    async with (
        listening(door.app) as url,
        streaming(url, "message/stream", {"message": message("hi")}) as stream,
    ):
        turn = await door.taken(2)
        assert (await stream.next() or {})["kind"] == "task"
        await door.answer(turn, "at last")
        events = await stream.rest()
    assert texts(events) == ["at last"]
    assert events[-1]["status"]["state"] == "completed"
    assert [e["status"]["state"] for e in events if e["kind"] == "status-update"].count("failed") == 0


# --- waiting ------------------------------------------------------------------------------


async def test_messages_wait_for_the_door_to_open(tmp_path: Path, tasks: anyio.abc.TaskGroup) -> None:
    async with stage(tmp_path, open_door=False) as door:
        asked = Asked(tasks, door.send("hi"))
        await settle()
        assert door.journalled() == []
        assert error_of(await door.rpc("tasks/get", {"id": "nobody's"}))[0] == -32001
        door.room.open()
        await door.answer_next("done")
        assert (await asked.result())["parts"][0]["text"] == "done"


async def test_a_door_that_stays_closed_sends_its_callers_away(tmp_path: Path) -> None:
    async with stage(tmp_path, open_door=False, hold_limit=0.02) as door:
        response = await door.send("hi")
        assert response.status_code == 503
        assert response.json() == {
            "error": "WORKSPACE_HOLD_LIMIT=0.02 s have passed and the workspace has not started yet",
            "busy": True,
            "retry_after": 5,
        }
        assert response.headers["retry-after"] == "5"
        assert door.journalled() == []


async def test_a_caller_is_held_only_so_long_and_the_turn_goes_on(tmp_path: Path) -> None:
    async with stage(tmp_path, hold_limit=0.02) as door:
        response = await door.send("hi")
        assert response.status_code == 503
        body = response.json()
        assert (body["busy"], body["taken"], body["retry_after"]) == (True, True, 1)
        assert "WORKSPACE_HOLD_LIMIT=0.02" in body["error"]
        assert response.headers["retry-after"] == "1"
        await door.answer_next("done")
        assert (await door.send("hi")).json()["result"]["parts"][0]["text"] == "done"


async def test_only_so_many_callers_are_held(tmp_path: Path, tasks: anyio.abc.TaskGroup) -> None:
    async with stage(tmp_path, held_limit=1) as door:
        asked = Asked(tasks, door.send("hi"))
        turn = await door.taken()
        response = await door.send("hi", messageId="m-2")
        assert response.status_code == 503
        assert response.json()["busy"] is True
        assert "taken" not in response.json()
        assert "WORKSPACE_HELD_LIMIT=1" in response.json()["error"]
        assert len(door.journalled()) == 1
        got = await door.rpc("tasks/get", {"id": turn.task_id})
        assert got.json()["result"]["status"]["state"] == "submitted"
        await door.answer(turn, "done")
        await asked.result()
        assert (await door.send("hi")).status_code == 200


async def test_a_full_inbox_refuses_before_anything_is_kept(
    tmp_path: Path, tasks: anyio.abc.TaskGroup
) -> None:
    async with stage(tmp_path, inbox_limit=1) as door:
        Asked(tasks, door.send("hi"))
        await door.taken()
        response = await door.send("hi", messageId="m-2", contextId="c-2")
        assert response.status_code == 503
        assert response.json()["busy"] is True
        assert "WORKSPACE_INBOX_LIMIT" in response.json()["error"]
        assert response.headers["retry-after"] == "5"
        assert len(door.journalled()) == 1


async def test_who_is_held_when_the_stop_comes_is_told_and_collects_after_the_boot(
    tmp_path: Path, tasks: anyio.abc.TaskGroup
) -> None:
    async with stage(tmp_path) as door:
        held = [
            Asked(tasks, door.send("hi")),
            Asked(tasks, door.rpc("SendMessage", {"message": message10("hi", messageId="m-2")})),
        ]
        await door.taken(2)
        turn = next(turn for turn in door.journalled() if turn.message_id == "m-1")
        turn = await door.start(turn)
        await settle()
        door.room.shut(retry_after=7)
        for asked in held:
            response = await asked.response()
            assert response.status_code == 502
            assert response.json() == {
                "error": "workspace restarting; the message is kept: send it again",
                "restarting": True,
                "retry_after": 7,
            }
            assert response.headers["retry-after"] == "7"
        late = await door.send("late", messageId="m-3")
        assert late.status_code == 502
        assert len(door.journalled()) == 2
        got = await door.rpc("tasks/get", {"id": turn.task_id})
        assert got.json()["result"]["status"]["state"] == "working"
        await door.journal.finish(turn.id, attempt=1, to=State.INTERRUPTED, cause="stopped", now=0.0)
    async with stage(tmp_path) as door:
        collected = Asked(tasks, door.send("hi"))
        await settle()
        await door.answer(turn, "done")
        assert (await collected.result())["parts"][0]["text"] == "done"


async def test_who_waits_for_the_door_when_the_stop_comes_is_told_too(
    tmp_path: Path, tasks: anyio.abc.TaskGroup
) -> None:
    async with stage(tmp_path, open_door=False) as door:
        asked = Asked(tasks, door.send("hi"))
        await settle()
        door.room.shut(retry_after=7)
        assert (await asked.response()).status_code == 502
        assert door.journalled() == []


# --- tasks and contexts -------------------------------------------------------------------


async def test_a_message_that_names_a_task_waiting_for_input_continues_it(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    first = Asked(tasks, door.send("hi"))
    await end(door, "asked back")
    task_id = (await first.result())["taskId"]
    second = Asked(tasks, door.send("this one", messageId="m-2", taskId=task_id, contextId=...))
    turn = await door.taken(2)
    assert (turn.task_id, turn.session_id) == (task_id, "c-1")
    got = await door.rpc("tasks/get", {"id": task_id})
    assert got.json()["result"]["status"]["state"] == "submitted"
    history = [(m["role"], m["parts"][0]["text"]) for m in got.json()["result"]["history"]]
    assert history == [("agent", "which one?"), ("user", "this one")]
    await door.answer(turn, "done")
    assert (await second.result())["taskId"] == task_id
    replayed = (await door.send("hi")).json()["result"]
    assert replayed == await first.result()  # the reply to one message is that turn's own


@pytest.mark.parametrize("how", ["running", "suspended"])
async def test_naming_a_task_that_goes_on_queues_behind_it(
    door: Stage, tasks: anyio.abc.TaskGroup, how: str
) -> None:
    Asked(tasks, door.send("hi"))
    first = await door.start(await door.taken())
    if how == "suspended":
        await door.give_up(first, State.SUSPENDED, "too many attempts")
    Asked(tasks, door.send("and", messageId="m-2", taskId=first.task_id))
    second = await door.taken(2)
    assert (second.task_id, second.session_id) == (first.task_id, first.session_id)
    assert second.id != first.id


async def test_naming_a_finished_task_starts_another_in_its_context(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    for number, how in enumerate(("answered", "failed", "canceled", "expired")):
        context = f"c-{how}"
        Asked(tasks, door.send("hi", contextId=context))
        turn = await door.taken(2 * number + 1)
        door.sessions.submitted.sort(key=lambda pair: door.turn(pair[0]).seq)
        started = await door.start(turn)
        match how:
            case "answered":
                await door.finish(started, "done")
            case "failed":
                await door.fail(started, "broken")
            case "canceled":
                await door.sessions.cancel(turn.id)
            case _:
                await door.give_up(started, State.EXPIRED, "old")
        Asked(tasks, door.send("next", messageId=f"m-{how}", taskId=turn.task_id, contextId=...))
        after = await door.taken(2 * number + 2)
        assert after.task_id != turn.task_id
        assert after.session_id == context


async def test_a_task_that_is_not_there_or_in_another_context_is_refused(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    Asked(tasks, door.send("hi"))
    turn = await door.taken()
    assert error_of(await door.send("hi", messageId="m-2", taskId="nobody's"))[0] == -32001
    code, _ = error_of(await door.send("hi", messageId="m-3", taskId=turn.task_id, contextId="c-2"))
    assert code == -32602
    for method in (
        "tasks/get",
        "tasks/cancel",
        "tasks/resubscribe",
        "GetTask",
        "CancelTask",
        "SubscribeToTask",
    ):
        assert error_of(await door.rpc(method, {"id": "nobody's"}))[0] == -32001, method
    assert len(door.journalled()) == 1


async def test_a_context_and_its_tasks_belong_to_the_caller_that_opened_them(
    tmp_path: Path, tasks: anyio.abc.TaskGroup
) -> None:
    bearer = know_secret(tmp_path)
    async with stage(tmp_path) as door:
        ada, eve = ({**bearer, "X-Workspace-ID": name} for name in ("ada", "eve"))
        params = {"message": message("hi")}
        Asked(tasks, door.rpc("message/send", params, headers=ada))
        turn = await door.taken()
        assert turn.caller == "ada"
        task = {"id": turn.task_id}
        for headers in (eve, bearer, {}, {"X-Workspace-ID": "ada"}):
            for method in ("tasks/get", "tasks/cancel", "tasks/resubscribe"):
                assert error_of(await door.rpc(method, task, headers=headers))[0] == -32001
            follow = {"message": message("and", messageId="m-2", taskId=turn.task_id)}
            assert error_of(await door.rpc("message/send", follow, headers=headers))[0] == -32001
            stray = {"message": message("and", messageId="m-3")}
            assert error_of(await door.rpc("message/send", stray, headers=headers))[0] == -32602
            listed = await door.rpc("ListTasks", {}, headers=headers)
            assert listed.json()["result"]["tasks"] == []
        assert (await door.rpc("tasks/get", task, headers=ada)).json()["result"]["id"] == turn.task_id
        listed = await door.rpc("ListTasks", {}, headers=ada)
        assert [t["id"] for t in listed.json()["result"]["tasks"]] == [turn.task_id]
        assert door.journalled() == [turn]


async def test_canceling_withdraws_every_turn_of_the_task(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    first = Asked(tasks, door.send("hi"))
    running = await door.start(await door.taken())
    second = Asked(tasks, door.send("and", messageId="m-2", taskId=running.task_id))
    await door.taken(2)
    canceled = (await door.rpc("tasks/cancel", {"id": running.task_id})).json()["result"]
    assert canceled["status"]["state"] == "canceled"
    for asked in (first, second):
        assert (await asked.result())["metadata"]["state"] == "canceled"
    assert error_of(await door.rpc("tasks/cancel", {"id": running.task_id}))[0] == -32002
    assert error_of(await door.rpc("CancelTask", {"id": running.task_id}))[0] == -32002


async def test_a_suspended_turn_may_be_canceled(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    Asked(tasks, door.send("hi"))
    await end(door, "suspended")
    turn = await door.taken()
    assert (await door.rpc("tasks/cancel", {"id": turn.task_id})).json()["result"]["status"][
        "state"
    ] == "canceled"


async def test_tasks_are_listed_latest_change_first_page_by_page(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    for number in range(1, 6):
        Asked(tasks, door.send("hi", messageId=f"m-{number}", contextId=f"c-{number % 2}"))
        await door.taken(number)
    turns = [await door.taken(number) for number in range(1, 6)]
    await door.answer(turns[1], "done")
    changed = door.turn(turns[1].id).ended_at or 0.0
    await door.until(lambda: time.time() > changed + 0.002, "another millisecond")
    await door.answer(turns[0], "done")
    expected = [turns[i].task_id for i in (0, 1, 4, 3, 2)]

    listed: list[str] = []
    token, total = "", None
    while True:
        result = (await door.rpc("ListTasks", {"pageSize": 2, "pageToken": token})).json()["result"]
        listed += [task["id"] for task in result["tasks"]]
        total, token = result["totalSize"], result["nextPageToken"]
        assert all("artifacts" not in task for task in result["tasks"])
        if not token:
            break
    assert listed == expected
    assert total == 5

    async def ids(**params: Any) -> list[str]:
        result = (await door.rpc("ListTasks", params)).json()["result"]
        return [task["id"] for task in result["tasks"]]

    assert await ids(contextId="c-0") == [turns[1].task_id, turns[3].task_id]
    assert await ids(status="TASK_STATE_COMPLETED") == expected[:2]
    assert await ids(statusTimestampAfter="2999-01-01T00:00:00Z") == []
    assert await ids(statusTimestampAfter="2001-01-01T00:00:00Z") == expected
    whole = (await door.rpc("ListTasks", {"includeArtifacts": True, "pageSize": 1})).json()["result"]
    assert whole["tasks"][0]["artifacts"][0]["parts"][0]["text"] == "done"
    for bad in ({"pageSize": 0}, {"pageSize": 101}, {"pageToken": "x"}, {"historyLength": -1}):
        assert error_of(await door.rpc("ListTasks", bad))[0] == -32602, bad


async def test_the_history_is_as_long_as_asked_for(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    parts = [
        {"kind": "text", "text": "one"},
        {"kind": "data", "data": {"a": [1]}},
        {"kind": "file", "file": {"bytes": "aGk=", "name": "x", "mimeType": "text/plain"}},
    ]
    Asked(tasks, door.send("", parts=parts))
    turn = await door.start(await door.taken())
    Asked(tasks, door.send("two", messageId="m-2", taskId=turn.task_id))
    await door.taken(2)

    async def history(**params: Any) -> list[dict[str, Any]]:
        result = (await door.rpc("tasks/get", {"id": turn.task_id, **params})).json()["result"]
        found: list[dict[str, Any]] = result.get("history", [])
        return found

    first, second = await history()
    assert [part["kind"] for part in first["parts"]] == ["text", "data", "file"]
    assert (first["messageId"], first["role"]) == ("m-1", "user")
    assert second["parts"][0]["text"] == "two"
    assert await history(historyLength=1) == [second]
    assert await history(historyLength=9) == [first, second]
    none = (await door.rpc("GetTask", {"id": turn.task_id, "historyLength": 0})).json()["result"]
    assert "history" not in none
    assert error_of(await door.rpc("tasks/get", {"id": turn.task_id, "historyLength": -1}))[0] == -32602


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tasks/pushNotificationConfig/set", {"taskId": "t", "pushNotificationConfig": {"url": "http://x"}}),
        ("tasks/pushNotificationConfig/get", {"id": "t"}),
        ("tasks/pushNotificationConfig/list", {"id": "t"}),
        ("tasks/pushNotificationConfig/delete", {"id": "t", "pushNotificationConfigId": "p"}),
        ("CreateTaskPushNotificationConfig", {"taskId": "t", "url": "http://x"}),
        ("GetTaskPushNotificationConfig", {"taskId": "t", "id": "p"}),
        ("ListTaskPushNotificationConfigs", {"taskId": "t"}),
        ("DeleteTaskPushNotificationConfig", {"taskId": "t", "id": "p"}),
        (
            "message/send",
            {"message": message("hi"), "configuration": {"pushNotificationConfig": {"url": "http://x"}}},
        ),
    ],
)
async def test_push_notifications_are_refused(door: Stage, method: str, params: dict[str, Any]) -> None:
    assert error_of(await door.rpc(method, params))[0] == -32003
    assert door.journalled() == []


async def test_there_is_no_extended_card(door: Stage) -> None:
    assert error_of(await door.rpc("agent/getAuthenticatedExtendedCard", {}))[0] == -32007
    assert error_of(await door.rpc("GetExtendedAgentCard", {}))[0] == -32007


# --- streams ------------------------------------------------------------------------------


def texts(events: list[dict[str, Any]]) -> list[str]:
    """What a reader sees as the answer, each time it is opened anew."""
    seen: list[str] = []
    for event in events:
        inner = event.get("artifactUpdate") or event
        if "artifact" in inner and inner["artifact"]["artifactId"] == "answer":
            text = inner["artifact"]["parts"][0]["text"]
            if inner.get("append"):
                seen[-1] += text
            else:
                seen.append(text)
    return seen


WORK: list[tuple[str, dict[str, Any]]] = [
    ("text", {"text": "Let me ", "append": False}),
    ("text", {"text": "look.", "append": True}),
    ("tool", {"name": "Bash", "phase": "started"}),
    ("activity", {"line": "runs the tests"}),
    ("tool", {"name": "Bash", "phase": "ended", "ok": True}),
    ("artifact", {"id": "log", "name": "log.txt", "text": "ok", "mime_type": "text/plain"}),
    ("text", {"text": "All ", "append": False}),
    ("text", {"text": "green.", "append": True}),
]


async def work(door: Stage, turn: Any, answer: str = "All green.") -> None:
    started = await door.start(turn)
    for entry in WORK:
        await door.log(started, entry)
    await door.finish(started, answer)


@pytest.mark.parametrize("method", ["message/stream", "SendStreamingMessage"])
async def test_a_stream_begins_with_the_task_and_ends_with_its_state(door: Stage, method: str) -> None:
    sent = message("hi") if "/" in method else message10("hi")
    async with listening(door.app) as url, streaming(url, method, {"message": sent}) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        turn = await door.taken()
        first = await stream.next()
        assert first is not None
        await work(door, turn)
        events = await stream.rest()
        task = first if "/" in method else first["task"]
        assert (task["id"], task["status"]["state"].lower()[-9:]) == (turn.task_id, "submitted")
        assert "artifacts" not in task
        assert texts(events) == ["Let me look.", "All green."]
        cursors = [cursor_of(event) for event in [first, *events]]
        assert len(set(cursors)) == len(cursors)
        last = events[-1] if "/" in method else events[-1]["statusUpdate"]
        assert last["status"]["state"].lower().endswith("completed")
        if "/" in method:
            assert [e.get("final") for e in events if e["kind"] == "status-update"] == [False] * 4 + [True]
            tools = [e["metadata"]["tool"] for e in events if "tool" in e.get("metadata", {})]
            assert tools == [WORK[2][1], WORK[4][1]]
            said = [
                e["status"]["message"]["parts"][0]["text"] for e in events if "message" in e.get("status", {})
            ]
            assert said == ["Bash started", "runs the tests", "Bash ended"]
            (log,) = [e for e in events if e.get("artifact", {}).get("artifactId") == "log"]
            assert log["artifact"]["parts"] == [{"kind": "text", "text": "ok"}]


async def test_an_answer_that_was_not_streamed_is_sent_whole_at_the_end(door: Stage) -> None:
    async with (
        listening(door.app) as url,
        streaming(url, "message/stream", {"message": message("hi")}) as stream,
    ):
        await work(door, await door.taken(), "Something else.")
        events = await stream.rest()
    assert texts(events) == ["Let me look.", "All green.", "Something else."]
    assert events[-2]["lastChunk"] is True
    assert events[-2]["append"] is False


@pytest.mark.parametrize(("how", "state"), [("asked back", "input-required"), ("failed", "failed")])
async def test_a_stream_ends_with_the_reason_where_there_is_no_answer(
    door: Stage, how: str, state: str
) -> None:
    async with (
        listening(door.app) as url,
        streaming(url, "message/stream", {"message": message("hi")}) as stream,
    ):
        await end(door, how)
        events = await stream.rest()
    assert events[-1]["status"]["state"] == state
    assert events[-1]["status"]["message"]["parts"][0]["text"] in ("which one?", "model unreachable")
    assert texts(events) == []


async def uncut(door: Stage, url: str) -> list[bytes]:
    """Return the events of a stream that nobody cut."""
    async with streaming(url, "message/stream", {"message": message("hi")}) as stream:
        await work(door, await door.taken(), "Something else.")
        await stream.rest()
        return stream.raw


@pytest.mark.parametrize("by", ["Last-Event-ID", "metadata"])
@pytest.mark.parametrize("method", ["tasks/resubscribe", "message/stream"])
async def test_a_stream_cut_anywhere_and_resumed_by_its_cursor_is_the_uncut_one_to_the_byte(
    tmp_path: Path, method: str, by: str
) -> None:
    async with stage(tmp_path) as door, listening(door.app) as url:
        whole = await uncut(door, url)
        turn = await door.taken()
    assert len(whole) == len(WORK) + 4
    async with stage(tmp_path) as door, listening(door.app) as url:
        for cut in range(1, len(whole) + 1):
            cursor = whole[cut - 1].split(b"\n")[0].removeprefix(b"id: ").decode()
            params: dict[str, Any] = (
                {"id": turn.task_id} if method != "message/stream" else {"message": message("hi")}
            )
            headers = {"Last-Event-ID": cursor} if by == "Last-Event-ID" else {}
            if by == "metadata":
                params["metadata"] = {"cursor": cursor}
            async with streaming(url, method, params, headers=headers) as stream:
                first = await stream.next()
                await stream.rest()
            assert first is not None
            assert first["kind"] == "task"
            assert "artifacts" not in first
            assert cursor_of(first) == cursor
            assert first["status"]["state"] == ("working" if whole[cut:] else "completed")
            assert stream.raw[1:] == whole[cut:], cut


async def test_a_subscriber_without_a_cursor_gets_the_task_whole_then_what_follows(door: Stage) -> None:
    async with listening(door.app) as url, anyio.create_task_group() as group:
        asked = Asked(group, door.send("hi"))
        turn = await door.start(await door.taken())
        for entry in WORK[:7]:
            await door.log(turn, entry)
        async with (
            streaming(url, "tasks/resubscribe", {"id": turn.task_id}) as one,
            streaming(url, "SubscribeToTask", {"id": turn.task_id}) as other,
        ):
            first, first10 = await one.next(), (await other.next() or {})["task"]
            assert first is not None
            artifacts = {a["artifactId"]: a["parts"][0]["text"] for a in first["artifacts"]}
            assert artifacts == {"log": "ok", "answer": "All "}
            assert {a["artifactId"] for a in first10["artifacts"]} == {"log", "answer"}
            assert first["history"][0]["parts"][0]["text"] == "hi"
            await door.log(turn, WORK[7])
            await door.finish(turn, "All green.")
            events = await one.rest()
            assert [e["kind"] for e in events] == ["artifact-update", "status-update"]
            assert events[0]["append"] is True
            assert len(await other.rest()) == 2
        await asked.result()


async def test_subscribing_to_a_task_that_has_ended(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    Asked(tasks, door.send("hi"))
    turn = await door.answer_next("done")
    async with listening(door.app) as url:
        async with streaming(url, "tasks/resubscribe", {"id": turn.task_id}) as stream:
            (only,) = await stream.rest()
            assert only["artifacts"][0]["parts"][0]["text"] == "done"
            assert only["status"]["state"] == "completed"
        for cursor in ("nonsense", "999.1", ""):
            headers = {"Last-Event-ID": cursor}
            async with streaming(url, "tasks/resubscribe", {"id": turn.task_id}, headers=headers) as stream:
                (only,) = await stream.rest()
                assert only["artifacts"][0]["parts"][0]["text"] == "done"
    assert error_of(await door.rpc("SubscribeToTask", {"id": turn.task_id}))[0] == -32004


async def test_a_cursor_names_its_own_turn_of_a_task_of_several(door: Stage) -> None:
    async with listening(door.app) as url:
        async with streaming(url, "message/stream", {"message": message("hi")}) as stream:
            first = await door.start(await door.taken())
            await stream.next()
            cursor = cursor_of(await stream.next() or {})
            await door.finish(first, "which one?", kind=OutcomeKind.ASKED_BACK)
            rest = await stream.rest()
        follow = {"message": message("this", messageId="m-2", taskId=first.task_id)}
        async with streaming(url, "message/stream", follow) as stream:
            await door.answer(await door.taken(2), "done")
            await stream.rest()
        async with streaming(
            url, "tasks/resubscribe", {"id": first.task_id}, headers={"Last-Event-ID": cursor}
        ) as stream:
            assert (await stream.rest())[1:] == rest


@pytest.mark.parametrize("kept_from", [6, 99])
async def test_a_cursor_older_than_what_is_kept_gets_the_task_whole(door: Stage, kept_from: int) -> None:
    async with listening(door.app) as url:
        whole = await uncut(door, url)
        turn = await door.taken()
        with sqlite3.connect(door.root / "state" / "journal.db") as journal:
            journal.execute("DELETE FROM events WHERE n < ?", (kept_from,))
        journal.close()
        headers = {"Last-Event-ID": f"{turn.seq}.2"}
        async with streaming(url, "tasks/resubscribe", {"id": turn.task_id}, headers=headers) as stream:
            await stream.next()
            events = await stream.rest()
    if kept_from == 6:
        (only,) = events
        assert only["kind"] == "task"
        artifacts = {a["artifactId"]: a["parts"][0]["text"] for a in only["artifacts"]}
        assert artifacts == {"log": "ok", "answer": "Something else."}
    else:  # the whole log is gone, but not the answer
        assert texts(events) == ["Something else."]
    assert len(whole) == len(WORK) + 4


async def test_a_new_attempt_opens_its_text_anew(door: Stage) -> None:
    async with (
        listening(door.app) as url,
        streaming(url, "message/stream", {"message": message("hi")}) as stream,
    ):
        turn = await door.start(await door.taken())
        await door.log(turn, ("text", {"text": "half an ans", "append": False}))
        await door.interrupt(turn)
        await door.answer(turn, "a whole answer")
        events = await stream.rest()
    assert texts(events) == ["half an ans", "a whole answer"]
    states = [(e["metadata"].get("state"), e["metadata"].get("attempt")) for e in events[1:] if "status" in e]
    assert states == [("working", 1), ("interrupted", 1), ("working", 2), (None, None)]


async def test_a_stream_is_ended_by_a_status_when_the_stop_comes(door: Stage) -> None:
    async with (
        listening(door.app) as url,
        streaming(url, "message/stream", {"message": message("hi")}) as stream,
    ):
        await door.start(await door.taken())
        events = [await stream.next(), await stream.next()]
        door.room.shut(retry_after=7)
        (last,) = await stream.rest()
    assert last["kind"] == "status-update"
    assert last["status"]["state"] == "working"
    assert last["final"] is False
    assert last["metadata"]["restarting"] is True
    assert cursor_of(last) == cursor_of(events[-1] or {})


async def test_a_stream_with_nothing_to_say_is_held_only_so_long(tmp_path: Path) -> None:
    async with (
        stage(tmp_path, hold_limit=0.05) as door,
        listening(door.app) as url,
        streaming(url, "message/stream", {"message": message("hi")}) as stream,
    ):
        events = await stream.rest()
        assert events[-1]["status"]["state"] == "submitted"
        assert "WORKSPACE_HOLD_LIMIT" in events[-1]["status"]["message"]["parts"][0]["text"]
        assert events[-1]["metadata"]["restarting"] is False


async def test_a_stream_that_cannot_begin_is_refused_as_any_request(tmp_path: Path) -> None:
    async with stage(tmp_path, open_door=False, hold_limit=0.02) as door:
        for method, sent in (("message/stream", message("hi")), ("SendStreamingMessage", message10("hi"))):
            response = await door.rpc(method, {"message": sent})
            assert response.status_code == 503, method
            assert response.json()["busy"] is True
        door.room.shut(retry_after=7)
        for method, sent in (("message/stream", message("hi")), ("SendStreamingMessage", message10("hi"))):
            assert (await door.rpc(method, {"message": sent})).status_code == 502


async def test_a_subscriber_that_leaves_frees_its_place(tmp_path: Path) -> None:
    async with stage(tmp_path, held_limit=1) as door, listening(door.app) as url:
        async with streaming(url, "message/stream", {"message": message("hi")}) as stream:
            turn = await door.taken()
            assert await stream.next() is not None
            assert (await door.rpc("tasks/resubscribe", {"id": turn.task_id})).status_code == 503
        await until_nobody_is_held(door, url)


# --- delivery -----------------------------------------------------------------------------


async def test_an_answer_that_was_written_to_its_asker_counts_as_delivered(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    asked = Asked(tasks, door.send("hi"))
    turn = await door.answer_next("done")
    await asked.result()
    await door.until(lambda: door.turn(turn.id).delivered_at is not None, "the mark")


async def test_a_stream_read_to_its_end_and_a_task_that_was_got_count_too(door: Stage) -> None:
    async with listening(door.app) as url:
        async with streaming(url, "message/stream", {"message": message("hi")}) as stream:
            turn = await door.answer_next("done")
            await stream.rest()
        await door.until(lambda: door.turn(turn.id).delivered_at is not None, "the mark")
        body = envelope(message("hi", messageId="m-2"))
        body["params"]["configuration"] = {"blocking": False}
        async with httpx.AsyncClient() as client:
            await client.post(url, json=body)
            turn = await door.answer_next("done", 2)
            assert door.turn(turn.id).delivered_at is None
            got = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": turn.task_id}}
            await client.post(url, json=got)
        await door.until(lambda: door.turn(turn.id).delivered_at is not None, "the mark")


async def delivered_after(door: Stage, url: str, turn_id: str) -> bool:
    """Whether a turn counts as delivered once a later one does; marks are written in order."""
    async with httpx.AsyncClient(timeout=DEADLINE) as client, anyio.create_task_group() as group:
        later = Asked(group, client.post(url, json=envelope(message("later", messageId="m-later"))))
        turn = await door.answer_next("done", len(door.sessions.submitted) + 1)
        await later.result()
    await door.until(lambda: door.turn(turn.id).delivered_at is not None, "the later mark")
    return door.turn(turn_id).delivered_at is not None


async def test_what_nobody_was_there_to_read_is_not_delivered(tmp_path: Path) -> None:
    async with stage(tmp_path, held_limit=1) as door, listening(door.app) as url:
        async with streaming(url, "message/stream", {"message": message("hi")}) as stream:
            turn = await door.taken()
            await stream.next()
        await until_nobody_is_held(door, url)
        await door.answer(turn, "done")
        assert not await delivered_after(door, url, turn.id)


async def until_nobody_is_held(door: Stage, url: str) -> None:
    """Wait until a place is free again where there is only one."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/resubscribe", "params": {"id": "nobody's"}}
    async with httpx.AsyncClient() as client:
        with anyio.fail_after(DEADLINE):
            while (await client.post(url, json=body)).status_code == 503:
                await anyio.sleep(0.005)


async def test_an_end_is_on_its_way_for_as_long_as_its_caller_reads(door: Stage) -> None:
    reads, done = anyio.Event(), anyio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        async def one_by_one(event: Any) -> None:
            if event["type"] == "http.response.body":
                reads.set()
                await done.wait()
            await send(event)

        await door.app(scope, receive, one_by_one)

    async with listening(slow) as url, httpx.AsyncClient() as client, anyio.create_task_group() as group:
        asked = Asked(group, client.post(url, json=envelope(message("hi")), timeout=DEADLINE))
        turn = await door.answer_next("42")
        await reads.wait()
        assert door.door.tells(turn.id)
        assert door.turn(turn.id).delivered_at is None
        done.set()
        await asked.result()
        await door.until(lambda: door.turn(turn.id).delivered_at is not None, "the delivery")
        await door.until(lambda: not door.door.tells(turn.id), "the end of the request")


async def test_who_was_told_that_a_turn_is_suspended_is_not_told_again_until_it_was_released(
    door: Stage,
) -> None:
    async with listening(door.app) as url, anyio.create_task_group() as group:
        asked = Asked(group, door.send("hi", contextId="canvas-ws-1"))
        await end(door, "suspended")
        turn = await door.taken()
        assert door.journal.untold() == [turn.id]
        await asked.result()
        assert await delivered_after(door, url, turn.id)
        assert door.journal.untold() == []
        assert await door.journal.release(turn.id, now=time.time()) is not None
        assert door.turn(turn.id).delivered_at is None


async def test_until_delivered_forgets_a_message_once_its_answer_was_read(tmp_path: Path) -> None:
    async with (
        stage(tmp_path, dedupe="until-delivered") as door,
        listening(door.app) as url,
        httpx.AsyncClient(timeout=DEADLINE) as client,
        anyio.create_task_group() as group,
    ):
        for number in range(1, 11):  # each at once after the answer to the one before
            asked = Asked(group, client.post(url, json=envelope(message(f"hi {number}"))))
            await door.answer_next(f"done {number}", number)
            assert (await asked.result())["parts"][0]["text"] == f"done {number}"


# --- plain HTTP ---------------------------------------------------------------------------


async def test_the_same_door_stands_open_to_plain_http(door: Stage, tasks: anyio.abc.TaskGroup) -> None:
    v10 = {"A2A-Version": "1.0"}
    asked = Asked(tasks, door.http.post("/message:send", json={"message": message10("hi")}, headers=v10))
    turn = await door.answer_next("done")
    sent = (await asked.response()).json()["task"]
    assert sent["artifacts"][0]["parts"][0]["text"] == "done"
    got = await door.http.get(f"/tasks/{turn.task_id}?historyLength=0", headers=v10)
    assert got.json() == sent
    assert (await door.http.get("/tasks", headers=v10)).json()["totalSize"] == 1
    missing = await door.http.get("/tasks/nobody's", headers=v10)
    assert missing.status_code == 404
    assert missing.json()["error"]["details"][0]["reason"] == "TASK_NOT_FOUND"
    ended = await door.http.post(f"/tasks/{turn.task_id}:cancel", headers=v10)
    assert ended.status_code == 400
    assert ended.json()["error"]["details"][0]["reason"] == "TASK_NOT_CANCELABLE"
    bad = await door.http.post("/message:send", json={"message": message10("hi", messageId=...)}, headers=v10)
    assert bad.status_code == 400
    assert "messageId" in bad.json()["error"]["message"]


async def test_plain_http_of_the_old_dialect_joins_the_same_turn(
    door: Stage, tasks: anyio.abc.TaskGroup
) -> None:
    asked = Asked(tasks, door.send("hi"))
    turn = await door.answer_next("done")
    await asked.result()
    old = message("hi", role="ROLE_USER", parts=..., content=[{"kind": "text", "text": "hi"}])
    joined = (await door.http.post("/v1/message:send", json={"message": old})).json()["message"]
    assert joined["content"] == [{"text": "done"}]
    assert joined["taskId"] == turn.task_id
    other = {**old, "content": [{"text": "something else"}]}
    refused = await door.http.post("/v1/message:send", json={"message": other})
    assert refused.status_code == 400
    assert len(door.journalled()) == 1


async def test_a_plain_http_subscriber_comes_back_by_the_events_id(door: Stage) -> None:
    async with listening(door.app) as url, anyio.create_task_group() as group:
        asked = Asked(group, door.send("hi"))
        turn = await door.start(await door.taken())
        headers = {"A2A-Version": "1.0", "Last-Event-ID": f"{turn.seq}.1"}
        async with (
            httpx.AsyncClient(timeout=DEADLINE) as client,
            client.stream("GET", f"{url}/tasks/{turn.task_id}:subscribe", headers=headers) as response,
        ):
            lines = response.aiter_lines()
            assert await anext(lines) == f"id: {turn.seq}.1"
            await door.finish(turn, "done")
            read = [line async for line in lines]
        assert f"id: {turn.seq}.1.2" in read
        await asked.result()


# --- what must never look like an answer --------------------------------------------------


@pytest.mark.parametrize("method", ["message/send", "message/stream", "SendMessage", "SendStreamingMessage"])
async def test_a_fault_of_ours_is_never_answered_with_200(door: Stage, method: str, logged: StringIO) -> None:
    door.sessions.fault = RuntimeError("a bug, with secret text")
    sent = message("hi") if "/" in method else message10("hi")
    response = await door.rpc(method, {"message": sent})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == -32603
    assert response.json()["id"] == "r-1"
    assert "secret" not in response.text
    assert "RuntimeError at" in logged.getvalue()
    assert "secret" not in logged.getvalue()


async def test_a_fault_of_ours_in_plain_http_is_a_500_too(door: Stage) -> None:
    door.sessions.fault = RuntimeError("a bug, with secret text")
    response = await door.http.post(
        "/message:send", json={"message": message10("hi")}, headers={"A2A-Version": "1.0"}
    )
    assert response.status_code == 500
    assert "secret" not in response.text


async def test_a_caller_that_leaves_while_its_message_is_written_leaves_a_turn_that_starts(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as door:
        for number in range(1, 6):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda n=number: door.send("hi", messageId=f"m-{n}"))  # type: ignore[misc]
                    for _ in range(number * 3):
                        await anyio.sleep(0)
                    scope.cancel()
            await settle()
        submitted = {turn_id for turn_id, _ in door.sessions.submitted}
        assert {turn.id for turn in door.journalled()} == submitted
