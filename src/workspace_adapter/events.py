"""What a runtime says while it works."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, NewType, get_type_hints

SessionHandle = NewType("SessionHandle", str)
"""The runtime's own name for a session; opaque to us."""


class _Checked:
    """Refuses a field of the wrong type on the line that made it, not where it is journalled."""

    __slots__ = ()

    def __post_init__(self) -> None:
        event: type = type(self)
        for name, kind in _kinds(event).items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                wrong = type(value).__name__
                raise TypeError(f"{event.__name__}.{name} must be {_named(kind)}, not {wrong}")


@cache
def _kinds(event: type) -> dict[str, Any]:
    return {name: getattr(kind, "__supertype__", kind) for name, kind in get_type_hints(event).items()}


def _named(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(_Checked):
    """One use of one tool, as the gate is asked about it."""

    id: str
    """The runtime's id of the call, unique within the turn's attempt."""

    name: str
    """The tool, as the model calls it."""

    arguments: str
    """Its arguments as canonical JSON or as plain text. Only a digest and a short
    excerpt are journalled."""


@dataclass(frozen=True, slots=True)
class Text(_Checked):
    """A piece of text the agent wrote, to be appended to what it wrote before."""

    text: str


@dataclass(frozen=True, slots=True)
class Activity(_Checked):
    """What the agent does now, in one line for people."""

    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(_Checked):
    """Something the turn produced beside its answer."""

    id: str
    """Unique within the turn; the same id again replaces the earlier one."""

    name: str
    text: str
    mime_type: str = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(_Checked):
    """Tokens used, summed over the turn so far."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class SessionBound(_Checked):
    """The runtime's own id for this session; what was bound is what can be resumed.

    Yield it as soon as the id is known, and again if it changes.
    """

    handle: SessionHandle


class Finish(StrEnum):
    """How a turn ended, as its runtime says."""

    ANSWERED = "answered"  #: the work is done
    ASKED_BACK = "asked-back"  #: the agent needs an answer from the asker to go on
    REJECTED = "rejected"  #: the agent will not do this
    PARKED = "parked"  #: ended at the closed gate, transcript well formed


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFinished(_Checked):
    """The turn ended. Exactly one, and nothing after it."""

    finish: Finish = Finish.ANSWERED
    answer: str | None = None
    """What the runtime says is the answer (the question, when it asked back). Left
    out, it is the text after the last tool call."""


TurnEvent = Text | Activity | Artifact | Usage | SessionBound | TurnFinished
