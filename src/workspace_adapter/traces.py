"""Where a turn stands in a trace, and what its spans are.

All of it follows from what the journal knows at the turn's end. Ids are derived, not
drawn: every life of the workspace comes to the same ones, so attempts that different
lives made belong together, and none of it need be remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from .turns import Call, State, Turn

KEY = "traceparent"
"""Header, and key in a message's metadata: the sender's span, as W3C Trace Context writes it."""

MOST_CALLS = 500
"""Tool calls of one run that have spans; the latest ones."""

_HEADER = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_TRACE_ID = re.compile(r"[0-9a-f]{32}")


def is_sent(value: object) -> bool:
    """Whether this is a ``traceparent`` that can be gone on from."""
    return _read(value) is not None


def _read(value: object) -> re.Match[str] | None:
    found = _HEADER.fullmatch(value) if isinstance(value, str) else None
    return None if found is None or (found[1] == "00" and found[5]) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """In whose trace a turn stands, and beneath which span."""

    trace_id: str
    """32 hex digits."""
    parent_id: str | None
    """16 hex digits; ``None`` where the trace begins with the turn."""
    sampled: bool = True

    @classmethod
    def of(cls, turn_id: str, sent: object) -> Place:
        """Return the place that a sender's ``traceparent`` gives a turn; else a trace of its own.

        Such a trace has the turn's id, without the hyphens.
        """
        found = _read(sent)
        if found is None:
            own = turn_id.replace("-", "")
            return cls(trace_id=own if _TRACE_ID.fullmatch(own) else _digest(turn_id)[:32], parent_id=None)
        return cls(trace_id=found[2], parent_id=found[3], sampled=bool(int(found[4], 16) & 1))

    @property
    def sent(self) -> str | None:
        """The sender's ``traceparent``."""
        return self._header(self.parent_id) if self.parent_id else None

    def within(self, turn_id: str, attempt: int) -> str:
        """Return the ``traceparent`` of whatever an attempt begins."""
        return self._header(_span_id(turn_id, "attempt", attempt))

    def _header(self, span_id: str) -> str:
        return f"00-{self.trace_id}-{span_id}-{int(self.sampled):02x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt, as the turn's log tells it. Times are UTC epoch seconds."""

    number: int
    began_at: float
    resumption: str
    anew: bool
    """The turn had ended before it, and was asked for again."""
    last_at: float
    """When it last said something."""
    stopped: str | None = None
    """What the last thing it said was, where that was its end: parked, or interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span. Times are UTC epoch seconds."""

    name: str
    id: str
    parent_id: str | None
    began_at: float
    ended_at: float
    attributes: dict[str, str | int]
    failed: bool = False
    links: tuple[str, ...] = ()
    """Spans of the same trace."""


def spans(turn: Turn, place: Place, attempts: Sequence[Attempt], calls: Sequence[Call]) -> list[Span]:
    """Return the spans of a turn that has ended: its own, one for each attempt, one for each call.

    A turn that ended before, and was asked for again, ends more than once; told are the attempts
    since the end before.
    """
    ended_at = turn.ended_at
    if ended_at is None:
        return []
    begun = next((n for n in reversed(range(len(attempts))) if attempts[n].anew), 0)
    run, earlier = attempts[begun:], attempts[:begun]
    first = run[0].number if run else 0
    whole = Span(
        name="turn",
        id=_span_id(turn.id, "turn", first),
        parent_id=place.parent_id,
        began_at=run[0].began_at if earlier else turn.accepted_at,
        ended_at=ended_at,
        attributes=_of_turn(turn),
        failed=turn.state in (State.FAILED, State.EXPIRED),
        links=(_span_id(turn.id, "attempt", earlier[-1].number),) if earlier else (),
    )
    found = [whole]
    numbers = {attempt.number for attempt in run}
    told = [call for call in calls if call.started and call.attempt in numbers][-MOST_CALLS:]
    for n, attempt in enumerate(run, begun):
        made = [call for call in told if call.attempt == attempt.number]
        span = _of_attempt(turn, attempt, made, ended_at, last=n + 1 == len(attempts))
        links = (_span_id(turn.id, "attempt", attempts[n - 1].number),) if n else ()
        found.append(replace(span, parent_id=whole.id, links=links))
        found += (_of_call(turn, call, span) for call in made)
    return found


def _of_turn(turn: Turn) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "workspace.turn.id": turn.id,
        "workspace.task.id": turn.task_id,
        "workspace.session.id": turn.session_id,
        "workspace.turn.state": str(turn.state),
        "workspace.turn.attempts": turn.attempt,
    }
    if turn.source is not None:
        attributes["workspace.turn.source"] = turn.source
    if turn.outcome is not None:
        attributes["workspace.turn.outcome"] = str(turn.outcome.kind)
        for name in ("input_tokens", "output_tokens"):
            if tokens := getattr(turn.outcome, name):
                attributes[f"gen_ai.usage.{name}"] = tokens
    return attributes


def _of_attempt(turn: Turn, attempt: Attempt, calls: Iterable[Call], ended_at: float, *, last: bool) -> Span:
    """Say when an attempt ended, and how; one that was cut ended with its last sign of life."""
    signs = [at for call in calls for at in (call.permitted_at, call.ended_at) if at is not None]
    end, how = max(attempt.began_at, attempt.last_at, *signs), attempt.stopped or "cut"
    if last and attempt.stopped is None and turn.last_event_at == ended_at:
        end, how = ended_at, str(turn.state)
    return Span(
        name="attempt",
        id=_span_id(turn.id, "attempt", attempt.number),
        parent_id=None,
        began_at=attempt.began_at,
        ended_at=end,
        attributes={
            "workspace.attempt.number": attempt.number,
            "workspace.attempt.resumption": attempt.resumption,
            "workspace.attempt.end": how,
        },
        failed=how in (State.FAILED, State.INTERRUPTED, "cut"),
    )


def _of_call(turn: Turn, call: Call, attempt: Span) -> Span:
    """Tell of a call its name and its fate, never its arguments."""
    began_at = call.permitted_at or attempt.began_at
    return Span(
        name=f"tool {call.name}",
        id=_span_id(turn.id, "call", call.attempt, call.id),
        parent_id=attempt.id,
        began_at=began_at,
        ended_at=max(call.ended_at or attempt.ended_at, began_at),
        attributes={"gen_ai.tool.name": call.name, "workspace.call.outcome": call.outcome or "unknown"},
        failed=call.outcome != "ok",
    )


def _span_id(*of: str | int) -> str:
    return _digest("\0".join(map(str, of)))[:16]


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
