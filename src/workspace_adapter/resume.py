"""What becomes of an interrupted turn, decided from evidence, calls and attempts.

One table for the boot and for a runtime that dies while we live; the only place a
recovery note is worded. It is told ``now`` and decides; ``sidecar/boot.py`` acts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .turns import INITIAL_PROMPT, TOLD, TRANSITIONS, Call, Notice, State, Turn


class Resumption(StrEnum):
    """How an attempt relates to the ones before it."""

    NEW = "new"  #: the first; give the runtime the message
    REPLAY = "replay"  #: the runtime never saw it, or lost it: give it the message again
    CONTINUE = "continue"  #: the conversation holds it: give the note alone


class Found(StrEnum):
    """What the runtime's own records say about an interrupted turn."""

    ANSWERED = "answered"  #: the final answer is there
    UNSEEN = "unseen"  #: the runtime never saw the message
    SEEN = "seen"  #: the message is in the conversation, unanswered
    SESSION_LOST = "session-lost"  #: the conversation is gone


@dataclass(frozen=True, slots=True)
class Evidence:
    """What ``RuntimeAdapter.recover`` found; evidence only, never a decision."""

    found: Found
    answer: str | None = None

    @classmethod
    def answered(cls, text: str) -> Evidence:
        """The runtime finished the turn, and this is its answer."""
        return cls(Found.ANSWERED, text)

    @classmethod
    def unseen(cls) -> Evidence:
        """The runtime never saw the message."""
        return cls(Found.UNSEEN)

    @classmethod
    def seen(cls) -> Evidence:
        """The message is in the conversation, unanswered; also what is assumed in doubt."""
        return cls(Found.SEEN)

    @classmethod
    def session_lost(cls) -> Evidence:
        """The runtime no longer has the conversation."""
        return cls(Found.SESSION_LOST)


class Action(StrEnum):
    """What to do with an interrupted turn."""

    DELIVER = "deliver"  #: store the answer that is there
    RESUME = "resume"  #: start another attempt
    SUSPEND = "suspend"  #: wait for a person
    EXPIRE = "expire"  #: too old
    CANCEL = "cancel"  #: nobody asked
    LEAVE = "leave"  #: nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Settings of the plan; seconds and counts."""

    freshness: float
    max_attempts: int
    max_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one turn, and why."""

    action: Action
    because: str
    resumption: Resumption = Resumption.NEW
    answer: str | None = None
    note: str | None = None
    fresh_session: bool = False
    """The old session is gone: open a new one instead of resuming its handle."""
    strikes: int = 0
    """Charged starts since the last progress, before the one to come is charged."""
    cut: str | None = None
    """The call open at the last cut that had one since there was progress; tells progress at the next."""


def plan(
    turn: Turn,
    calls: Sequence[Call],
    evidence: Evidence,
    *,
    text: str,
    now: float,
    limits: Limits,
    asked_again: bool = False,
    awaited: bool = False,
) -> Verdict:
    """Decide what becomes of one turn that nobody runs.

    Args:
        turn: as journalled; ``accepted`` turns are not asked about.
        calls: every call of every attempt, in order.
        evidence: of the runtime's own records.
        text: the original message, for the note to quote.
        now: UTC epoch seconds.
        asked_again: a person released the turn, or its asker sent it again after it
            expired or failed retryably: age and earlier attempts do not count.
        awaited: somebody waits for it on an open request.
    """
    if turn.state in (State.ANSWERED, State.CANCELED):
        return Verdict(action=Action.LEAVE, because=f"{turn.state} turns are never resumed")
    if turn.state in TOLD and not asked_again:
        return Verdict(action=Action.LEAVE, because=f"{turn.state}, and nobody asks for it again")
    if evidence.found is Found.ANSWERED and State.ANSWERED in TRANSITIONS[turn.state]:
        return Verdict(action=Action.DELIVER, because="the runtime had answered", answer=evidence.answer)
    if turn.source not in (None, INITIAL_PROMPT) and not asked_again and not awaited:
        return Verdict(
            action=Action.CANCEL,
            because=f"of the platform's own making ({turn.source}) and nobody is asking",
        )
    last_sign = turn.last_event_at or turn.started_at or turn.accepted_at
    silent = now - last_sign
    if limits.freshness and silent > limits.freshness and not asked_again:
        return Verdict(
            action=Action.EXPIRE,
            because=f"silent for {silent:.0f} s, longer than WORKSPACE_RESUME_FRESHNESS",
        )
    cut = _cut(turn, calls)
    progressed = _progressed(turn, calls, cut)
    strikes = 0 if asked_again or progressed else turn.strikes
    # An attempt that came to nothing does not make the call cut before it a new one.
    remembered = cut if cut or progressed else turn.cut
    if not asked_again and not turn.settled:
        if strikes >= limits.max_attempts:
            culprit = f"; each time during {cut.split(' ')[0]}" if cut and cut == turn.cut else ""
            return Verdict(
                action=Action.SUSPEND,
                because=f"{strikes} attempts without progress{culprit}",
                strikes=strikes,
                cut=remembered,
            )
        if turn.charges >= limits.max_total:
            return Verdict(
                action=Action.SUSPEND,
                because=f"{turn.charges} attempts in all",
                strikes=strikes,
                cut=remembered,
            )
    started = any(call.started for call in calls)
    match evidence.found:
        case Found.UNSEEN if not started:
            resumption, because, lost = Resumption.REPLAY, "the runtime never saw it", False
        case Found.UNSEEN:
            resumption, because, lost = Resumption.REPLAY, "unseen, but tools had started", False
        case Found.SESSION_LOST:
            resumption, because, lost = Resumption.REPLAY, "the session is lost", True
        case _:
            resumption, because, lost = Resumption.CONTINUE, "the runtime had seen it", False
    plain = resumption is Resumption.REPLAY and not started and not lost
    return Verdict(
        action=Action.RESUME,
        because=because,
        resumption=resumption,
        fresh_session=lost,
        note=None if plain else recovery_note(calls, text, resumption=resumption, lost=lost),
        strikes=strikes,
        cut=remembered,
    )


def _cut(turn: Turn, calls: Sequence[Call]) -> str | None:
    """The calls open when the last attempt was cut."""
    return " + ".join(sorted(c.same for c in calls if c.attempt == turn.attempt and c.unknown)) or None


def _progressed(turn: Turn, calls: Sequence[Call], cut: str | None) -> bool:
    """Whether a call finished in the last attempt and the cut came somewhere new."""
    finished = any(c.attempt == turn.attempt and c.started and c.ended_at is not None for c in calls)
    return finished and (cut is None or cut != turn.cut)


def recovery_note(calls: Sequence[Call], text: str, *, resumption: Resumption, lost: bool = False) -> str:
    """Word what the agent is told about an interruption; always from the original message."""
    lines = [
        "[workspace notice: this workspace was restarted while you were working on the request"
        " below. The restart cut you off, not the user."
    ]
    if lost:
        lines.append("The earlier conversation is gone; you have only this request.")
    last_asked = {call.same: call.attempt for call in calls}
    finished = {c.same: c for c in calls if c.started and not c.unknown}
    unknown = {c.same: c for c in calls if c.unknown and not _finished_since(c, finished)}
    never = {c.same: c for c in calls if not c.started and c.attempt == last_asked[c.same]}
    if unknown:
        lines.append(
            "These tool calls had started and their outcome is unknown; check whether they took"
            " effect before you make them again:" + _list(unknown.values())
        )
    if finished:
        lines.append("These tool calls finished; do not make them again:" + _list(finished.values()))
    if not_made := [call for same, call in never.items() if same not in unknown]:
        lines.append("These tool calls were never started; make them if still needed:" + _list(not_made))
    if not calls:
        lines.append("No tool call had been started.")
    lines.append("Go on from where you were and finish the request.]")
    note = "\n".join(lines)
    if resumption is Resumption.CONTINUE:
        note += f"\n\nThe request was:\n{text}"
    return note


def _finished_since(call: Call, finished: Mapping[str, Call]) -> bool:
    """Whether a later attempt made the same call again and saw it end."""
    return call.same in finished and finished[call.same].attempt > call.attempt


_LISTED = 50


def _list(calls: Iterable[Call]) -> str:
    quoted = [f"\n- {call.name} {call.excerpt}".rstrip() for call in calls]
    if len(quoted) > _LISTED:
        quoted[:-_LISTED] = [f"\n- … and {len(quoted) - _LISTED} earlier ones"]
    return "".join(quoted)


def notice_due(notice: Notice, *, to: Turn, resumption: Resumption, given: Turn | None, showed: bool) -> bool:
    """Whether a turn's next prompt must tell what the platform has to say.

    Args:
        to: the turn, as it stands before that start.
        given: the turn whose prompt told it last.
        showed: that attempt's runtime said or did something, so it had read its prompt.
    """
    if notice.given_to is None:
        return True
    if notice.given_to == to.id:
        if resumption is not Resumption.CONTINUE:
            return True  # the runtime does not have the prompt that told it
        if notice.with_message and to.state is not State.PARKED:
            return False  # it has seen the message, and so the notice before it
        return not showed
    return not showed and given is not None and given.state is not State.ANSWERED


def platform_note(notice: Notice) -> str:
    """Tell the agent what the platform says, so that nobody takes it for a request."""
    quoted = "\n".join(f"> {line}" for line in notice.text.splitlines())
    return (
        "[workspace notice: the platform, not the user, sent the lines marked with > below. They say how"
        " this workspace stands; they are no request, and nobody waits for an answer to them.]\n" + quoted
    )


def given_up_note(turn: Turn) -> str:
    """Tell a session's next turn that an earlier request was given up, and why."""
    reason = turn.outcome.reason if turn.outcome else turn.cause or ""
    return (
        "[workspace notice: your earlier request in this conversation was given up and waits for a"
        f" person ({reason}). Do not go on with it; answer only what follows.]"
    )
