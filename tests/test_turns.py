from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from workspace_adapter.errors import InvalidTransition
from workspace_adapter.turns import CANCELABLE, ENDED, RESUME_PENDING, TOLD, TRANSITIONS, Call, State, check


class Life(RuleBasedStateMachine):
    """One turn's life, told by what became of it; the model knows promises, not the table."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.ACCEPTED
        self.at_work = False
        """A runtime works on it, or did when its process died."""
        self.cut = False
        """An attempt was cut short and its work is to be continued."""
        self.given_up = False
        """It waits for a person."""
        self.told: str | None = None
        """What its asker was told: ``for good``, or ``may be asked again``."""

    def may_become(self, target: State) -> bool:
        if self.told == "for good":
            return False
        match target:
            case State.ACCEPTED:  # said of messages only, and once
                return False
            case State.RUNNING:  # one runner, and never behind a person's back
                return not self.at_work and not self.given_up
            case State.ANSWERED:  # by the runtime at work, or found in its transcript
                return self.at_work or self.cut
            case State.FAILED | State.PARKED:  # only who works can fail or stop at the gate
                return self.at_work
            case State.INTERRUPTED:  # a runtime died, or a person released it
                return self.at_work or self.given_up
            case State.CANCELED:  # until there is something to tell
                return self.told is None
            case State.EXPIRED:  # never while somebody works on it or has to decide
                return self.told is None and not self.at_work and not self.given_up
            case State.SUSPENDED:  # given up on is only what was tried
                return self.cut

    @rule(to=st.sampled_from(State), retryable=st.booleans())
    def change(self, to: State, retryable: bool) -> None:
        allowed_again = self.told == "may be asked again"
        if not self.may_become(to):
            with pytest.raises(InvalidTransition, match=f"turn t cannot go from {self.state} to {to}"):
                check("t", self.state, to, retryable=allowed_again)
            return
        check("t", self.state, to, retryable=allowed_again)
        self.state = to
        self.at_work = to is State.RUNNING
        self.cut = to in (State.PARKED, State.INTERRUPTED)
        self.given_up = to is State.SUSPENDED
        match to:
            case State.ANSWERED | State.CANCELED:
                self.told = "for good"
            case State.FAILED:
                self.told = "may be asked again" if retryable else "for good"
            case State.EXPIRED:
                self.told = "may be asked again"
            case _:
                self.told = None

    @invariant()
    def the_asker_is_told_exactly_when_there_is_something_to_tell(self) -> None:
        assert (self.state in ENDED) is (self.told is not None)
        assert (self.state in TOLD) is (self.told is not None or self.given_up)

    @invariant()
    def what_must_be_continued_is_what_was_begun_and_has_no_end(self) -> None:
        assert (self.state in RESUME_PENDING) is (self.at_work or self.cut)

    @invariant()
    def somebody_can_withdraw_it_until_it_has_ended(self) -> None:
        assert (self.state in CANCELABLE) is (self.told is None)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_a_failure_that_is_no_use_to_repeat_is_final() -> None:
    check("t", State.FAILED, State.RUNNING, retryable=True)
    with pytest.raises(InvalidTransition):
        check("t", State.FAILED, State.RUNNING)


def test_no_turn_is_ever_stuck_short_of_an_end() -> None:
    for state in set(State) - ENDED:
        reached, new = {state}, {state}
        while new:
            new = {target for source in new for target in TRANSITIONS[source]} - reached
            reached |= new
        assert {State.ANSWERED, State.CANCELED} <= reached


def recorded(**changes: float | str) -> Call:
    values: dict[str, object] = {
        "turn_id": "t",
        "attempt": 1,
        "id": "c",
        "name": "Bash",
        "digest": "d1",
        "excerpt": "ls",
        "asked_at": 1.0,
        "permitted_at": None,
        "ended_at": None,
        "withdrawn_at": None,
        "outcome": None,
    }
    return Call(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "started", "unknown"),
    [
        (recorded(), False, False),
        (recorded(permitted_at=2.0), True, True),
        (recorded(permitted_at=2.0, ended_at=3.0, outcome="error"), True, False),
        (recorded(permitted_at=2.0, withdrawn_at=3.0), False, False),
    ],
)
def test_a_call_may_have_run_from_its_permit_on_and_is_unknown_until_its_end(
    call: Call, started: bool, unknown: bool
) -> None:
    assert (call.started, call.unknown) == (started, unknown)


def test_two_calls_are_the_same_by_name_and_arguments() -> None:
    assert recorded(id="x", asked_at=9.0).same == recorded().same
    assert recorded(digest="d2").same != recorded().same
    assert recorded(name="Read").same != recorded().same
