"""The scripted runtimes do what their scripts say, once."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest

from workspace_adapter.adapter import InterruptedTurn, StopReason
from workspace_adapter.errors import RuntimeLost, RuntimeUnusable, SessionLost, TurnFailed
from workspace_adapter.events import SessionHandle
from workspace_adapter.resume import Evidence, Found, Resumption, recovery_note
from workspace_adapter.testing.fakes import ScriptedEnds, Transcript
from workspace_adapter.testing.stage import Attempt, Scene, Stage
from workspace_adapter.turns import Call


def script(*steps: dict[str, Any]) -> str:
    return f"<<<{json.dumps(steps)}>>>"


def sh(command: str, **options: Any) -> dict[str, Any]:
    return {"tool": "sh", "input": command, **options}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage, None]:
    stage = Stage(
        subject="workspace_adapter.testing.fakes:ScriptedEnds",
        environ={"PATH": "/usr/bin:/bin"},
        directory=tmp_path,
        patience=10,
        promptness=1,
    )
    yield stage
    await stage.recovering()


def call(arguments: str, *, permitted: bool = True, ended: bool = False) -> Call:
    return Call(
        turn_id="t",
        attempt=1,
        id="t:0",
        name="sh",
        digest=arguments,
        excerpt=arguments,
        asked_at=1,
        permitted_at=1 if permitted else None,
        ended_at=2 if ended else None,
        withdrawn_at=None,
        outcome=None,
    )


async def again(scene: Scene, prompt: str, *calls: Call) -> Attempt:
    """A later attempt, told of these calls."""
    text = scene.traces.fill(prompt)
    note = recovery_note(calls, text, resumption=Resumption.CONTINUE)
    return await scene.run(prompt, id="t", attempt=2, resumption=Resumption.CONTINUE, note=note)


# --- scripts ----------------------------------------------------------------------------


async def test_a_message_without_a_script_is_answered_with_itself(stage: Stage) -> None:
    async with stage.session() as scene:
        turn = await scene.run("hello")
    assert (turn.finish, turn.answer) == ("answered", "hello")


async def test_text_after_the_last_tool_call_is_the_answer(stage: Stage) -> None:
    async with stage.session() as scene:
        turn = await scene.run(script({"say": "before"}, sh("true"), {"say": "a"}, {"say": "b"}))
    assert turn.answer == "ab"


@pytest.mark.parametrize(
    ("step", "finish"),
    [({"answer": "42"}, "answered"), ({"ask": "Which?"}, "asked-back"), ({"reject": "No."}, "rejected")],
)
async def test_a_script_ends_its_turn_as_it_says(stage: Stage, step: dict[str, str], finish: str) -> None:
    async with stage.session() as scene:
        turn = await scene.run(script({"say": "first"}, step, sh("echo never >> {effect}")))
    assert (turn.finish, turn.answer) == (finish, *step.values())
    assert scene.traces.effects() == 0


async def test_every_kind_of_event_can_be_scripted(stage: Stage) -> None:
    async with stage.session() as scene:
        turn = await scene.run(script({"activity": "looks"}, {"artifact": "text"}, {"usage": [3, 4]}))
    assert [m.kind for m in turn.moments] == ["bound", "activity", "artifact", "usage", "finished"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ({"fail": "busy", "retryable": True}, TurnFailed),
        ({"crash": True}, RuntimeLost),
        ({"unusable": "no binary"}, RuntimeUnusable),
    ],
)
async def test_a_script_raises_what_it_says(
    stage: Stage, step: dict[str, Any], error: type[Exception]
) -> None:
    async with stage.session() as scene:
        turn = await scene.run(script(step))
    assert turn.finish.startswith(f"with {error.__name__}")


async def test_a_script_can_leave_the_contract(stage: Stage) -> None:
    async with stage.session() as scene:
        with pytest.raises(LookupError):
            await scene.run(script({"raise": True}))


async def test_a_mishap_may_happen_so_often_and_no_more(stage: Stage) -> None:
    prompt = script({"fail": "busy", "times": 2}, {"answer": "done"})
    async with stage.session() as scene:
        finishes = [(await scene.run(prompt, id="t", attempt=n)).finish for n in (1, 2, 3)]
    assert finishes == ["with TurnFailed: busy", "with TurnFailed: busy", "answered"]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("<<<[{]>>>", "the script is not JSON"),
        (script({"dance": True}), "a step nobody knows"),
        (script({"tool": "python", "input": "1"}), "the only tool is `sh`"),
    ],
)
async def test_a_script_nobody_can_play_fails_its_turn(stage: Stage, prompt: str, reason: str) -> None:
    async with stage.session() as scene:
        turn = await scene.run(prompt)
    assert reason in turn.finish


async def test_parallel_calls_ask_when_they_are_due(stage: Stage) -> None:
    async with stage.session() as scene:
        await scene.run(script({"tools": [sh("true", after=0.05), sh("true")]}))
    assert [moment.what.partition(":")[2] for moment in scene.record.all("asked")] == ["0.1", "0.0"]


async def test_a_failed_command_is_told_as_an_error(stage: Stage) -> None:
    async with stage.session() as scene:
        await scene.run(script(sh("false")))
    assert [moment.detail for moment in scene.record.all("ended")] == ["error"]


async def test_a_session_that_hangs_is_deaf_to_stop_and_ends_when_it_is_left(stage: Stage) -> None:
    async with stage.session() as scene:
        with anyio.CancelScope() as left:

            async def leave() -> None:
                await scene.record.until("activity")
                await scene.session.stop(StopReason.CANCEL)
                await anyio.wait_all_tasks_blocked()
                assert not scene.record.over
                left.cancel()

            await scene.run(script({"activity": "waits"}, {"hang": True}), meanwhile=leave)
    assert left.cancelled_caught


async def test_stop_comes_before_the_next_call(stage: Stage) -> None:
    async with stage.session() as scene:

        async def stop() -> None:
            await scene.record.until("bound")
            await scene.session.stop(StopReason.RESTART)

        turn = await scene.run(script({"sleep": 60}, sh("echo x >> {effect}")), meanwhile=stop)
    assert turn.finish == "without TurnFinished"
    assert not scene.record.all("asked")


# --- what is not done twice -------------------------------------------------------------


async def test_a_call_that_ended_is_not_made_again(stage: Stage) -> None:
    prompt = script(sh("echo x >> {effect}"), {"fail": "busy", "times": 1})
    async with stage.session() as scene:
        await scene.run(prompt, id="t")
        # Not even when the note knows less than the transcript.
        turn = await again(scene, prompt, call(scene.traces.fill("echo x >> {effect}")))
    assert (turn.finish, scene.traces.effects()) == ("answered", 1)


@pytest.mark.parametrize(("told", "effects"), [("unknown", 1), ("finished", 0), ("nothing", 0)])
async def test_a_cut_call_is_made_again_only_when_the_note_says_that_it_is_unknown(
    stage: Stage, told: str, effects: int
) -> None:
    prompt = script(sh("echo x >> {effect}"))
    async with stage.session() as scene:
        Transcript.find(stage.state_dir / "scripted", await _handle(scene)).add("t", "started", "t:0")
        arguments = scene.traces.fill("echo x >> {effect}")
        calls = {"unknown": [call(arguments)], "finished": [call(arguments, ended=True)], "nothing": []}
        turn = await again(scene, prompt, *calls[told])
    assert (turn.finish, scene.traces.effects()) == ("answered", effects)


async def test_a_new_session_believes_the_note(stage: Stage) -> None:
    prompt = script(sh("echo one >> {effect}"), sh("echo two >> {effect}"))
    async with stage.session() as scene:
        note = recovery_note(
            [call(scene.traces.fill("echo one >> {effect}"), ended=True)],
            "",
            resumption=Resumption.REPLAY,
            lost=True,
        )
        await scene.run(prompt, id="t", attempt=2, resumption=Resumption.REPLAY, note=note)
    assert scene.traces.effect.read_text() == "two\n"


async def test_a_long_command_is_known_by_its_beginning(stage: Stage) -> None:
    command = "echo x >> {effect} # " + "long " * 60
    async with stage.session() as scene:
        arguments = scene.traces.fill(command)[:200]
        turn = await again(scene, script(sh(command)), call(arguments, ended=True))
    assert (turn.finish, scene.traces.effects()) == ("answered", 0)


async def test_a_line_cut_short_by_sigkill_spoils_no_other(tmp_path: Path) -> None:
    transcript = Transcript.begin(tmp_path)
    transcript.add("t", "given", text="one")
    with (tmp_path / f"{transcript.handle}.jsonl").open("a") as file:
        file.write('\n{"turn": "t", "fact": "sta')
    transcript.add("t", "given", text="two")
    assert transcript.texts("t", "given") == ["one", "two"]


@pytest.mark.parametrize("handle", ["0" * 32, "../../etc/passwd", ""])
async def test_a_handle_names_a_transcript_of_ours_or_is_lost(stage: Stage, handle: str) -> None:
    with pytest.raises(SessionLost):
        async with stage.session(resume=SessionHandle(handle)):
            pass


# --- SIGKILL ----------------------------------------------------------------------------


async def test_killed_at_any_instant_the_evidence_is_honest_and_no_effect_comes_twice(stage: Stage) -> None:
    prompt = script(*(sh(f"echo {n} >> {{effect}}") for n in range(5)), {"answer": "done"})
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    instants = random.Random(seed)
    for _ in range(15):
        traces = stage.traces()
        async with stage.elsewhere(prompt, traces=traces) as other:
            await other.record.until("bound")
            with anyio.move_on_after(instants.uniform(0, 0.02)):
                await other.record.until("finished")
            await other.kill()
        await stage.recovering()
        assert other.record.handle is not None
        interrupted = InterruptedTurn(
            id=other.attempt.id,
            attempts=1,
            session_id="s",
            handle=other.record.handle,
            workdir=stage.workdir,
            state_dir=stage.state_dir,
            text=other.attempt.text,
        )
        evidence = await ScriptedEnds().recover(interrupted)
        lines = traces.effect.read_text().splitlines() if traces.effect.exists() else []
        assert evidence.found is not Found.SESSION_LOST
        assert (evidence == Evidence.answered("done")) is (evidence.found is Found.ANSWERED)
        assert evidence.found is not Found.ANSWERED or len(lines) == 5
        assert evidence.found is not Found.UNSEEN or not lines
        async with stage.session(traces=traces, resume=other.record.handle) as scene:
            turn = await scene.run(prompt, id=other.attempt.id, attempt=2)
        assert turn.finish == "answered"
        after = traces.effect.read_text().splitlines()
        assert (
            len(after) == len(set(after)) >= 4
        )  # at most the one cut call, of which no note told, is missing


async def _handle(scene: Scene) -> SessionHandle:
    """Let a session say its handle."""
    await scene.run("hello")
    assert scene.record.handle is not None
    return scene.record.handle
