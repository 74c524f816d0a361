"""What the workspace answers itself, at the door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from workspace_adapter.sidecar.door.own_answers import NOTED
from workspace_adapter.telling import Doing, Work
from workspace_adapter.turns import State

from .stage import Stage, know_secret, stage

CONTEXT = "canvas-ws-1"
RESTART = {"kind": "restart_context", "source_type": "self-restart-context"}
PROBE = {"kind": "stall_probe", "source_type": "self-stall"}


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as made:
        yield made


async def told(door: Stage, text: str, message_id: str, metadata: dict[str, Any], **more: Any) -> str:
    response = await door.send(text, messageId=message_id, contextId=CONTEXT, metadata=metadata, **more)
    assert response.status_code == 200, response.text
    result = response.json()["result"]
    assert result["contextId"] == CONTEXT
    text_: str = result["parts"][0]["text"]
    return text_


async def test_a_restart_context_is_noted_at_once_and_no_turn_runs(door: Stage) -> None:
    assert await told(door, "A is set", "r-1", RESTART) == NOTED
    assert door.sessions.submitted == []
    (turn,) = door.journalled()
    assert (turn.state, turn.attempt, turn.source) == (State.ANSWERED, 0, "self-restart-context")
    notice = door.journal.notice(CONTEXT)
    assert notice is not None
    assert (notice.text, notice.given_to) == ("A is set", None)


async def test_sent_again_it_gets_the_same_answer_and_what_was_given_is_not_new_again(door: Stage) -> None:
    await told(door, "A is set", "r-1", RESTART)
    waits = message_that_waits() | {"contextId": CONTEXT}
    await door.rpc("message/send", {"message": waits, "configuration": {"blocking": False}})
    turn = await door.taken()
    notice = door.journal.notice(CONTEXT)
    await door.journal.start(
        turn.id, expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, notice=notice, now=turn.accepted_at
    )
    notice = door.journal.notice(CONTEXT)
    assert notice is not None
    assert notice.given_to == turn.id
    assert await told(door, "A is set", "r-1", RESTART) == NOTED
    assert len(door.journalled()) == 2
    assert door.journal.notice(CONTEXT) == notice
    changed = await door.send("B is set", messageId="r-1", contextId=CONTEXT, metadata=RESTART)
    assert changed.json()["error"]["code"] == -32602


async def test_the_last_of_several_counts(door: Stage) -> None:
    await told(door, "A is set", "r-1", RESTART)
    await told(door, "A and B are set", "r-2", RESTART)
    notice = door.journal.notice(CONTEXT)
    assert notice is not None
    assert notice.text == "A and B are set"


async def test_a_notice_is_small_whatever_is_sent(door: Stage) -> None:
    await told(door, "x" * 100_000, "r-1", RESTART)
    notice = door.journal.notice(CONTEXT)
    assert notice is not None
    assert notice.text == "x" * 4096 + "…"


async def test_a_full_inbox_does_not_keep_the_platform_waiting(tmp_path: Path) -> None:
    async with stage(tmp_path, inbox_limit=1) as door:
        waits = {"message": message_that_waits(), "configuration": {"blocking": False}}
        assert (await door.rpc("message/send", waits)).status_code == 200
        assert (await door.send("hi", messageId="m-2")).status_code == 503
        assert await told(door, "A is set", "r-1", RESTART) == NOTED


def message_that_waits() -> dict[str, Any]:
    return {
        "role": "user",
        "messageId": "m-1",
        "parts": [{"kind": "text", "text": "hi"}],
        "metadata": {},
    }


async def test_a_flood_of_notices_is_refused_and_those_known_are_not(tmp_path: Path) -> None:
    async with stage(tmp_path, inbox_limit=2) as door:
        for number in (1, 2):
            assert await told(door, "A is set", f"r-{number}", RESTART) == NOTED
        refused = await door.send("A is set", messageId="r-3", contextId=CONTEXT, metadata=RESTART)
        assert refused.status_code == 503
        assert "WORKSPACE_INBOX_LIMIT=2" in refused.json()["error"]
        assert await told(door, "A is set", "r-1", RESTART) == NOTED
        assert len(door.journalled()) == 2


async def test_a_full_journal_refuses_a_notice_too(tmp_path: Path) -> None:
    async with stage(tmp_path, journal_limit_bytes=1) as door:
        refused = await door.send("A is set", contextId=CONTEXT, metadata=RESTART)
        assert refused.status_code == 503
        assert "WORKSPACE_JOURNAL_LIMIT_BYTES" in refused.json()["error"]


async def test_a_stranger_leaves_no_notice_in_somebodys_conversation(tmp_path: Path) -> None:
    signed = know_secret(tmp_path) | {"X-Workspace-ID": "alice"}
    async with stage(tmp_path) as door:
        mine = message_that_waits() | {"contextId": CONTEXT}
        params = {"message": mine, "configuration": {"blocking": False}}
        assert "result" in (await door.rpc("message/send", params, headers=signed)).json()
        refused = await door.send("A is set", contextId=CONTEXT, metadata=RESTART, messageId="r-1")
        assert refused.json()["error"]["code"] == -32602
        assert door.journal.notice(CONTEXT) is None


async def test_a_notice_cannot_end_a_task(door: Stage) -> None:
    sent = await door.rpc(
        "message/send",
        {"message": message_that_waits() | {"contextId": CONTEXT}, "configuration": {"blocking": False}},
    )
    task = sent.json()["result"]["id"]
    await told(door, "A is set", "r-1", RESTART, taskId=task)
    shown = await door.rpc("tasks/get", {"id": task})
    assert shown.json()["result"]["status"]["state"] == "submitted"


async def test_a_probe_is_told_what_runs_and_leaves_no_notice(door: Stage) -> None:
    door.sessions.does = Work(
        doing=[Doing(turn_id="t-1", session_id="s", since=None, quiet=1.0, line="running Bash")]
    )
    assert await told(door, "Are you stuck?", "p-1", PROBE) == (
        "1 turn runs; 0 more wait.\n- running Bash: turn t-1, starting, last sign of life 1 s ago"
    )
    door.sessions.does = Work()
    assert (await told(door, "Are you stuck?", "p-1", PROBE)).startswith("1 turn runs")
    assert await told(door, "Are you stuck?", "p-2", PROBE) == "Nothing runs; 0 more wait."
    assert door.journal.notice(CONTEXT) is None
    assert door.sessions.submitted == []


async def test_only_who_names_itself_no_caller_is_the_user_of_the_canvas(tmp_path: Path) -> None:
    signed = know_secret(tmp_path)
    async with stage(tmp_path) as door:
        for headers, canvas in ((signed, True), (signed | {"X-Workspace-ID": "alice"}, False)):
            mine = message_that_waits() | {"metadata": {"source": "canvas_user"}, "messageId": str(canvas)}
            params = {"message": mine, "configuration": {"blocking": False}}
            assert "result" in (await door.rpc("message/send", params, headers=headers)).json()
            assert door.journalled()[0].canvas is canvas


async def test_other_turns_of_the_platform_run(door: Stage) -> None:
    nudge = {"kind": "inbox_nudge", "source_type": "self-nudge"}
    sent = await door.rpc(
        "message/send",
        {
            "message": message_that_waits() | {"metadata": nudge},
            "configuration": {"blocking": False},
        },
    )
    assert sent.json()["result"]["status"]["state"] == "submitted"
    assert (await door.taken()).source == "self-nudge"
