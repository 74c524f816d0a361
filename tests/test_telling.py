"""How ends and work are put in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter.telling import (
    LONGEST,
    Doing,
    Tries,
    Wait,
    Work,
    activity_due,
    activity_line,
    concerns_all,
    end_text,
    is_refusal,
    notification,
    probe_answer,
    retry_in,
)
from workspace_adapter.turns import Outcome, OutcomeKind, State

from .test_resume import turn


def doing(name: str, line: str, *, since: float | None = 100.0) -> Doing:
    return Doing(turn_id=name, session_id="s", since=since, quiet=3.0, line=line)


def test_an_answer_is_told_as_it_is_and_an_end_without_one_as_an_error() -> None:
    assert end_text(turn(State.ANSWERED, answer="42")) == "42"
    assert end_text(turn(State.ANSWERED, answer="")) == "(the agent finished without a word)"
    failed = Outcome(kind=OutcomeKind.FAILED, reason="no such model")
    assert end_text(turn(State.FAILED, outcome=failed)) == "Agent error: no such model"
    assert "workspace-adapter turns release t" in end_text(turn(State.SUSPENDED, cause="3 attempts"))


def test_an_answer_too_long_to_show_is_cut_and_says_where_the_rest_is() -> None:
    assert notification(turn(State.ANSWERED, answer="x" * LONGEST)) == "x" * LONGEST
    cut = notification(turn(State.ANSWERED, answer="x" * LONGEST + "yz"))
    assert cut == "x" * LONGEST + "\n[… 2 more characters: workspace-adapter turns answer t]"


@pytest.mark.parametrize(
    ("status", "final", "all_"),
    [
        (None, False, True),
        (400, False, False),
        (401, False, True),
        (403, True, False),
        (404, False, False),
        (410, True, False),
        (413, True, False),
        (429, False, True),
        (500, False, False),
        (503, False, True),
    ],
)
def test_only_what_no_try_can_change_is_given_up(status: int | None, final: bool, all_: bool) -> None:
    assert is_refusal(status) is final
    assert concerns_all(status) is all_


@given(failures=st.integers(1, 10_000), asked=st.none() | st.floats(0, 3600), chance=st.floats(0, 1))
def test_tries_get_rarer_and_are_never_sooner_than_the_platform_asks(
    failures: int, asked: float | None, chance: float
) -> None:
    wait = retry_in(failures, asked=asked, chance=chance)
    assert 3.75 <= wait <= max(375.0, asked or 0.0)
    assert wait >= (asked or 0.0)
    assert retry_in(failures + 1, asked=asked, chance=chance) >= wait


def failed(tries: Tries, turn_id: str, status: int | None) -> Wait:
    return tries.failed(turn_id, status=status, asked=None, chance=0.5)


def test_an_end_that_fails_alone_waits_behind_the_others_and_keeps_none() -> None:
    tries = Tries()
    assert failed(tries, "a", 500) == (5, None, True)
    assert tries.in_order(["a", "b", "c"]) == ["b", "c", "a"]
    assert failed(tries, "a", 500) == (10, None, False)
    tries.told()
    assert failed(tries, "a", 500) == (20, None, False)


def test_a_platform_that_fails_for_one_after_the_other_is_asked_ever_more_rarely() -> None:
    tries = Tries()
    assert [failed(tries, name, 500).all for name in "abcd"] == [None, 5, 10, 20]
    assert tries.fail_for_all
    assert not failed(tries, "e", 500).is_news
    tries.told()
    assert not tries.fail_for_all


def test_all_wait_for_a_platform_that_is_away_and_in_their_order() -> None:
    tries = Tries()
    assert [failed(tries, "a", None) for _ in range(3)] == [
        (None, 5, True),
        (None, 10, False),
        (None, 20, False),
    ]
    assert tries.in_order(["a", "b"]) == ["a", "b"]


def test_what_is_dropped_again_and_again_is_held_for_the_reason_in_the_end() -> None:
    tries = Tries()
    while failed(tries, "a", None).own is None:
        assert tries.in_order(["a", "b"]) == ["a", "b"]
    assert tries.in_order(["a", "b"]) == ["b", "a"]
    tries.told()
    assert failed(tries, "a", None) == (10, None, False)


def test_what_was_heard_meanwhile_is_forgotten() -> None:
    tries = Tries()
    for name in "ab":
        failed(tries, name, 500)
    assert tries.in_order(["b", "c"]) == ["c", "b"]
    assert not tries.fail_for_all
    assert tries.in_order(["a", "c"]) == ["a", "c"]


def test_a_line_says_what_each_turn_does_and_how_long() -> None:
    work = Work(doing=[doing("a", "running\nBash"), doing("b", "starting", since=None)])
    assert activity_line(work, now=112.4) == "running Bash (for 12 s); starting (starting)"


def test_a_line_stays_a_line_however_much_is_done() -> None:
    line = activity_line(Work(doing=[doing(str(n), "x" * 5000) for n in range(50)]), now=100)
    assert len(line) < 2000
    assert line.endswith("and 40 more")


def test_a_probe_is_told_what_runs_since_when_and_what_waits() -> None:
    assert probe_answer(Work(), now=0) == "Nothing runs; 0 more wait."
    assert probe_answer(Work(doing=[doing("a", "running Bash")], waiting=1), now=160.0) == (
        "1 turn runs; 1 more waits.\n- running Bash: turn a, for 60 s, last sign of life 3 s ago"
    )


def test_while_anything_runs_the_last_word_is_never_old_and_short_work_is_not_worth_one() -> None:
    assert activity_due(100.0, None, after=5, every=240) == 105
    assert activity_due(100.0, 50.0, after=5, every=240) == 290
    assert activity_due(100.0, 340.0, after=5, every=240) == 580
    assert activity_due(1000.0, 50.0, after=5, every=240) == 1005
