from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from workspace_adapter.traces import MOST_CALLS, Attempt, Place, Span, is_sent, spans
from workspace_adapter.turns import Call, Outcome, OutcomeKind, State, Turn

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = f"00-{TRACE}-{PARENT}-01"
ID = "01938f2a-7b3c-7def-8123-456789abcdef"

TURN = Turn(
    id=ID,
    seq=1,
    task_id="task",
    turn_key="key",
    content_hash="hash",
    message_id="m",
    session_id="session",
    caller=None,
    source=None,
    state=State.ANSWERED,
    attempt=1,
    strikes=1,
    charges=1,
    settled=False,
    cut=None,
    cause="the cause",
    outcome=Outcome(kind=OutcomeKind.ANSWERED, reason="the reason", input_tokens=7),
    answer="the answer",
    accepted_at=100.0,
    started_at=101.0,
    last_event_at=120.0,
    ended_at=120.0,
    delivered_at=None,
    expires_at=None,
    notified_at=None,
)


def attempt(number: int, began_at: float, last_at: float, **more: Any) -> Attempt:
    values = {"resumption": "new" if number == 1 else "continue", "anew": False, **more}
    return Attempt(number=number, began_at=began_at, last_at=last_at, **values)


def call(call_id: str, number: int = 1, **more: Any) -> Call:
    values: dict[str, Any] = {
        "permitted_at": 105.0,
        "ended_at": 106.0,
        "withdrawn_at": None,
        "outcome": "ok",
        **more,
    }
    return Call(
        turn_id=ID,
        attempt=number,
        id=call_id,
        name="Bash",
        digest="d",
        excerpt="the arguments",
        asked_at=104.0,
        **values,
    )


def made(turn: Turn, attempts: list[Attempt], calls: list[Call] | None = None) -> list[Span]:
    return spans(turn, Place.of(ID, SENT), attempts, calls or [])


# --- where it stands ----------------------------------------------------------------------


def test_a_turn_stands_beneath_the_span_that_sent_it() -> None:
    place = Place.of(ID, SENT)
    assert (place.trace_id, place.parent_id, place.sampled) == (TRACE, PARENT, True)
    assert place.sent == SENT
    assert not Place.of(ID, SENT[:-1] + "0").sampled
    assert Place.of(ID, f"cc-{TRACE}-{PARENT}-01-what-will-be").trace_id == TRACE


@pytest.mark.parametrize(
    "sent",
    [
        None,
        7,
        "",
        SENT.upper(),
        SENT + "-more",
        SENT + "\n",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}",
    ],
)
def test_what_is_no_traceparent_begins_a_trace_with_the_turns_own_id(sent: object) -> None:
    place = Place.of(ID, sent)
    assert not is_sent(sent)
    assert (place.trace_id, place.parent_id, place.sent) == (ID.replace("-", ""), None, None)
    assert place.sampled


def test_an_id_of_another_kind_has_a_trace_too() -> None:
    assert len(Place.of("turn-1", None).trace_id) == 32
    assert Place.of("turn-1", None) == Place.of("turn-1", None) != Place.of("turn-2", None)


def test_what_an_attempt_begins_stands_beneath_its_span() -> None:
    (_, span) = made(TURN, [attempt(1, 101, 110)])
    assert Place.of(ID, SENT).within(ID, 1) == f"00-{TRACE}-{span.id}-01"
    assert is_sent(Place.of(ID, None).within(ID, 1))


# --- what its spans are -------------------------------------------------------------------


def test_the_turn_lasts_from_its_acceptance_to_its_end_and_its_attempt_with_it() -> None:
    whole, one = made(TURN, [attempt(1, 101, 110)])
    assert (whole.parent_id, whole.began_at, whole.ended_at, whole.failed) == (PARENT, 100, 120, False)
    assert (one.parent_id, one.began_at, one.ended_at, one.links) == (whole.id, 101, 120, ())
    assert one.attributes["workspace.attempt.end"] == "answered"
    assert whole.attributes["gen_ai.usage.input_tokens"] == 7


def test_what_was_said_stands_in_no_span() -> None:
    assert not any(
        said in str(span)
        for span in made(TURN, [attempt(1, 101, 110)], [call("c")])
        for said in ("the arguments", "the answer", "the reason", "the cause")
    )


def test_an_attempt_that_was_cut_ends_with_its_last_sign_of_life_and_the_next_is_linked_to_it() -> None:
    calls = [call("c1", permitted_at=105.0, ended_at=None, outcome=None), call("c2", 2)]
    _, cut, open_call, resumed, _ = made(TURN, [attempt(1, 101, 103), attempt(2, 110, 115)], calls)
    assert (cut.ended_at, cut.attributes["workspace.attempt.end"], cut.failed) == (105, "cut", True)
    assert (open_call.parent_id, open_call.ended_at) == (cut.id, 105)
    assert (open_call.attributes["workspace.call.outcome"], open_call.failed) == ("unknown", True)
    assert (resumed.links, resumed.failed) == ((cut.id,), False)


@pytest.mark.parametrize(("state", "failed"), [("parked", False), ("interrupted", True)])
def test_an_attempt_whose_end_was_written_ends_there(state: str, failed: bool) -> None:
    _, first, _ = made(TURN, [attempt(1, 101, 108, stopped=state), attempt(2, 110, 115)])
    assert (first.ended_at, first.attributes["workspace.attempt.end"], first.failed) == (108, state, failed)


def test_a_turn_that_the_plan_ended_after_a_cut_had_its_last_attempt_cut() -> None:
    expired = replace(TURN, state=State.EXPIRED, last_event_at=108.0, ended_at=500.0)
    whole, one = made(expired, [attempt(1, 101, 108)])
    assert (whole.ended_at, whole.failed) == (500, True)
    assert (one.ended_at, one.attributes["workspace.attempt.end"]) == (108, "cut")


def test_a_turn_asked_for_again_tells_only_what_followed() -> None:
    failed_once = [attempt(1, 101, 103), attempt(2, 110, 112)]
    again = [*failed_once, attempt(3, 200, 205, anew=True)]
    before = made(replace(TURN, state=State.FAILED), failed_once)
    whole, one = made(replace(TURN, ended_at=210.0, last_event_at=210.0), again, [call("c", 1)])
    assert (whole.began_at, whole.ended_at) == (200, 210)
    assert whole.links == one.links == (before[2].id,)
    assert not {span.id for span in before} & {whole.id, one.id}


def test_a_turn_that_never_started_has_one_span() -> None:
    (whole,) = made(replace(TURN, state=State.CANCELED, attempt=0, started_at=None), [])
    assert (whole.began_at, whole.ended_at) == (100, 120)


def test_a_turn_that_has_not_ended_has_none() -> None:
    assert made(replace(TURN, state=State.SUSPENDED, ended_at=None), [attempt(1, 101, 110)]) == []


def test_a_call_that_never_started_has_none_and_of_very_many_the_latest_have() -> None:
    never = call("never", permitted_at=None, ended_at=None)
    many = [call(f"c{n}") for n in range(MOST_CALLS + 1)]
    _, _, *told = made(TURN, [attempt(1, 101, 110)], [never, *many])
    assert len(told) == MOST_CALLS
    assert {span.name for span in told} == {"tool Bash"}
    assert len({span.id for span in told}) == MOST_CALLS


def test_every_life_comes_to_the_same_spans() -> None:
    attempts, calls = [attempt(1, 101, 103), attempt(2, 110, 115)], [call("c")]
    assert made(TURN, attempts, calls) == made(TURN, attempts, calls)
