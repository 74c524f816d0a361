"""What `try` concludes from what it saw."""

from __future__ import annotations

from typing import Any

from tests.test_resume import turn
from workspace_adapter.testing.scenes import Played, Scene, kill
from workspace_adapter.testing.trial import conclusion, verdict
from workspace_adapter.turns import Call, State


def call(name: str, attempt: int, *, permitted: bool = True, ended: bool = True) -> Call:
    return Call(
        turn_id="t",
        attempt=attempt,
        id=f"{name}{attempt}",
        name=name,
        digest=name,
        excerpt="now",
        asked_at=1.0,
        permitted_at=1.0 if permitted else None,
        ended_at=2.0 if ended and permitted else None,
        withdrawn_at=None,
        outcome="ok" if ended and permitted else None,
    )


def played(state: State = State.ANSWERED, **columns: Any) -> Played:
    scene = Scene(title="Scene", prompt="x", interrupt=kill)
    values: dict[str, Any] = {"met": "it works", "answer": "done", "turn": turn(state, attempt=2)}
    return Played(scene=scene, **(values | columns))


def test_three_interrupted_and_answered_turns_are_what_is_wanted() -> None:
    assert conclusion([played()] * 3) == (0, "3 turns were interrupted, 3 callers answered, each once")


def test_a_turn_that_was_not_interrupted_proves_nothing() -> None:
    code, words = conclusion([played(), played(), played(met="")])
    assert code == 3
    assert "2 of 3" in words


def test_a_scene_in_trouble_is_no_answer_even_though_its_turn_was_answered() -> None:
    code, words = conclusion([played(), played(trouble="the same message got two answers")])
    assert code == 1
    assert "1 of 2 callers were answered; 1 not played" in words


def test_a_failure_that_the_agent_itself_tells_is_an_answer() -> None:
    told = played(
        State.FAILED, turn=turn(State.FAILED, attempt=2, cause="TurnFailed"), answer="it may have run"
    )
    assert conclusion([told] * 3)[0] == 0
    assert "the agent failed: it may have run" in verdict(told)


def test_a_failure_of_the_adapters_code_is_no_answer() -> None:
    broken = played(State.FAILED, turn=turn(State.FAILED, attempt=1, cause="ContractBroken"))
    assert conclusion([broken] * 3)[0] == 1
    assert "not answered: failed (ContractBroken)" in verdict(broken)


def test_a_suspended_turn_is_no_answer() -> None:
    assert conclusion([played(State.SUSPENDED)] * 3)[0] == 1


def test_a_call_made_again_after_it_had_finished_is_named() -> None:
    again = played(calls=(call("mail", 1), call("look", 1, ended=False), call("look", 2), call("mail", 2)))
    assert [each.name for each in again.repeated] == ["mail"]
    assert "made again although it had finished: mail now" in verdict(again)


def test_what_the_cut_left_open_is_told_with_what_came_after() -> None:
    cut = (call("mail", 1, ended=False), call("look", 1, permitted=False))
    words = verdict(played(cut=cut, calls=(*cut, call("look", 2))))
    assert "mail now: unknown" in words
    assert "look now: never started; made in attempt 2: finished (ok)" in words
