from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from workspace_adapter.errors import InvalidTransition
from workspace_adapter.queueing import (
    DROPPABLE,
    ENDED,
    LIVE,
    REPLAYABLE,
    REVIVED,
    TRANSITIONS,
    WAITING,
    Lost,
    Reply,
    Rules,
    State,
    Verdict,
    backoff,
    capacity,
    check,
    judge,
    lapsed,
    order_key,
    outlived,
)

RULES = Rules()
RESULT = {"jsonrpc": "2.0", "id": 1, "result": {"kind": "message", "parts": []}}


def verdict(
    reply: Reply | Lost, *, strikes: int = 0, restarting: bool = False, jitter: float = 0.5
) -> Verdict:
    return judge(reply, rules=RULES, strikes=strikes, restarting=restarting, jitter=jitter)


def told(status: int, body: dict[str, object] | None = None, retry_after: float | None = None) -> Reply:
    return Reply(status=status, body=body, retry_after=retry_after)


# --- states -------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """One item's life; the model knows promises, not the table."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.QUEUED
        self.held = False
        self.answered = False
        self.over = False

    def may_become(self, target: State) -> bool:
        if self.answered:  # an answer that is stored is never replaced
            return False
        match target:
            case State.LEASED:  # out of the queue, or from a holder that died; never out of a wait
                return self.state is State.QUEUED or self.held
            case State.COMPLETED | State.FAILED | State.DELAYED:  # only who holds it can say so
                return self.held
            case State.QUEUED:  # put back, its time come, replayed
                return self.held or self.over or self.state is State.DELAYED
            case State.EXPIRED:  # never while a workspace may be at work on it
                return not self.held and not self.over
            case State.DROPPED:  # by a person, at any time before its end, or when it is a dead letter
                return not self.over or self.state is State.FAILED

    @rule(to=st.sampled_from(State))
    def change(self, to: State) -> None:
        if not self.may_become(to):
            with pytest.raises(InvalidTransition, match=f"queue item i cannot go from {self.state} to {to}"):
                check("i", self.state, to)
            return
        check("i", self.state, to)
        self.state = to
        self.held = to is State.LEASED
        self.answered = to is State.COMPLETED
        self.over = to in (State.COMPLETED, State.FAILED, State.EXPIRED, State.DROPPED)

    @invariant()
    def it_is_either_live_or_ended(self) -> None:
        assert (self.state in LIVE) is not self.over
        assert (self.state in ENDED) is self.over
        assert (self.state in WAITING) is (not self.over and not self.held)


TestLife = Life.TestCase


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


def test_a_dead_letter_can_be_replayed_and_an_answer_cannot() -> None:
    assert frozenset({State.FAILED, State.EXPIRED, State.DROPPED}) == REPLAYABLE
    assert State.COMPLETED not in DROPPABLE


def test_asking_again_does_not_undo_what_an_operator_dropped() -> None:
    assert State.DROPPED not in REVIVED
    assert REVIVED < REPLAYABLE


# --- verdicts -----------------------------------------------------------------------------


def test_an_answer_completes() -> None:
    assert verdict(told(200, RESULT)).state is State.COMPLETED


def test_a_json_rpc_error_is_an_answer() -> None:
    reply = told(200, {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}})
    assert verdict(reply).state is State.COMPLETED


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_message_that_is_refused_for_good_is_not_sent_again(status: int) -> None:
    assert verdict(told(status, {"error": "no"})).state is State.COMPLETED


@pytest.mark.parametrize(
    "reply",
    [
        told(429),
        told(503, {"error": "inbox full", "busy": True, "retry_after": 5}),
        told(502, {"error": "restarting", "restarting": True, "retry_after": 5}),
        told(503, {"error": "held too long", "busy": True, "taken": True}),
    ],
)
def test_a_busy_answer_puts_the_same_row_back_and_ends_the_batch(reply: Reply) -> None:
    said = verdict(reply, strikes=RULES.strikes - 1)
    assert said.state is State.QUEUED
    assert said.ends_batch
    assert not said.strike


def test_busy_waits_as_long_as_it_was_asked_to() -> None:
    assert verdict(told(429, retry_after=7)).wait == 7
    assert verdict(told(503, {"busy": True, "retry_after": 5})).wait == 5
    assert verdict(told(429, {"retry_after": 5}, retry_after=7)).wait == 7
    assert verdict(told(429)).wait == RULES.busy_wait
    assert verdict(told(429, retry_after=1e9)).wait == RULES.retry_after_cap


@pytest.mark.parametrize("word", ["yes", 1, None, False])
def test_only_true_means_busy(word: object) -> None:
    assert verdict(told(503, {"busy": word})).state is State.DELAYED


@pytest.mark.parametrize(
    "body",
    [
        {"result": {"kind": "message", "metadata": {"state": "failed", "retryable": True}}},
        {"result": {"kind": "task", "status": {"message": {"metadata": {"retryable": True}}}}},
        {"result": {"task": {"metadata": {"retryable": True}}}},
        {"result": {"message": {"metadata": {"retryable": True}}}},
        {"result": {"statusUpdate": {"metadata": {"retryable": True}}}},
        {"error": {"code": -32603, "message": "later", "data": {"retryable": True}}},
    ],
)
def test_an_answer_marked_retryable_backs_off(body: dict[str, object]) -> None:
    said = verdict(told(200, body))
    assert said.state is State.DELAYED
    assert said.strike
    assert said.wait > 0
    assert verdict(told(200, body), strikes=RULES.strikes - 1).state is State.FAILED


@pytest.mark.parametrize("lost", Lost)
def test_what_is_lost_while_restarting_burns_nothing(lost: Lost) -> None:
    said = verdict(lost, restarting=True, strikes=RULES.strikes - 1)
    assert said.state is State.QUEUED
    assert not said.strike


def test_a_message_that_its_workspace_never_saw_waits_for_it_uncounted() -> None:
    said = verdict(Lost.UNREACHED, strikes=RULES.strikes - 1)
    assert (said.state, said.strike, said.taken) == (State.QUEUED, False, False)
    assert said.ends_batch
    assert said.wait == RULES.busy_wait


@pytest.mark.parametrize("lost", [Lost.CUT, Lost.LATE])
def test_what_is_lost_without_a_restart_is_counted(lost: Lost) -> None:
    assert verdict(lost).strike
    assert verdict(lost).state is State.DELAYED
    assert verdict(lost, strikes=RULES.strikes - 1).state is State.FAILED


def test_a_message_that_may_have_arrived_is_marked_taken() -> None:
    assert verdict(Lost.CUT).taken
    assert verdict(Lost.LATE).taken
    assert not verdict(Lost.UNREACHED).taken
    assert verdict(told(503, {"busy": True, "taken": True})).taken
    assert not verdict(told(503, {"busy": True})).taken


@pytest.mark.parametrize(
    "reply",
    [
        told(200),
        told(200, {}),
        told(202, {"queued": True}),
        told(202),
        told(301),
        told(401, {"error": "token"}),
        told(404),
        told(500, {"error": "boom"}),
        told(503),
    ],
)
def test_what_is_no_answer_never_completes_an_item(reply: Reply) -> None:
    assert verdict(reply).state is State.DELAYED
    assert verdict(reply).strike
    assert verdict(reply, strikes=RULES.strikes - 1).state is State.FAILED


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateways_error_while_restarting_burns_nothing(status: int) -> None:
    assert verdict(told(status), restarting=True).state is State.QUEUED


_HINT = {"retryable": True}
_ODD: st.SearchStrategy[object] = st.sampled_from(
    (
        None,
        True,
        False,
        0,
        -1,
        7,
        10**400,
        0.5,
        math.nan,
        math.inf,
        "",
        "x",
        [],
        {},
        {"metadata": _HINT},
        {"data": _HINT},
        {"status": {"message": []}},
    )
)
_WORDS = ["result", "error", "busy", "restarting", "taken", "retry_after"]


@given(
    status=st.integers(100, 599),
    body=st.none() | st.dictionaries(st.sampled_from(_WORDS), _ODD),
    retry_after=st.none() | st.floats(allow_nan=False),
    strikes=st.integers(0, 50),
    restarting=st.booleans(),
    jitter=st.floats(0, 1),
)
def test_every_reply_gets_a_verdict_that_a_lease_may_come_to(
    status: int,
    body: dict[str, object] | None,
    retry_after: float | None,
    strikes: int,
    restarting: bool,
    jitter: float,
) -> None:
    said = judge(
        Reply(status=status, body=body, retry_after=retry_after),
        rules=RULES,
        strikes=strikes,
        restarting=restarting,
        jitter=jitter,
    )
    check("i", State.LEASED, said.state)
    assert 0 <= said.wait <= RULES.retry_after_cap
    assert said.strike or said.state in (State.QUEUED, State.COMPLETED)


def test_an_item_whose_holders_keep_dying_is_given_up() -> None:
    assert outlived(RULES.lapses - 1, RULES) is None
    given_up = outlived(RULES.lapses, RULES)
    assert given_up is not None
    assert given_up.state is State.FAILED
    assert "20 dispatchers" in given_up.because


# --- time, order, room --------------------------------------------------------------------


@given(strikes=st.integers(0, 5000), jitter=st.floats(0, 1))
def test_backoff_doubles_up_to_its_cap(strikes: int, jitter: float) -> None:
    wait = backoff(RULES, strikes, jitter)
    assert RULES.backoff / 2 <= wait <= RULES.backoff_cap
    assert wait <= backoff(RULES, strikes + 1, jitter)


def test_backoff_never_undercuts_what_the_workspace_asked_for() -> None:
    assert backoff(RULES, 1, 0.0, asked=30) == 30
    assert backoff(RULES, 1, 0.0, asked=1e9) == RULES.retry_after_cap
    assert backoff(RULES, 1, 1.0) == RULES.backoff


def test_higher_priority_comes_first_and_age_catches_up() -> None:
    assert order_key(100.0, 90, 1.0) < order_key(100.0, 50, 1.0)
    assert order_key(100.0, 50, 1.0) < order_key(141.0, 90, 1.0)
    assert order_key(100.0, 90, 0.0) == order_key(100.0, 10, 0.0)


def test_room_is_what_neither_beats_nor_leases_take() -> None:
    assert capacity(3, 1, 0) == 2
    assert capacity(3, 0, 2) == 1
    assert capacity(3, 2, 2) == 1
    assert capacity(1, 5, 0) == 0


def test_a_workspace_that_says_not_now_has_no_room_however_large_it_is() -> None:
    assert capacity(5000, 1000, 0) == 0
    assert capacity(5000, 1003, 0) == 0
    assert capacity(5000, 999, 0) == 4001


def test_a_lease_lapses_by_missed_renewals() -> None:
    assert not lapsed(100.0, 99.9)
    assert lapsed(100.0, 100.0)


def test_rules_that_cannot_work_are_named() -> None:
    assert RULES.problems() == ()
    assert "a lease of 10 s must be longer than two renewals" in Rules(lease=10).problems()[0]
    assert "longest backoff" in Rules(backoff_cap=0.5).problems()[0]
    assert Rules(strikes=0).problems() == ("strikes must be positive",)
    assert Rules(priority_weight=-1.0).problems() == ("priority_weight must not be negative",)
