from __future__ import annotations

import time
from uuid import RFC_4122, UUID

import pytest

from workspace_adapter.errors import BadMessage, ContentConflict, InboxFull, InvalidTransition
from workspace_adapter.sidecar.journal import Journal, NewEvent, new_id
from workspace_adapter.turns import ENDED, Outcome, OutcomeKind, State

from .made import ANSWERED, FINAL, NOW, RETRYABLE, accept, answered, call, message, running, started


async def test_an_accepted_message_is_a_turn_with_everything_it_came_with(journal: Journal) -> None:
    new = message("m1", caller="alice", source="self-check", expires_at=NOW + 60)
    accepted = await accept(journal, new)
    turn = journal.turn("turn-m1")
    assert turn is not None
    assert accepted.turn == turn
    assert not accepted.joined
    assert turn.state is State.ACCEPTED
    assert (turn.caller, turn.source, turn.expires_at) == ("alice", "self-check", NOW + 60)
    assert (turn.attempt, turn.strikes, turn.charges, turn.settled) == (0, 0, 0, False)
    assert journal.message("turn-m1") == new.message
    assert journal.turn_by_key("key-m1") == turn
    assert journal.turns_of_task("task-m1") == [turn]


async def test_a_re_sent_message_joins_its_turn_whatever_the_turn_has_become(journal: Journal) -> None:
    await answered(journal, "m1", answer="42")
    again = await accept(journal, message("m1", turn_id="another", task_id="another"))
    assert again.joined
    assert again.turn.id == "turn-m1"
    assert again.turn.answer == "42"
    assert journal.counts()[State.ACCEPTED] == 0


async def test_the_same_identity_with_other_content_is_refused(journal: Journal) -> None:
    await accept(journal, message("m1"))
    with pytest.raises(ContentConflict):
        await accept(journal, message("m1", content_hash="other"))
    assert len(journal.turns()) == 1


async def test_a_full_inbox_refuses_new_messages_and_names_its_limit(journal: Journal) -> None:
    for name in ("m1", "m2"):
        await accept(journal, message(name), inbox_limit=2)
    with pytest.raises(InboxFull, match=r"2 messages wait, WORKSPACE_INBOX_LIMIT allows 2"):
        await accept(journal, message("m3"), inbox_limit=2)
    assert (await accept(journal, message("m2"), inbox_limit=2)).joined
    turn = journal.turn("turn-m1")
    assert turn is not None
    await started(journal, turn)
    assert not (await accept(journal, message("m3"), inbox_limit=2)).joined


async def test_a_full_journal_refuses_new_messages_and_names_its_limit(journal: Journal) -> None:
    size = journal.size_bytes()
    with pytest.raises(InboxFull, match=rf"holds {size} bytes, WORKSPACE_JOURNAL_LIMIT_BYTES allows {size}"):
        await accept(journal, message("m1"), limit_bytes=size)
    assert journal.turns() == []
    assert journal.session("session") is None


async def test_a_session_belongs_to_the_caller_that_opened_it(journal: Journal) -> None:
    await accept(journal, message("m1", caller="alice"))
    for stranger in ("bob", None):
        with pytest.raises(BadMessage, match="this contextId belongs to another caller"):
            await accept(journal, message("m2", caller=stranger))
    await accept(journal, message("m3", caller="alice", accepted_at=NOW + 5))
    session = journal.session("session")
    assert session is not None
    assert (session.caller, session.created_at, session.last_turn_at) == ("alice", NOW, NOW + 5)


async def test_a_start_makes_one_more_attempt_and_charges_it(journal: Journal) -> None:
    await accept(journal, message("m1"))
    turn = await journal.start(
        "turn-m1", expect=State.ACCEPTED, attempt=0, strikes=0, cut="Bash abc", now=NOW + 1
    )
    assert turn == journal.turn("turn-m1")
    assert (turn.state, turn.attempt, turn.strikes, turn.charges) == (State.RUNNING, 1, 1, 1)
    assert (turn.started_at, turn.last_event_at, turn.cut) == (NOW + 1, NOW + 1, "Bash abc")


async def test_a_settled_turns_next_start_is_free_and_only_that_one(journal: Journal) -> None:
    turn = await running(journal)
    await journal.settle([turn.id, "no such turn"])
    parked = await journal.finish(turn.id, attempt=1, to=State.PARKED, cause="drain", now=NOW)
    assert parked is not None
    assert parked.settled
    free = await started(journal, parked)
    assert (free.attempt, free.strikes, free.charges, free.settled) == (2, 1, 1, False)
    parked = await journal.finish(turn.id, attempt=2, to=State.PARKED, cause="drain", now=NOW)
    assert parked is not None
    charged = await started(journal, parked)
    assert (charged.attempt, charged.strikes, charged.charges) == (3, 2, 2)


async def test_settling_touches_only_turns_that_run_or_are_parked(journal: Journal) -> None:
    accepted = (await accept(journal, message("m1"))).turn
    ended = await answered(journal, "m2")
    await journal.settle([accepted.id, ended.id])
    assert [turn.settled for turn in journal.turns()] == [False, False]


async def test_when_the_gate_reopens_running_turns_are_charged_again_and_parked_ones_are_not(
    journal: Journal,
) -> None:
    held, parked = await running(journal, "m1"), await running(journal, "m2")
    await journal.finish(parked.id, attempt=1, to=State.PARKED, cause="drain", now=NOW)
    await journal.settle([held.id, parked.id])
    await journal.unsettle()
    assert {turn.id: turn.settled for turn in journal.turns()} == {held.id: False, parked.id: True}


async def test_a_start_whose_expectation_does_not_hold_changes_nothing(journal: Journal) -> None:
    turn = await running(journal)
    for expect, attempt in ((State.ACCEPTED, 0), (State.RUNNING, 0), (State.PARKED, 1), (State.RUNNING, 1)):
        with pytest.raises(InvalidTransition, match="turn-m1"):
            await journal.start(turn.id, expect=expect, attempt=attempt, strikes=0, cut=None, now=NOW + 9)
    with pytest.raises(InvalidTransition, match="no turn nowhere"):
        await journal.start("nowhere", expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=NOW)
    assert journal.turn(turn.id) == turn


async def test_a_failure_may_be_tried_again_only_where_it_says_so(journal: Journal) -> None:
    again, final = await running(journal, "m1"), await running(journal, "m2")
    failed = await journal.finish(again.id, attempt=1, to=State.FAILED, cause="x", outcome=RETRYABLE, now=NOW)
    assert failed is not None
    assert failed.outcome == RETRYABLE
    journal.delivered(again.id, now=NOW)
    restarted = await started(journal, failed)
    assert restarted == journal.turn(again.id)
    assert (restarted.outcome, restarted.ended_at, restarted.delivered_at) == (None, None, None)
    ended = await journal.finish(final.id, attempt=1, to=State.FAILED, cause="x", outcome=FINAL, now=NOW)
    assert ended is not None
    with pytest.raises(InvalidTransition):
        await started(journal, ended)


async def test_an_attempts_end_is_stored_with_its_answer_and_its_last_log_entries(journal: Journal) -> None:
    turn = await running(journal)
    ended = await journal.finish(
        turn.id,
        attempt=1,
        to=State.ANSWERED,
        cause="done",
        outcome=Outcome(kind=OutcomeKind.ASKED_BACK, input_tokens=3, output_tokens=4),
        answer="Which one?",
        events=[NewEvent(kind="text", body={"text": "Which one?"})],
        now=NOW + 7,
    )
    assert ended is not None
    assert ended == journal.turn(turn.id)
    assert (ended.state, ended.answer, ended.cause) == (State.ANSWERED, "Which one?", "done")
    assert ended.outcome == Outcome(kind=OutcomeKind.ASKED_BACK, input_tokens=3, output_tokens=4)
    assert (ended.ended_at, ended.last_event_at) == (NOW + 7, NOW + 7)
    assert [event.body for event in journal.events(turn.id)] == [{"text": "Which one?"}]


async def test_a_result_that_comes_late_changes_nothing(journal: Journal) -> None:
    turn = await running(journal)
    await journal.change(turn.id, expect=[State.RUNNING], to=State.INTERRUPTED, cause="boot", now=NOW)
    for attempt in (0, 1, 2):
        late = await journal.finish(
            turn.id,
            attempt=attempt,
            to=State.ANSWERED,
            cause="",
            outcome=ANSWERED,
            answer="late",
            events=[NewEvent(kind="text", body={})],
            now=NOW,
        )
        assert late is None
    interrupted = journal.turn(turn.id)
    assert interrupted is not None
    assert (interrupted.state, interrupted.answer) == (State.INTERRUPTED, None)
    await started(journal, interrupted)
    assert await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", now=NOW) is None
    assert journal.events(turn.id) == []


async def test_a_running_turn_cannot_end_as_what_the_table_does_not_have(journal: Journal) -> None:
    turn = await running(journal)
    with pytest.raises(InvalidTransition):
        await journal.finish(turn.id, attempt=1, to=State.EXPIRED, cause="", now=NOW)
    with pytest.raises(InvalidTransition):
        await journal.change(turn.id, expect=[State.RUNNING], to=State.SUSPENDED, cause="", now=NOW)
    assert journal.turn(turn.id) == turn


async def test_a_change_happens_only_from_a_state_it_expects(journal: Journal) -> None:
    turn = await running(journal)
    assert await journal.change(turn.id, expect=[State.PARKED], to=State.CANCELED, cause="", now=NOW) is None
    assert await journal.change("nowhere", expect=list(State), to=State.CANCELED, cause="", now=NOW) is None
    canceled = await journal.change(
        turn.id, expect=[State.PARKED, State.RUNNING], to=State.CANCELED, cause="by its asker", now=NOW + 1
    )
    assert canceled is not None
    assert canceled == journal.turn(turn.id)
    assert (canceled.state, canceled.cause, canceled.ended_at) == (State.CANCELED, "by its asker", NOW + 1)


async def test_an_answer_found_in_the_transcript_can_be_stored(journal: Journal) -> None:
    turn = await running(journal)
    await journal.finish(turn.id, attempt=1, to=State.INTERRUPTED, cause="", now=NOW)
    found = await journal.change(
        turn.id,
        expect=[State.INTERRUPTED],
        to=State.ANSWERED,
        cause="it had answered",
        outcome=ANSWERED,
        answer="42",
        now=NOW,
    )
    assert found is not None
    assert found == journal.turn(turn.id)
    assert found.answer == "42"


async def test_an_interruption_is_no_sign_of_life(journal: Journal) -> None:
    turn = await running(journal)
    await journal.change(
        turn.id, expect=[State.RUNNING], to=State.INTERRUPTED, cause="found so at boot", now=NOW + 9000
    )
    interrupted = journal.turn(turn.id)
    assert interrupted is not None
    assert interrupted.last_event_at == NOW


async def test_a_suspended_turn_remembers_where_it_was_cut_and_can_be_released(journal: Journal) -> None:
    turn = await running(journal)
    assert await journal.release(turn.id, now=NOW) is None
    await journal.finish(turn.id, attempt=1, to=State.INTERRUPTED, cause="", now=NOW)
    suspended = await journal.change(
        turn.id,
        expect=[State.INTERRUPTED],
        to=State.SUSPENDED,
        cause="3 attempts",
        outcome=Outcome(kind=OutcomeKind.SUSPENDED, reason="3 attempts"),
        cut="Bash abc",
        now=NOW,
    )
    assert suspended is not None
    assert (suspended.cut, suspended.ended_at) == ("Bash abc", None)
    assert journal.unfinished() == []
    released = await journal.release(turn.id, now=NOW + 500)
    assert released is not None
    assert released == journal.turn(turn.id)
    assert (released.state, released.strikes, released.charges) == (State.INTERRUPTED, 0, 0)
    assert (released.last_event_at, released.outcome) == (NOW + 500, None)
    assert [turn.id for turn in journal.unfinished()] == [turn.id]
    free = await started(journal, released)
    assert (free.attempt, free.strikes, free.charges) == (2, 0, 0)


@pytest.mark.parametrize(
    ("to", "outcome", "kept"),
    [
        (State.ANSWERED, ANSWERED, False),
        (State.CANCELED, None, False),
        (State.FAILED, FINAL, False),
        (State.FAILED, RETRYABLE, True),
        (State.PARKED, None, True),
        (State.INTERRUPTED, None, True),
    ],
)
async def test_the_message_is_kept_as_long_as_its_turn_may_run_again(
    journal: Journal, to: State, outcome: Outcome | None, kept: bool
) -> None:
    turn = await running(journal)
    await journal.finish(turn.id, attempt=1, to=to, cause="", outcome=outcome, now=NOW)
    assert (journal.message(turn.id) is not None) is kept
    if to is State.INTERRUPTED:
        for then in (State.SUSPENDED, State.INTERRUPTED, State.EXPIRED):
            if then is State.INTERRUPTED:
                await journal.release(turn.id, now=NOW)
            else:
                await journal.change(turn.id, expect=list(State), to=then, cause="", now=NOW)
            assert journal.message(turn.id) is not None


async def test_a_delivery_is_noted_once_and_only_of_what_has_ended(journal: Journal) -> None:
    going, ended = await running(journal, "m1"), await answered(journal, "m2")
    for turn in (going, ended):
        journal.delivered(turn.id, now=NOW + 1)
        journal.delivered(turn.id, now=NOW + 2)
    await journal.probe()
    assert {turn.id: turn.delivered_at for turn in journal.turns()} == {going.id: None, ended.id: NOW + 1}


async def test_a_forgotten_message_is_a_new_turn_when_it_comes_again(journal: Journal) -> None:
    ended = await answered(journal, "m1")
    journal.delivered(ended.id, now=NOW + 1, forget=True)
    journal.delivered(ended.id, now=NOW + 1, forget=True)
    await journal.probe()
    again = await accept(journal, message("m1", turn_id="turn-2"))
    assert not again.joined
    assert [turn.id for turn in journal.turns()] == ["turn-2", ended.id]


async def test_turns_are_listed_newest_first_and_by_what_is_asked(journal: Journal) -> None:
    for name, caller in (("m1", "alice"), ("m2", "bob"), ("m3", "alice")):
        await accept(journal, message(name, caller=caller, session_id=f"of-{caller}"))
    first = journal.turn("turn-m1")
    assert first is not None
    await started(journal, first)

    def ids(**asked: object) -> list[str]:
        return [turn.message_id for turn in journal.turns(**asked)]  # type: ignore[arg-type]

    assert ids() == ["m3", "m2", "m1"]
    assert ids(caller="alice") == ["m3", "m1"]
    assert ids(session_id="of-bob") == ["m2"]
    assert ids(states=[State.ACCEPTED]) == ["m3", "m2"]
    assert ids(states=[*ENDED, State.RUNNING]) == ["m1"]
    assert ids(states=[]) == []
    assert ids(limit=2) == ["m3", "m2"]
    assert ids(before_seq=3, caller="alice") == ["m1"]
    assert [turn.message_id for turn in journal.unfinished()] == ["m1", "m2", "m3"]
    assert journal.counts() == {state: {State.ACCEPTED: 2, State.RUNNING: 1}.get(state, 0) for state in State}


async def test_the_turn_before_is_the_one_before_in_the_same_session(journal: Journal) -> None:
    for name, session in (("m1", "a"), ("m2", "b"), ("m3", "a")):
        await accept(journal, message(name, session_id=session))
    third, second = journal.turn("turn-m3"), journal.turn("turn-m2")
    assert third is not None
    assert second is not None
    before = journal.previous_in_session(third)
    assert before is not None
    assert before.id == "turn-m1"
    assert journal.previous_in_session(second) is None


async def test_what_the_workspace_answered_itself_stands_between_no_two_turns(journal: Journal) -> None:
    first = await answered(journal, "m1")
    await journal.answer_at_once(message("n1"), answer="noted", notice="A is set", limit_bytes=1 << 40)
    second = (await accept(journal, message("m2"))).turn
    assert journal.previous_in_session(second) == first


async def test_text_that_is_not_unicode_is_stored_as_well_as_it_can_be_and_never_stops_the_writer(
    journal: Journal,
) -> None:
    with pytest.raises(UnicodeEncodeError):
        await accept(journal, message("m0", session_id="half \ud800"))
    assert journal.session("half \ud800") is None
    turn = await running(journal)
    assert await journal.permit(turn.id, 1, call(arguments="half \ud800"), now=NOW)
    await journal.append(turn.id, 1, [NewEvent(kind="text", body={"text": "half \ud800"})], now=NOW)
    ended = await journal.finish(
        turn.id, attempt=1, to=State.ANSWERED, cause="half \ud800", answer="half \ud800", now=NOW
    )
    assert ended is not None
    assert ended == journal.turn(turn.id)
    assert ended.answer == "half ?"
    assert journal.calls(turn.id)[0].excerpt == "half ?"


def test_ids_are_in_the_order_of_their_making_and_never_the_same() -> None:
    began = time.time_ns() // 1_000_000
    made = [UUID(new_id()) for _ in range(1000)]
    moments = [int.from_bytes(one.bytes[:6]) for one in made]
    assert began <= moments[0]
    assert moments == sorted(moments)
    assert moments[-1] <= time.time_ns() // 1_000_000
    assert {(one.version, one.variant) for one in made} == {(7, RFC_4122)}
    assert len(set(made)) == len(made)
