from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.shim.conftest import ON_THE_SHIMS_LOOP
from tests.shim.house import CALLER, NOBODY, OPERATOR, PEER, House, house, message, text_of
from tests.shim.scripted import Exchange, Script, Scripted, scripted, until
from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.front.identity import Caller
from workspace_adapter.shim.store.contract import Item, Role, Status
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


async def echo(exchange: Exchange) -> None:
    await exchange.answer(200, echoed(exchange))


def echoed(exchange: Exchange) -> dict[str, Any]:
    sent = json.loads(exchange.request.body)
    message = sent.get("params", {}).get("message", {})
    parts = message.get("parts")
    return {"jsonrpc": "2.0", "id": sent["id"], "result": {"kind": "message", "parts": parts}}


async def busy(exchange: Exchange) -> None:
    await exchange.answer(503, {"error": "full", "busy": True, "retry_after": 60})


class Held:
    """A workspace that answers once it is let."""

    def __init__(self) -> None:
        self.go = anyio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.go.wait()
        await echo(exchange)


@asynccontextmanager
async def platform(store: SqliteStore, script: Script, **more: Any) -> AsyncIterator[tuple[House, Scripted]]:
    async with scripted(script) as workspace, house(store, **more) as built:
        await built.workspace("w", workspace.url, most=8)
        yield built, workspace


# --- a message and its answer --------------------------------------------------------------


async def test_a_message_is_answered_with_the_workspaces_own_bytes(sqlite: SqliteStore) -> None:
    body = b'{"id": "r-1",   "jsonrpc":"2.0","result":{"parts":[{"kind":"text","text":"\xc3\xa4"}], "n":1.0}}'

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(200, body)

    async with platform(sqlite, answer) as (shim, _):
        found = await shim.post(message("hi", request_id="r-1"))
        assert (found.status_code, found.content) == (200, body)
        assert found.headers["content-type"] == "application/json"
        again = await shim.post(message("hi", request_id=7))
        assert again.content == body.replace(b'"r-1"', b"7")


async def test_who_sends_the_same_again_gets_the_stored_answer_and_nothing_runs_twice(
    sqlite: SqliteStore,
) -> None:
    async with platform(sqlite, echo) as (shim, workspace):
        first = await shim.post(message("hi", message_id="m", request_id="a"))
        second = await shim.post(message("hi", message_id="m", request_id="b"))
        assert (first.json()["id"], second.json()["id"]) == ("a", "b")
        assert text_of(first.json()) == text_of(second.json()) == "hi"
        assert len(workspace.requests) == 1


async def test_two_who_send_the_same_at_once_wait_for_one_turn(sqlite: SqliteStore) -> None:
    held = Held()
    async with platform(sqlite, held) as (shim, workspace), anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask(request_id: str) -> None:
            answers.append(await shim.post(message("hi", message_id="m", request_id=request_id)))

        for request_id in ("a", "b", "c"):
            tasks.start_soon(ask, request_id)
        await until(lambda: shim.waiters.held == 3)
        held.go.set()
        await until(lambda: len(answers) == 3)
        assert {answer.json()["id"] for answer in answers} == {"a", "b", "c"}
        assert len(workspace.requests) == 1


async def test_same_id_and_other_content_is_an_error_in_the_protocols_words(sqlite: SqliteStore) -> None:
    async with platform(sqlite, echo) as (shim, workspace):
        await shim.post(message("hi", message_id="m"))
        found = await shim.post(message("ho", message_id="m", request_id="x"))
        assert found.status_code == 200
        assert found.json()["id"] == "x"
        assert found.json()["error"]["code"] == -32602
        assert len(workspace.requests) == 1


async def test_the_workspace_is_told_who_asks_and_in_which_trace(sqlite: SqliteStore) -> None:
    async with platform(sqlite, echo) as (shim, workspace):
        shim.who = PEER
        await shim.post(message("hi"), traceparent="00-1-2-03", cookie="no", x_other="no")
        await shim.post({"method": "tasks/get", "params": {}}, traceparent="00-4-5-06", cookie="no")
        for request, trace in zip(workspace.requests, ("00-1-2-03", "00-4-5-06"), strict=True):
            assert request.headers["x-workspace-id"] == "peer"
            assert request.headers["authorization"] == "Bearer s3cret"
            assert request.headers["traceparent"] == trace
            assert not {"cookie", "x-other"} & request.headers.keys()


async def test_a_json_rpc_error_is_an_answer(sqlite: SqliteStore) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(200, {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}})

    async with platform(sqlite, refuse) as (shim, workspace):
        assert (await shim.ask("hi")).json()["error"]["message"] == "no"
        assert len(workspace.requests) == 1


async def test_a_refusal_of_the_message_itself_is_passed_on_as_it_is(sqlite: SqliteStore) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(413, {"error": "too large for me"})

    async with platform(sqlite, refuse) as (shim, _):
        found = await shim.ask("hi")
        assert (found.status_code, found.json()) == (413, {"error": "too large for me"})


async def test_a_message_without_an_id_of_its_own_is_made_regular(sqlite: SqliteStore) -> None:
    async with platform(sqlite, echo) as (shim, workspace):
        found = await shim.post({"method": "message/send", "params": {"message": {"content": "hi"}}})
        sent = json.loads(workspace.requests[0].body)
        assert found.json()["id"] == sent["id"]
        assert sent["params"]["message"]["messageId"]


async def test_the_other_dialect_is_told_which_one_has_the_answer(sqlite: SqliteStore) -> None:
    async with platform(sqlite, echo) as (shim, _):
        sent = message("hi", message_id="m")
        del sent["params"]["message"]["parts"][0]["kind"]
        await shim.post(sent)
        found = await shim.post({**sent, "method": "SendMessage"})
        assert "message/send" in found.json()["error"]["message"]


# --- held -----------------------------------------------------------------------------------


async def test_a_caller_is_held_while_the_workspace_is_busy_and_gets_its_answer(sqlite: SqliteStore) -> None:
    """Platform contract §10.1: busy again during a drain."""
    turns = 0

    async def busy_twice(exchange: Exchange) -> None:
        nonlocal turns
        turns += 1
        await (exchange.answer(503, {"busy": True, "retry_after": 0.05}) if turns < 3 else echo(exchange))

    async with platform(sqlite, busy_twice) as (shim, workspace):
        found = await shim.ask("hi")
        assert (found.status_code, text_of(found.json())) == (200, "hi")
        assert len(workspace.requests) == 3


async def test_a_caller_whose_hold_is_over_is_told_where_its_message_is(sqlite: SqliteStore) -> None:
    async with platform(sqlite, busy) as (shim, _):
        for headers in ({"prefer": "wait=0"}, {"x_timeout": "0.05"}, {"prefer": "respond-async"}):
            found = await shim.ask("hi", **headers)
            assert found.status_code == 202
            told = found.json()
            assert told["queued"] is True
            assert told["message"].startswith("workspace agent busy")
            standing = (await shim.standing(told["queue_id"])).json()
            assert standing["status"] in ("queued", "dispatched")
            assert standing["queue_id"] == told["queue_id"]
        assert told["queue_depth"] > 0


async def test_the_answer_of_one_that_was_not_waited_for_is_found_by_its_queue_id(
    sqlite: SqliteStore,
) -> None:
    held = Held()
    async with platform(sqlite, held) as (shim, _):
        queue_id = (await shim.ask("hi", prefer="wait=0")).json()["queue_id"]
        held.go.set()
        with anyio.fail_after(10):
            while (found := (await shim.standing(queue_id)).json())["status"] != "completed":
                await anyio.sleep(0.01)
        assert text_of(found["response_body"]) == "hi"


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda s: s.set_status("w", Status.PAUSED, were=list(Status)), "workspace is paused"),
        (lambda s: s.set_status("w", Status.OFFLINE, were=list(Status)), "workspace is offline"),
        (lambda s: s.set_restarting("w", True), "workspace is restarting"),
    ],
)
async def test_a_message_to_a_workspace_that_is_not_there_waits_and_is_told_why(
    sqlite: SqliteStore, prepare: Callable[[SqliteStore], Any], why: str
) -> None:
    """Platform contract §10.20: a message to a sleeping workspace is queued, not refused."""
    async with platform(sqlite, echo) as (shim, workspace):
        await prepare(sqlite)
        found = await shim.ask("hi", prefer="wait=0")
        assert (found.status_code, found.json()["message"].split(" - ")[0]) == (202, why)
        assert not workspace.requests


async def test_a_caller_is_held_through_a_restart_as_if_nothing_had_happened(sqlite: SqliteStore) -> None:
    """Platform contract §10.16: the caller of a turn that a restart cut gets its answer."""
    cut = anyio.Event()

    async def die_once(exchange: Exchange) -> None:
        if cut.is_set():
            await echo(exchange)
        else:
            cut.set()
            exchange.reset()

    async with platform(sqlite, die_once) as (shim, workspace), anyio.create_task_group() as tasks:
        await sqlite.set_restarting("w", True)
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await shim.ask("hi"))

        tasks.start_soon(ask)
        await until(lambda: shim.waiters.held == 1)
        await sqlite.set_restarting("w", False)
        await cut.wait()
        await until(lambda: answers)
        assert (answers[0].status_code, len(workspace.requests)) == (200, 2)


async def test_who_hangs_up_takes_nothing_back(sqlite: SqliteStore) -> None:
    """Platform contract §10.11: what was queued does not depend on the request."""
    held = Held()
    async with platform(sqlite, held) as (shim, workspace):
        with pytest.raises(httpx.ReadTimeout):
            await shim.client.post(
                f"{shim.url}/workspaces/w/a2a", json=message("hi", message_id="m"), timeout=0.2
            )
        await until(lambda: shim.waiters.held == 0)
        await until(lambda: workspace.running == 1)
        held.go.set()
        assert text_of((await shim.post(message("hi", message_id="m"))).json()) == "hi"
        assert len(workspace.requests) == 1


async def test_who_finds_every_place_taken_is_not_held_and_loses_nothing(sqlite: SqliteStore) -> None:
    held = Held()
    async with platform(sqlite, held, most=1) as (shim, _), anyio.create_task_group() as tasks:
        tasks.start_soon(shim.ask, "first")
        await until(lambda: shim.waiters.held == 1)
        found = await shim.ask("second")
        assert (found.status_code, found.json()["queued"]) == (202, True)
        held.go.set()


async def test_everybody_who_waits_when_the_shim_stops_hears_that_the_message_is_kept(
    sqlite: SqliteStore,
) -> None:
    async with platform(sqlite, busy) as (shim, _), anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await shim.ask("hi"))

        tasks.start_soon(ask)
        await until(lambda: shim.waiters.held == 1)
        shim.waiters.stop()
        await until(lambda: answers)
        (found,) = answers
        assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert found.json()["restarting"] is True
        assert (await shim.standing(found.json()["queue_id"])).json()["status"] in ("queued", "dispatched")


async def test_a_loop_of_workspaces_ends_by_the_hold(sqlite: SqliteStore) -> None:
    """Each does one thing at a time: what b asks a can only be answered once a has its own answer of b."""
    async with scripted(echo) as a, scripted(echo) as b, house(sqlite, hold=0.5) as shim:

        def asks(other: str, heard: list[int]) -> Script:
            async def ask(exchange: Exchange) -> None:
                if not heard:
                    heard.append((await shim.ask("again", to=other)).status_code)
                await echo(exchange)

            return ask

        heard: tuple[list[int], list[int]] = ([], [])
        a.script, b.script = asks("b", heard[0]), asks("a", heard[1])
        await shim.workspace("a", a.url)
        await shim.workspace("b", b.url)
        with anyio.fail_after(10):
            found = await shim.ask("hi", to="a", prefer="wait=0")
            while (await shim.standing(found.json()["queue_id"], of="a")).json()["status"] != "completed":
                await anyio.sleep(0.02)
            await until(lambda: heard[1])
            assert heard[0] == [202]


# --- ends without an answer -----------------------------------------------------------------


async def test_a_dead_letter_says_how_it_is_sent_anew(sqlite: SqliteStore) -> None:
    """Platform contract §10.4: an answer that cannot be read."""

    async def nonsense(exchange: Exchange) -> None:
        await exchange.answer(200, b"<html>")

    async with platform(sqlite, nonsense) as (shim, workspace):
        found = await shim.post(message("hi", message_id="m"))
        assert found.status_code == 502
        told = found.json()
        assert told["status"] == "failed"
        assert "send the same message again" in told["error"]
        assert f"replay queue item {told['queue_id']}" in told["error"]
        assert int(found.headers["retry-after"]) == told["retry_after"]
        workspace.script = echo
        assert text_of((await shim.post(message("hi", message_id="m"))).json()) == "hi"


async def test_a_dead_letter_with_an_answer_gives_that(sqlite: SqliteStore) -> None:
    result = {"kind": "message", "parts": [], "metadata": {"state": "failed", "retryable": True}}

    async def fail(exchange: Exchange) -> None:
        await exchange.answer(200, {"jsonrpc": "2.0", "id": 1, "result": result})

    async with platform(sqlite, fail) as (shim, workspace):
        found = await shim.ask("hi")
        assert (found.status_code, found.json()["result"]) == (200, result)
        assert len(workspace.requests) == 3
        assert (await shim.standing(found.headers["x-queue-id"])).json()["status"] == "failed"


async def test_one_that_expired_or_was_dropped_says_so(sqlite: SqliteStore) -> None:
    async with house(sqlite) as shim:
        await shim.workspace("w", None)
        found = await shim.post(message("hi", expires_in_seconds=0.05))
        assert (found.status_code, found.json()["status"]) == (504, "expired")
        queue_id = (await shim.post(message("ho", message_id="m"), prefer="wait=0")).json()["queue_id"]
        await sqlite.drop(int(queue_id), "not wanted")
        found = await shim.post(message("ho", message_id="m"))
        assert (found.status_code, found.json()["status"]) == (410, "dropped")
        assert "not wanted" in found.json()["error"]
        assert (await shim.standing(queue_id)).json()["state"] == "dropped"


# --- refused --------------------------------------------------------------------------------


async def test_what_cannot_be_is_refused_and_keeps_nothing(sqlite: SqliteStore) -> None:
    async with house(sqlite, body_limit=2000) as shim:
        await shim.workspace("w", None)
        found = await shim.post({"method": "message/send", "params": {"message": {}}})
        assert (found.status_code, set(found.json())) == (400, {"error", "hint"})
        for size in (2001, 5_000_000):
            found = await shim.post(b"x" * size)
            assert (found.status_code, found.json()["max_bytes"], found.json()["truncated"]) == (
                413,
                2000,
                True,
            )

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 100

        found = await shim.client.post(
            f"{shim.url}/workspaces/w/a2a", content=pieces(), headers={"content-type": "application/json"}
        )
        assert found.status_code == 413
        shim.who = CALLER
        found = await shim.post(message("hi", metadata={"source_type": "self-cron"}))
        assert found.status_code == 403
        assert await sqlite.items("w") == []


async def test_a_workspace_that_is_not_there_or_not_any_more_is_told_apart(sqlite: SqliteStore) -> None:
    async with platform(sqlite, echo) as (shim, _):
        for body in (message("hi"), {"method": "tasks/get", "params": {"id": "t"}}):
            assert (await shim.post(body, to="nobody")).status_code == 404
        await sqlite.set_status("w", Status.REMOVED, were=list(Status))
        for body in (message("hi"), {"method": "tasks/get", "params": {"id": "t"}}):
            assert (await shim.post(body)).status_code == 410


async def test_a_full_queue_says_how_full_and_when_to_come_again(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "small.sqlite", Rules(depth_cap=2)) as store, house(store) as shim:
        await shim.workspace("w", None)
        for n in range(2):
            await shim.ask(f"{n}", prefer="wait=0")
        found = await shim.ask("one more")
        assert (found.status_code, found.json()["queue_depth"]) == (429, 2)
        assert int(found.headers["retry-after"]) > 0


async def test_a_store_that_is_down_takes_nothing_and_says_so(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object) -> None:
        raise StoreUnavailable("it is down")

    async with platform(sqlite, echo) as (shim, workspace):
        monkeypatch.setattr(sqlite, "enqueue", down)
        monkeypatch.setattr(sqlite, "item", down)
        monkeypatch.setattr(sqlite, "workspace", down)
        answers = [await shim.ask("hi"), await shim.standing("1"), await shim.post({"method": "tasks/get"})]
        for found in answers:
            assert (found.status_code, int(found.headers["retry-after"])) == (
                503,
                found.json()["retry_after"],
            )
        assert not workspace.requests


# --- the queue's status ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "status"),
    [
        (NOBODY, 200),
        (OPERATOR, 200),
        (CALLER, 200),
        (Caller(role=Role.WORKSPACE, workspace_id="w"), 200),
        (PEER, 403),
        (Caller(role=Role.CALLER, name="other"), 403),
    ],
)
async def test_only_who_has_to_do_with_it_sees_how_a_message_stands(
    sqlite: SqliteStore, who: Caller, status: int
) -> None:
    async with house(sqlite) as shim:
        await shim.workspace("w", None)
        shim.who = CALLER
        queue_id = (await shim.ask("hi", prefer="wait=0")).json()["queue_id"]
        shim.who = who
        assert (await shim.standing(queue_id)).status_code == status


async def test_how_a_message_stands_is_told_in_the_existing_platforms_words(sqlite: SqliteStore) -> None:
    async with platform(sqlite, echo) as (shim, _):
        queue_id = (await shim.post(message("hi", expires_in_seconds=60))).headers["x-queue-id"]
        found = (await shim.standing(queue_id)).json()
        assert found.keys() >= {"queue_id", "workspace_id", "state", "response_body"}
        assert not {"body", "caller_id", "last_error"} & found.keys()
        assert (found["status"], found["priority"], found["attempts"]) == ("completed", 50, 1)
        for name in ("enqueued_at", "dispatched_at", "completed_at"):
            assert found[name].endswith("Z")
        for unknown in ("999", "0", "x", "-1", "9" * 30, "%00"):
            found = (await shim.standing(unknown)).json()
            assert found == {"error": "queue item not found", "retryable": True}


# --- what passes through ----------------------------------------------------------------------


async def test_any_other_method_passes_through_as_it_is(sqlite: SqliteStore) -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.answer(404, exchange.request.body[::-1], content_type="application/x", x_own="no")

    async with platform(sqlite, tell) as (shim, workspace):
        body = b'{"jsonrpc":"2.0", "id": 5, "method":"tasks/get","params":{"id":"t"}}'
        found = await shim.post(body, content_type="application/x-www-form-urlencoded")
        assert (found.status_code, found.content) == (404, body[::-1])
        assert found.headers["content-type"] == "application/x"
        assert "x-own" not in found.headers
        assert workspace.requests[0].body == body
        assert workspace.requests[0].headers["content-type"] == "application/json"
        assert await sqlite.items("w") == []


async def test_a_header_that_is_no_text_passes_through_too(sqlite: SqliteStore) -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.say(
            b"HTTP/1.1 200 OK\r\ncontent-type: a/b; c=\xff\xc3\xa9\r\ncontent-length: 2\r\n\r\n{}"
        )

    async with platform(sqlite, tell) as (shim, _):
        found = await shim.post({"jsonrpc": "2.0", "id": 5, "method": "tasks/get", "params": {"id": "t"}})
        assert (found.status_code, found.text) == (200, "{}")
        assert dict(found.headers.raw)[b"content-type"] == b"a/b; c=\xff\xc3\xa9"


async def test_a_stream_passes_through_as_it_comes(sqlite: SqliteStore) -> None:
    read = anyio.Event()

    async def tell(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream", connection="close")
        await exchange.event({"n": 1})
        await read.wait()
        await exchange.event({"n": 2})
        exchange.close()

    async with platform(sqlite, tell) as (shim, _):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/resubscribe", "params": {"id": "t"}}
        with anyio.fail_after(10):
            async with shim.client.stream("POST", f"{shim.url}/workspaces/w/a2a", json=body) as response:
                lines = response.aiter_lines()
                assert '"n": 1' in await anext(lines)
                read.set()
                assert '"n": 2' in "".join([line async for line in lines])


async def test_a_workspace_that_is_not_reached_is_told_apart_from_one_that_broke_off(
    sqlite: SqliteStore,
) -> None:
    async def die(exchange: Exchange) -> None:
        exchange.reset()

    body = {"method": "tasks/get", "params": {"id": "t"}}
    async with platform(sqlite, die) as (shim, _):
        found = await shim.post(body)
        assert (found.status_code, found.json()["restarting"]) == (503, True)
        await shim.workspace("u", "http://127.0.0.1:9")
        found = await shim.post(body, to="u")
        assert (found.status_code, found.json()["error"]) == (502, "failed to reach workspace agent")
        await sqlite.set_restarting("u", True)
        assert (await shim.post(body, to="u")).status_code == 503
        await shim.workspace("v", None)
        found = await shim.post(body, to="v")
        assert (found.status_code, found.json()["status"]) == (503, "provisioning")


async def test_a_workspace_that_moved_is_found_where_it_is(sqlite: SqliteStore) -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.answer(200, {})
        exchange.close()

    body = {"method": "tasks/get", "params": {"id": "t"}}
    async with scripted(tell) as there, house(sqlite) as shim:
        async with scripted(tell) as here:
            await shim.workspace("w", here.url)
            assert (await shim.post(body)).status_code == 200
        await sqlite.register("w", url=there.url, boot_id="w-boot")
        assert (await shim.post(body)).status_code == 200
        assert len(there.requests) == 1


async def test_a_stream_that_passes_through_and_breaks_off_ends_without_its_last_event(
    sqlite: SqliteStore, logged: StringIO
) -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream", transfer_encoding="chunked")
        await exchange.say(b"b\r\ndata: {}\n\n\n\r\n")
        exchange.reset()

    async with platform(sqlite, tell) as (shim, _):
        found = await shim.post({"method": "tasks/resubscribe", "params": {"id": "t"}})
        assert (found.status_code, found.text) == (200, "data: {}\n\n\n")
        assert (await shim.post({"method": "tasks/resubscribe", "params": {"id": "t"}})).status_code == 200
    assert "Traceback" not in logged.getvalue()


async def test_an_answer_that_passes_through_and_breaks_off_is_seen_to_be_cut(sqlite: SqliteStore) -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.head(200, content_type="application/json", content_length="100")
        await exchange.say(b"{")
        exchange.reset()

    async with platform(sqlite, tell) as (shim, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await shim.post({"method": "tasks/get", "params": {"id": "t"}})


async def test_an_answer_without_a_body_passes_through(sqlite: SqliteStore) -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.answer(500, b"")

    async with platform(sqlite, tell) as (shim, _):
        found = await shim.post({"method": "tasks/get", "params": {"id": "t"}})
        assert (found.status_code, found.content) == (500, b"")


# --- bounds -----------------------------------------------------------------------------------


@ON_THE_SHIMS_LOOP
async def test_who_is_held_does_not_hold_its_message_in_memory(sqlite: SqliteStore) -> None:
    size, many = 1 << 20, 12
    async with house(sqlite) as shim, anyio.create_task_group() as tasks:
        await shim.workspace("w", None)
        bodies = [json.dumps(message("x" * size)).encode() for _ in range(many)]
        tracemalloc.start()
        try:
            for body in bodies:
                tasks.start_soon(shim.post, body)
            await until(lambda: shim.waiters.held == many)
            await anyio.wait_all_tasks_blocked()
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < many * size / 2
        finally:
            tracemalloc.stop()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["%00", "..", "W", "a_b", "x" * 200, "%ED%A0%80"])
async def test_a_name_that_no_workspace_has_is_unknown(sqlite: SqliteStore, name: str) -> None:
    async with house(sqlite) as shim:
        assert (await shim.ask("hi", to=name)).status_code == 404


async def test_a_store_that_goes_away_while_somebody_waits_is_waited_for(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, item, downs = Held(), sqlite.item, 0

    async def down_once(item_id: int) -> Item | None:
        nonlocal downs
        downs += 1
        if downs == 1:
            raise StoreUnavailable("it is down")
        return await item(item_id)

    async with platform(sqlite, held, glance=0.05) as (shim, _), anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await shim.ask("hi"))

        tasks.start_soon(ask)
        await until(lambda: shim.waiters.held == 1)
        monkeypatch.setattr(sqlite, "item", down_once)
        held.go.set()
        await until(lambda: answers)
        assert answers[0].status_code == 200


async def test_no_name_of_a_method_makes_a_line_of_the_log(sqlite: SqliteStore, logged: StringIO) -> None:
    async with house(sqlite) as shim:
        await shim.workspace("w", "http://127.0.0.1:9")
        found = await shim.post({"method": "tasks/get\nforged " + "x" * 1000, "params": {}})
        assert found.status_code == 502
    lines = [line for line in logged.getvalue().splitlines() if "forged" in line]
    assert lines
    assert all(json.loads(line)["message"].count("x") < 70 for line in lines)
