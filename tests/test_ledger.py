"""Who runs and who waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter.ledger import Ledger, Running


def started(ledger: Ledger) -> list[str]:
    """Start whatever may start."""
    turns = []
    while (running := ledger.start_next()) is not None:
        turns.append(running.turn_id)
    return turns


def test_what_is_busy_is_the_length_of_the_ledger() -> None:
    ledger = Ledger(capacity=2)
    ledger.wait("a", "one", seq=1)
    assert len(ledger) == 0
    assert started(ledger) == ["a"]
    assert len(ledger) == 1
    ledger.end("a")
    assert len(ledger) == 0


def test_turns_start_in_the_order_of_their_arrival() -> None:
    ledger = Ledger(capacity=3)
    for turn, seq in (("c", 3), ("a", 1), ("b", 2)):
        ledger.wait(turn, f"session {turn}", seq=seq)
    assert ledger.waiting == ("a", "b", "c")
    assert started(ledger) == ["a", "b", "c"]


def test_resumed_work_goes_ahead_of_every_new_message() -> None:
    ledger = Ledger(capacity=3)
    ledger.wait("new", "one", seq=1)
    ledger.wait("resumed late", "two", seq=9, resumed=True)
    ledger.wait("resumed", "three", seq=8, resumed=True)
    assert started(ledger) == ["resumed", "resumed late", "new"]


def test_one_session_works_on_one_turn_while_another_session_goes_ahead() -> None:
    ledger = Ledger(capacity=2)
    ledger.wait("a1", "a", seq=1)
    ledger.wait("a2", "a", seq=2)
    ledger.wait("b1", "b", seq=3)
    assert started(ledger) == ["a1", "b1"]
    ledger.end("a1")
    assert started(ledger) == ["a2"]


def test_no_more_sessions_work_at_once_than_there_is_capacity() -> None:
    ledger = Ledger(capacity=1)
    ledger.wait("a", "one", seq=1)
    ledger.wait("b", "two", seq=2)
    assert started(ledger) == ["a"]
    ledger.end("a")
    assert started(ledger) == ["b"]


def test_a_turn_is_in_line_once() -> None:
    ledger = Ledger(capacity=1)
    ledger.wait("a", "one", seq=1)
    ledger.wait("a", "one", seq=1)
    assert ledger.waiting == ("a",)
    assert started(ledger) == ["a"]
    ledger.wait("a", "one", seq=1, resumed=True)
    assert len(ledger.waiting) == 0
    assert "a" in ledger


def test_a_turn_withdrawn_does_not_start() -> None:
    ledger = Ledger(capacity=1)
    ledger.wait("a", "one", seq=1)
    assert ledger.withdraw("a")
    assert not ledger.withdraw("a")
    assert "a" not in ledger
    assert started(ledger) == []


def test_a_running_turn_cannot_be_withdrawn_only_ended() -> None:
    ledger = Ledger(capacity=1)
    ledger.wait("a", "one", seq=1)
    running = ledger.start_next()
    assert running is ledger.get("a")
    assert not ledger.withdraw("a")
    assert list(ledger) == [running]
    ledger.end("a")
    ledger.end("a")
    assert ledger.get("a") is None


def test_the_ledger_may_change_while_it_is_walked() -> None:
    ledger = Ledger(capacity=2)
    ledger.wait("a", "one", seq=1)
    ledger.wait("b", "two", seq=2)
    started(ledger)
    for running in ledger:
        ledger.end(running.turn_id)
    assert len(ledger) == 0


def test_a_turn_is_settled_when_a_call_is_held_and_none_is_open() -> None:
    running = Running("a", "one", attempt=1)
    assert not running.settled
    running.open.add("slow")
    running.held.add("next")
    assert not running.settled
    running.open.discard("slow")
    assert running.settled


def test_a_turn_that_no_runtime_has_seen_is_settled() -> None:
    assert Running("a", "one").settled


def test_a_turn_whose_own_tool_waits_for_the_drain_is_not_waited_for() -> None:
    assert Running("a", "one", attempt=1, open={"drain"}, waits_for_drain=True).settled


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12),
    st.lists(st.integers(0, 11)),
)
def test_whatever_ends_first_sessions_and_capacity_are_respected_and_all_run_once(
    capacity: int, messages: list[tuple[int, bool]], ends: list[int]
) -> None:
    ledger = Ledger(capacity)
    for seq, (session, resumed) in enumerate(messages):
        ledger.wait(str(seq), str(session), seq=seq, resumed=resumed)
    order = started(ledger)
    while len(ledger):
        assert len(ledger) <= capacity
        sessions = [running.session_id for running in ledger]
        assert len(sessions) == len(set(sessions))
        assert (
            not ledger.waiting
            or len(ledger) == capacity
            or all(str(messages[int(waiting)][0]) in sessions for waiting in ledger.waiting)
        )
        running = [running.turn_id for running in ledger]
        ledger.end(running[(ends.pop() if ends else 0) % len(running)])
        order += started(ledger)
    assert sorted(order, key=int) == [str(seq) for seq in range(len(messages))]
    for session in range(4):
        for resumed in (True, False):
            lane = [int(turn) for turn in order if messages[int(turn)] == (session, resumed)]
            assert lane == sorted(lane)
