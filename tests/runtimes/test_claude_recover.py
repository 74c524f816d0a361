"""What becomes of a turn whose CLI is killed; every transcript is the real CLI's own."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from workspace_adapter.adapter import StopReason
from workspace_adapter.errors import RuntimeLost, SessionLost, TurnFailed
from workspace_adapter.events import Activity, SessionHandle, TurnFinished
from workspace_adapter.resume import Evidence, Resumption

from .claude_stand import Run, Stand, bash, follow, script, stand, turn, until

__all__ = ["stand"]

WRITES = {"text": "slowly " * 20, "chunks": 20, "chunk_delay": 0.05}
ONCE = "[ -e resumed ] || { echo begun >> effects; sleep 30; }; echo ended >> effects"
"""A command that lasts until it is killed, unless the file ``resumed`` is there."""

MOMENTS = {
    "the model writes": [WRITES],
    "a tool runs": [bash(ONCE), {"text": "done"}],
    "the model writes after a tool": [bash("echo begun >> effects"), WRITES],
}


async def interrupted(stand: Stand, text: str, *, sig: signal.Signals, everything: bool = False) -> Run:
    """Run a turn until its model or its tool is in the middle of it, then kill; return what it yielded."""
    run = Run()
    requests = 1 + ("echo begun" in text and ONCE[:9] not in text)
    slow = ONCE[:9] in text

    async with stand.session() as session, anyio.create_task_group() as tasks:

        async def cut() -> None:
            await until(lambda: stand.effects == ["begun"] if slow else len(stand.model.requests) == requests)
            await anyio.sleep(0.2)  # into the stream, which sends a piece every 50 ms
            if everything:
                stand.children.kill(sig)
            else:
                os.kill(stand.children.pids[-1], sig)

        tasks.start_soon(cut)
        with pytest.raises(RuntimeLost, match=r"ended with exit code (-9|143)"):
            await follow(session, turn(text), run)
    return run


async def resumed(stand: Stand, text: str, handle: SessionHandle | None, *, attempt: int = 2) -> TurnFinished:
    """Continue the turn in a new process."""
    (stand.workdir / "resumed").touch()
    note = f"[workspace notice: restarted]\n\nThe request was:\n{text}"
    async with stand.session(resume=handle) as session:
        run = await follow(session, turn(text, attempt=attempt, resumption=Resumption.CONTINUE, note=note))
    return run.finished


@pytest.mark.parametrize("everything", [False, True], ids=["CLI", "everything"])
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_killed_turn_was_seen_and_is_continued(
    stand: Stand, moment: str, sig: signal.Signals, everything: bool
) -> None:
    text = script(*MOMENTS[moment])
    run = await interrupted(stand, text, sig=sig, everything=everything)
    tool_cut = moment == "a tool runs"
    assert stand.gate.open == (stand.gate.permits if tool_cut else []), "what was cut off is unknown"
    left = stand.children.alive()
    assert bool(left) == (tool_cut and sig is signal.SIGKILL and not everything), left
    stand.children.kill()  # as the core does before a turn is continued

    assert await stand.recover(handle=run.handle) == Evidence.seen()
    answer = (await resumed(stand, text, run.handle)).answer
    assert answer == MOMENTS[moment][-1]["text"]
    assert stand.effects == {"the model writes": [], "a tool runs": ["begun", "ended"]}.get(moment, ["begun"])
    if tool_cut:
        told = stand.model.requests[1]["messages"]
        assert "outcome is unknown" in str(told) or "Exit code 137" in str(told)
    assert await stand.recover(attempts=2, handle=run.handle) == Evidence.answered(answer or "")


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
async def test_a_turn_killed_before_the_cli_read_it_is_unseen(stand: Stand, sig: signal.Signals) -> None:
    run, text = Run(), script(bash("echo one >> effects"), {"text": "done"})
    async with stand.session() as session:
        os.kill(stand.children.pids[-1], signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:

            async def cut() -> None:
                os.kill(stand.children.pids[-1], sig)
                os.kill(stand.children.pids[-1], signal.SIGCONT)

            tasks.start_soon(cut)
            with pytest.raises(RuntimeLost):
                await follow(session, turn(text), run)
    assert run.events == [], "nothing was bound"
    assert await stand.recover() == Evidence.unseen()
    async with stand.session() as session:
        replay = await follow(session, turn(text, attempt=2, resumption=Resumption.REPLAY))
    assert replay.finished.answer == "done"
    assert stand.effects == ["one"]


async def test_a_second_turn_killed_before_the_cli_read_it_is_unseen(stand: Stand) -> None:
    async with stand.session() as session:
        first = await follow(session, turn(script({"text": "one"})))
        os.kill(stand.children.pids[-1], signal.SIGKILL)
        with pytest.raises(RuntimeLost):
            await follow(session, turn(script({"text": "two"}), id="turn-2"))
    assert await stand.recover(id="turn-2", handle=first.handle) == Evidence.unseen()
    assert await stand.recover(handle=first.handle) == Evidence.answered("one")


async def test_an_answer_that_was_written_but_never_heard_is_found(stand: Stand) -> None:
    async with stand.session() as session:
        run = await follow(session, turn(script(bash("echo one >> effects"), {"text": "the answer"})))
        os.kill(stand.children.pids[-1], signal.SIGKILL)
    assert await stand.recover(attempts=3, handle=run.handle) == Evidence.answered("the answer")
    assert await stand.recover(id="another", handle=run.handle) == Evidence.unseen()


async def test_an_error_of_the_api_is_no_answer(stand: Stand) -> None:
    text = script({"error": 500, "times": 2}, {"text": "done"})
    async with stand.session() as session:
        run = Run()
        with pytest.raises(TurnFailed):
            await follow(session, turn(text), run)
    assert await stand.recover(handle=run.handle) == Evidence.seen()
    assert (await resumed(stand, text, run.handle)).answer == "done"


async def test_what_the_cli_writes_on_resume_is_no_answer(stand: Stand) -> None:
    text = script({"hang": True, "times": 2}, {"text": "done"})
    run = await interrupted(stand, text, sig=signal.SIGKILL)
    async with stand.session(resume=run.handle) as session, anyio.create_task_group() as tasks:
        # The second attempt is cut as well, behind the CLI's own "No response requested."

        async def cut() -> None:
            await until(lambda: len(stand.model.requests) == 2)
            await session.stop(StopReason.RESTART)

        tasks.start_soon(cut)
        with pytest.raises(RuntimeLost):
            await follow(
                session, turn(text, attempt=2, resumption=Resumption.CONTINUE, note=f"[note]\n\n{text}")
            )
    assert "No response requested." in stand.transcript().read_text()
    assert await stand.recover(attempts=2, handle=run.handle) == Evidence.seen()
    assert (await resumed(stand, text, run.handle, attempt=3)).answer == "done"


async def test_a_torn_last_line_and_garbage_do_not_hide_the_rest(stand: Stand) -> None:
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "whole"})))
    path = stand.transcript()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\n", b"\n{garbage\n[1]\n\xff\n", 3) + whole.splitlines()[-1][:20])
    assert await stand.recover(handle=run.handle) == Evidence.answered("whole")
    answer = whole.index(b'"end_turn"')
    path.write_bytes(whole[:answer])
    assert await stand.recover(handle=run.handle) == Evidence.seen()
    assert (await resumed(stand, script({"text": "again"}), run.handle)).answer == "again"


async def test_a_session_whose_transcript_is_gone_is_lost(stand: Stand) -> None:
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "done"})))
    stand.transcript().unlink()
    assert await stand.recover(handle=run.handle) == Evidence.session_lost()
    for handle in (run.handle, SessionHandle("not-one-of-claude's")):
        with pytest.raises(SessionLost):
            async with stand.session(resume=handle):
                pass
    async with stand.session() as session:
        anew = await follow(session, turn(script({"text": "anew"}), attempt=2))
    assert anew.finished.answer == "anew"


async def test_a_transcript_without_a_conversation_is_set_aside(stand: Stand) -> None:
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "done"})))
    path = stand.transcript()
    begun = path.read_bytes().split(b'"type":"user"')[0]
    path.write_bytes(begun)
    assert await stand.recover() == Evidence.unseen()
    with pytest.raises(SessionLost):
        async with stand.session(resume=run.handle):
            pass
    async with stand.session() as session:
        anew = await follow(session, turn(script({"text": "anew"}), attempt=2))
    assert anew.finished.answer == "anew"
    assert path.with_suffix(".unreadable").read_bytes() == begun


async def test_a_conversation_that_was_never_bound_is_found_all_the_same(stand: Stand) -> None:
    async with stand.session() as session:
        await follow(session, turn(script({"text": "one"})))
    async with stand.session(resume=None) as session:
        await follow(session, turn(script({"text": "two"}), id="turn-2"))
    assert '"one"' in stand.told()


async def test_a_turn_left_in_the_middle_ends_its_session(stand: Stand) -> None:
    async with stand.session() as session:
        events = session.run_turn(turn(script(bash("echo begun >> effects; sleep 30"), {"text": "x"})))
        while not isinstance(await anext(events), Activity):
            pass
        await until(lambda: stand.effects)
        await events.aclose()
        with pytest.raises(RuntimeLost, match="left in the middle"):
            await follow(session, turn("never sent", id="turn-2"))
        begun = anyio.current_time()
    assert anyio.current_time() - begun < 3
    assert not stand.children.alive()
