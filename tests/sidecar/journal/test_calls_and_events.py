from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workspace_adapter.events import SessionHandle
from workspace_adapter.sidecar.journal import Child, Journal, NewEvent
from workspace_adapter.turns import State

from .made import NOW, accept, call, message, running, started


async def test_a_permit_is_recorded_with_what_was_asked(journal: Journal) -> None:
    turn = await running(journal)
    arguments = '{"command":"echo\n' + "x" * 300
    assert await journal.permit(turn.id, 1, call(arguments=arguments), now=NOW + 1)
    (recorded,) = journal.calls(turn.id)
    assert (recorded.turn_id, recorded.attempt, recorded.id, recorded.name) == (turn.id, 1, "c1", "Bash")
    assert recorded.digest == hashlib.sha256(arguments.encode()).hexdigest()
    assert recorded.excerpt == arguments[:200].replace("\n", "\\n")
    assert (recorded.asked_at, recorded.permitted_at, recorded.ended_at) == (NOW + 1, NOW + 1, None)
    assert recorded.unknown
    after = journal.turn(turn.id)
    assert after is not None
    assert after.last_event_at == NOW + 1


async def test_a_call_ends_once(journal: Journal) -> None:
    turn = await running(journal)
    await journal.permit(turn.id, 1, call(), now=NOW + 1)
    await journal.end_call(turn.id, 1, "c1", ok=False, now=NOW + 2)
    await journal.end_call(turn.id, 1, "c1", ok=True, now=NOW + 3)
    await journal.end_call(turn.id, 1, "never asked", ok=True, now=NOW + 3)
    (recorded,) = journal.calls(turn.id)
    assert (recorded.ended_at, recorded.outcome) == (NOW + 2, "error")
    assert not recorded.unknown


async def test_a_call_held_at_the_gate_was_never_started_until_it_gets_its_permit(journal: Journal) -> None:
    turn = await running(journal)
    await journal.ask(turn.id, 1, call(), now=NOW + 1)
    await journal.ask(turn.id, 1, call(), now=NOW + 2)
    (held,) = journal.calls(turn.id)
    assert (held.asked_at, held.permitted_at, held.started) == (NOW + 1, None, False)
    await journal.end_call(turn.id, 1, "c1", ok=True, now=NOW + 3)
    assert journal.calls(turn.id) == [held]
    await journal.permit(turn.id, 1, call(), now=NOW + 4)
    (granted,) = journal.calls(turn.id)
    assert (granted.asked_at, granted.permitted_at, granted.started) == (NOW + 1, NOW + 4, True)


async def test_a_permit_taken_back_started_nothing_and_may_be_given_again(journal: Journal) -> None:
    turn = await running(journal)
    await journal.ask(turn.id, 1, call(), now=NOW)
    await journal.withdraw(turn.id, 1, "c1", now=NOW)
    assert journal.calls(turn.id)[0].withdrawn_at is None
    await journal.permit(turn.id, 1, call(), now=NOW + 1)
    await journal.withdraw(turn.id, 1, "c1", now=NOW + 2)
    await journal.withdraw(turn.id, 1, "c1", now=NOW + 3)
    (withdrawn,) = journal.calls(turn.id)
    assert (withdrawn.withdrawn_at, withdrawn.started) == (NOW + 2, False)
    await journal.end_call(turn.id, 1, "c1", ok=True, now=NOW + 4)
    assert journal.calls(turn.id) == [withdrawn]
    await journal.permit(turn.id, 1, call(), now=NOW + 5)
    assert journal.calls(turn.id)[0].unknown


async def test_an_attempt_that_is_not_running_gets_no_permit_and_writes_nothing(journal: Journal) -> None:
    waiting = (await accept(journal, message("m1"))).turn
    turn = await running(journal, "m2")
    await journal.permit(turn.id, 1, call("open"), now=NOW)
    interrupted = await journal.finish(turn.id, attempt=1, to=State.INTERRUPTED, cause="", now=NOW)
    assert interrupted is not None
    again = await started(journal, interrupted)
    before = journal.calls(turn.id)
    for turn_id, attempt in ((waiting.id, 0), (turn.id, 1), (turn.id, 3), ("nowhere", 1)):
        assert not await journal.permit(turn_id, attempt, call("late"), now=NOW + 9)
        await journal.ask(turn_id, attempt, call("late"), now=NOW + 9)
        await journal.end_call(turn_id, attempt, "open", ok=True, now=NOW + 9)
        await journal.withdraw(turn_id, attempt, "open", now=NOW + 9)
        assert not await journal.append(turn_id, attempt, [NewEvent(kind="text", body={})], now=NOW + 9)
        assert journal.calls(turn_id) == (before if turn_id == turn.id else [])
        assert journal.events(turn_id) == []
    assert journal.turn(turn.id) == again


@pytest.mark.parametrize(
    ("to", "known"),
    [
        (State.ANSWERED, True),
        (State.FAILED, True),
        (State.PARKED, True),
        (State.INTERRUPTED, False),
        (State.CANCELED, False),
    ],
)
async def test_an_open_call_counts_as_ended_only_where_the_runtime_ended_its_turn(
    journal: Journal, to: State, known: bool
) -> None:
    turn = await running(journal)
    await journal.permit(turn.id, 1, call("open"), now=NOW)
    await journal.ask(turn.id, 1, call("held"), now=NOW)
    await journal.permit(turn.id, 1, call("withdrawn"), now=NOW)
    await journal.withdraw(turn.id, 1, "withdrawn", now=NOW)
    await journal.finish(turn.id, attempt=1, to=to, cause="", now=NOW + 1)
    ended = {recorded.id: (recorded.ended_at, recorded.outcome) for recorded in journal.calls(turn.id)}
    assert ended == {
        "open": (NOW + 1, "ok") if known else (None, None),
        "held": (None, None),
        "withdrawn": (None, None),
    }


async def test_calls_come_in_the_order_they_asked_over_all_attempts(journal: Journal) -> None:
    turn = await running(journal)
    await journal.ask(turn.id, 1, call("z"), now=NOW)
    await journal.permit(turn.id, 1, call("a"), now=NOW)
    await journal.permit(turn.id, 1, call("z"), now=NOW)
    parked = await journal.finish(turn.id, attempt=1, to=State.PARKED, cause="", now=NOW)
    assert parked is not None
    await started(journal, parked)
    await journal.permit(turn.id, 2, call("a"), now=NOW)
    assert [(c.attempt, c.id) for c in journal.calls(turn.id)] == [(1, "z"), (1, "a"), (2, "a")]


async def test_log_entries_are_numbered_without_gaps_over_all_attempts(journal: Journal) -> None:
    turn, other = await running(journal, "m1"), await running(journal, "m2")

    def text(words: str) -> list[NewEvent]:
        return [NewEvent(kind="text", body={"text": word}) for word in words.split()]

    assert await journal.append(turn.id, 1, text("a b"), now=NOW + 1)
    assert await journal.append(other.id, 1, text("x"), now=NOW + 1)
    assert await journal.append(turn.id, 1, [], now=NOW + 2)
    parked = await journal.finish(
        turn.id, attempt=1, to=State.PARKED, cause="", events=text("c"), now=NOW + 3
    )
    assert parked is not None
    await started(journal, parked, now=NOW + 4)
    assert await journal.append(turn.id, 2, text("d"), now=NOW + 5)
    logged = journal.events(turn.id)
    assert [(e.n, e.attempt, e.at - NOW, e.body["text"]) for e in logged] == [
        (1, 1, 1, "a"),
        (2, 1, 1, "b"),
        (3, 1, 3, "c"),
        (4, 2, 5, "d"),
    ]
    assert journal.events(turn.id, after=2) == logged[2:]
    assert journal.events(turn.id, after=1, limit=2) == logged[1:3]
    assert journal.events(turn.id, after=4) == []
    assert [e.n for e in journal.events(other.id)] == [1]


async def test_a_session_remembers_the_runtimes_name_for_it(journal: Journal) -> None:
    await accept(journal, message("m1"))
    assert journal.session("unknown") is None
    for handle in (SessionHandle("sdk-1"), SessionHandle("sdk-2"), None):
        await journal.bind("session", handle)
        session = journal.session("session")
        assert session is not None
        assert session.handle == handle


async def test_a_child_is_recorded_by_pid_and_start_until_it_is_gone(
    journal: Journal, tmp_path: Path
) -> None:
    # A name that a careless reader of /proc would stumble over.
    odd = tmp_path / "a) 1 (b"
    odd.symlink_to(sys.executable)
    with subprocess.Popen([str(odd), "-c", "input()"], stdin=subprocess.PIPE) as process:
        await journal.child_started(process.pid, "claude")
        await journal.child_started(process.pid, "claude")
        (child,) = journal.children()
        assert child == Child(pid=process.pid, start_ticks=child.start_ticks, boot_id="boot-1", what="claude")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        assert 0 <= uptime - child.start_ticks / os.sysconf("SC_CLK_TCK") < 60
        process.communicate(b"\n")
    await journal.child_started(process.pid, "gone already")
    await journal.children_gone([(process.pid, child.start_ticks + 1)])
    assert journal.children() == [child]
    await journal.children_gone([(process.pid, child.start_ticks)])
    assert journal.children() == []
