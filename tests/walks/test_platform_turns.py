"""What the platform says to a workspace, and what is said to the platform unasked."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from workspace_adapter.sidecar.door.own_answers import NOTED
from workspace_adapter.sidecar.journal import Reader
from workspace_adapter.testing.platform import FakePlatform, Fault
from workspace_adapter.turns import State

from .test_claude_kill_matrix import claude
from .workspace import Workspace, answer_of, script, workspace

CANVAS = "canvas-ws-test"
RESTART = {"kind": "restart_context", "source_type": "self-restart-context"}
SLOW = script(
    {"tool": "sh", "input": "echo begun >> effects; until [ -e go ]; do sleep 0.02; done"}, {"answer": "42"}
)


@asynccontextmanager
async def on_a_platform(
    root: Path, *, start: bool = True, **settings: str
) -> AsyncIterator[tuple[Workspace, FakePlatform]]:
    (root / "configs").mkdir()
    with FakePlatform(configs_dir=root / "configs") as platform:
        async with workspace(
            root, start=start, **{"PLATFORM_URL": platform.url, "WORKSPACE_NOTIFY_AFTER": "0.3", **settings}
        ) as ws:
            yield ws, platform


def told(platform: FakePlatform) -> list[str]:
    """What the user of the canvas was sent."""
    return [body["message"] for body in platform.notifications]


async def lost(ws: Workspace, text: str, **more: Any) -> None:
    """Send a message as the canvas does, and lose the connection once it is worked on."""
    body = ws.envelope(text, context_id=CANVAS, **more)
    async with anyio.create_task_group() as group:

        async def send() -> None:
            with suppress(httpx.TransportError):
                await ws.post(body)

        group.start_soon(send)
        await ws.until_effect("begun")
        group.cancel_scope.cancel()


async def say(ws: Workspace, text: str, metadata: dict[str, Any], message_id: str) -> str:
    body = ws.envelope(text, message_id=message_id, context_id=CANVAS)
    body["params"]["message"]["metadata"] = metadata
    return answer_of((await ws.post(body)).json())


def prompts(ws: Workspace) -> list[str]:
    """What the runtime was given, oldest first."""
    given = []
    for transcript in sorted(ws.state_dir.rglob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        for line in transcript.read_text().splitlines():
            if line and (entry := json.loads(line))["fact"] == "given":
                given.append(entry["text"])
    return given


# --- the restart context ----------------------------------------------------------------


async def test_the_restart_context_does_not_wait_for_what_is_resumed_which_is_told_it(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await lost(ws, SLOW)
        ws.kill_everything()
        await ws.start()
        await ws.until(lambda: len(prompts(ws)) == 2, "the second attempt")
        began = time.monotonic()
        assert await say(ws, "A is set", RESTART, "r-1") == NOTED
        assert time.monotonic() - began < 5, "it waited for the turn that runs"
        ws.kill_everything()
        (ws.workdir / "go").touch()
        await ws.start()
        await ws.until(lambda: "answered, because" in ws.logged(), "the answer")
        first, second, third = prompts(ws)
        assert "> A is set" not in first + second
        assert third.count("> A is set") == 1
        assert third.index("> A is set") < third.index("The restart cut you off")
        assert await say(ws, "A is set", RESTART, "r-1") == NOTED
        assert ws.command("journal", "check").returncode == 0
        await ws.send("and now?", context_id=CANVAS)
        assert "A is set" not in prompts(ws)[-1]


async def test_it_is_answered_while_the_workspace_drains(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await lost(ws, SLOW)
        async with anyio.create_task_group() as group:
            group.start_soon(ws.signal)
            await ws.until(lambda: "drain begins" in ws.logged(), "the drain")
            assert await say(ws, "A is set", RESTART, "r-1") == NOTED
            assert (await say(ws, "stuck?", {"kind": "stall_probe"}, "p-1")).startswith(
                "1 turn runs; 0 more wait.\n- running sh: turn "
            )
            (ws.workdir / "go").touch()


@pytest.mark.parametrize("moment", ["answered", "started", "given", "cut"])
async def test_killed_at_any_moment_a_notice_is_read_once_in_a_conversation(
    tmp_path: Path, moment: str
) -> None:
    """Before the attempt, between its start and its prompt, with the prompt, and during its work."""
    async with workspace(tmp_path) as ws:
        assert await say(ws, "A is set", RESTART, "r-1") == NOTED
        if moment == "answered":
            ws.kill_everything()
            await ws.start()
        slow = SLOW if moment == "cut" else script({"sleep": 0.3})
        body = ws.envelope(slow, context_id=CANVAS, message_id="m-1", configuration={"blocking": False})
        await ws.post(body)
        if moment == "started":
            await ws.until(lambda: runs(ws), "the start")
            ws.kill_everything()
        elif moment == "given":
            await ws.until(lambda: prompts(ws), "the prompt")
            ws.kill_everything()
        elif moment == "cut":
            await ws.until_effect("begun")
            ws.kill_everything()
        (ws.workdir / "go").touch()
        if moment != "answered":
            await ws.start()
        await ws.until(lambda: "answered, because" in ws.logged(), "the answer")
        given = prompts(ws)
        assert sum("> A is set" in prompt for prompt in given) == 1, given
        assert "> A is set" in given[0]


def runs(ws: Workspace) -> bool:
    with Reader.open(ws.state_dir) as reader:
        return bool(reader.turns(states=[State.RUNNING]))


# --- what the user of the canvas is told --------------------------------------------------


async def test_an_answer_whose_caller_died_with_the_last_life_is_told_once(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path) as (ws, platform):
        await lost(ws, SLOW)
        ws.kill_everything()
        (ws.workdir / "go").touch()
        await ws.start()
        await ws.until(lambda: told(platform), "the notification")
        await ws.until(lambda: "told to the user of the canvas" in ws.logged(), "its record")
        for _ in range(2):
            ws.kill_everything()
            await ws.start()
            assert answer_of((await ws.send("hi", context_id="other")).json()) == "hi"
        await anyio.sleep(1.0)  # three times the patience: nothing is to come
        assert told(platform) == ["42"]


async def test_a_caller_who_waits_or_comes_back_in_time_is_told_and_nobody_else(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path, WORKSPACE_NOTIFY_AFTER="1.2") as (ws, platform):
        (ws.workdir / "go").touch()
        assert answer_of((await ws.send(SLOW, context_id=CANVAS)).json()) == "42"
        (ws.workdir / "go").unlink()
        ws.effects.unlink()
        await lost(ws, SLOW, message_id="back")
        ws.kill_everything()
        (ws.workdir / "go").touch()
        await ws.start()
        again = ws.envelope(SLOW, message_id="back", context_id=CANVAS)
        assert answer_of(await ws.ask_until_answered(again)) == "42"
        await lost_turn_of_the_platform(ws)
        await anyio.sleep(2)
        assert told(platform) == []


async def lost_turn_of_the_platform(ws: Workspace) -> None:
    body = ws.envelope("nudge", context_id=CANVAS, configuration={"blocking": False})
    body["params"]["metadata"] = {"source_type": "self-nudge"}
    await ws.post(body)


async def test_failed_and_suspended_turns_are_told_as_errors(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path, WORKSPACE_RESUME_MAX_ATTEMPTS="1") as (ws, platform):
        body = ws.envelope(script({"fail": "no such model"}), context_id=CANVAS)
        await ws.post(body | {"params": body["params"] | {"configuration": {"blocking": False}}})
        await ws.until(lambda: told(platform) == ["Agent error: no such model"], "the failure")
        await lost(ws, SLOW)
        ws.kill_everything()
        await ws.start()
        await ws.until(lambda: len(told(platform)) == 2, "the suspension")
        assert re.match("Agent error: suspended: .*workspace-adapter turns release ", told(platform)[1])
        released = next(turn["id"] for turn in ws.turns() if turn["state"] == "suspended")
        (ws.workdir / "go").touch()
        assert ws.command("turns", "release", released).returncode == 0
        await ws.until(lambda: len(told(platform)) == 3, "the answer after all")
        assert told(platform)[2] == "42"


async def test_a_platform_that_is_away_is_told_when_it_is_back_also_by_a_later_life(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path) as (ws, platform):
        platform.fail(Fault.answer(503), on="/notify")
        await lost(ws, SLOW)
        (ws.workdir / "go").touch()
        await ws.until(lambda: platform.failed >= 1, "the first try")
        ws.kill_everything()
        platform.recover()
        count = len(told(platform))
        await ws.start()
        await ws.until(lambda: "told to the user of the canvas" in ws.logged(), "its record")
        assert set(told(platform)) == {"42"}
        assert len(told(platform)) == count + 1


async def test_a_user_who_wants_no_messages_is_asked_once(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path) as (ws, platform):
        platform.fail(Fault.answer(403, b'{"error":"talk_to_user_disabled"}'), on="/notify")
        await lost(ws, SLOW)
        (ws.workdir / "go").touch()
        await ws.until(lambda: "its user will not be told how it ended" in ws.logged(), "the refusal")
        ws.kill_everything()
        await ws.start()
        await anyio.sleep(1.0)
        assert len(told(platform)) == 1
        assert ws.logged().count("will not be told") == 1


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01])
async def test_killed_around_the_platforms_answer_the_user_is_told_once_or_twice(
    tmp_path: Path, delay: float
) -> None:
    async with on_a_platform(tmp_path) as (ws, platform):
        await lost(ws, SLOW)
        (ws.workdir / "go").touch()
        await ws.until(lambda: told(platform), "the notification")
        await anyio.sleep(delay)
        ws.kill_everything()
        await ws.start()
        await ws.until(lambda: not untold(ws), "the record")
        assert 1 <= len(told(platform)) <= 2
        assert set(told(platform)) == {"42"}


def untold(ws: Workspace) -> list[str]:
    with Reader.open(ws.state_dir) as reader:
        return reader.untold()


# --- what the agent does ------------------------------------------------------------------


async def test_the_platform_hears_what_a_long_turn_does_once_for_all_that_runs(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path, WORKSPACE_MAX_CONCURRENT_TURNS="2") as (ws, platform):
        platform.fail(Fault.answer(500), on="/activity", times=0)
        await lost(ws, SLOW)
        other = ws.envelope(SLOW, context_id="other", configuration={"blocking": False})
        await ws.post(other)
        await ws.until(lambda: platform.activities, "the activity")
        (said,) = platform.activities
        assert said["activity_type"] == "agent_log"
        assert re.fullmatch(r"running sh \(for \d+ s\); running sh \(for \d+ s\)", said["summary"])
        (ws.workdir / "go").touch()
        await ws.until(lambda: len(told(platform)) == 1, "the end")
        assert len(platform.activities) == 1
        assert [v for v in platform.violations if "activity" in v or "notify" in v] == []


# --- our own prompts ----------------------------------------------------------------------


async def test_the_initial_prompt_runs_once_whatever_is_killed(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_INITIAL_PROMPT=SLOW) as ws:
        await ws.until_effect("begun")
        ws.kill_everything()
        await ws.start()
        (ws.workdir / "go").touch()
        await ws.until(lambda: "answered, because" in ws.logged(), "its end")
        ws.environ["WORKSPACE_INITIAL_PROMPT"] = "something else"
        for _ in range(2):
            ws.kill_everything()
            await ws.start()
        with Reader.open(ws.state_dir) as reader:
            (turn,) = reader.turns()
        assert (turn.source, turn.state, turn.session_id) == ("self-initial-prompt", State.ANSWERED, CANVAS)
        assert turn.attempt == 2, "it was resumed, not canceled, and not begun anew"


async def test_the_idle_prompt_comes_when_nothing_was_done_and_not_in_a_drain(tmp_path: Path) -> None:
    async with workspace(
        tmp_path,
        WORKSPACE_IDLE_PROMPT="look around",
        WORKSPACE_IDLE_INTERVAL="0.4",
        WORKSPACE_RESTART_WINDOW="10",
    ) as ws:
        await ws.until(lambda: len(ws.turns()) >= 2, "two of them")
        assert (await ws.signal()).status_code == 200
        count = len(ws.turns())
        await anyio.sleep(1.5)
        turns = ws.turns()
        assert len(turns) == count
        assert {(turn["source"], turn["context_id"]) for turn in turns} == {("self-idle", CANVAS)}


async def test_a_platform_that_never_answers_does_not_keep_a_workspace_from_stopping(tmp_path: Path) -> None:
    async with on_a_platform(tmp_path) as (ws, platform):
        platform.fail(Fault.silence(), on="/notify")
        await lost(ws, SLOW)
        (ws.workdir / "go").touch()
        await ws.until(lambda: told(platform), "the notification")
        began = time.monotonic()
        ws.terminate()
        assert await ws.exited() == 0
        assert time.monotonic() - began < 3


# --- with the real CLI ----------------------------------------------------------------------


async def test_claude_reads_the_restart_context_before_the_next_message_and_once(tmp_path: Path) -> None:
    async with claude(tmp_path) as (ws, model):
        assert await say(ws, "=== WORKSPACE RESTART CONTEXT ===\nA is set", RESTART, "r-1") == NOTED
        assert model.requests == []
        for name in ("first", "second"):
            text = script({"text": name})
            assert answer_of((await ws.send(text, context_id=CANVAS)).json()) == name
        asked = [json.dumps(request) for request in model.requests]
        assert asked[0].count("> A is set") == 1
        assert asked[0].index("the platform, not the user") < asked[0].index("please do this")
        assert asked[-1].count("> A is set") == 1, "from the conversation, not told anew"
