"""What a runtime says while it works."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

SessionHandle = NewType("SessionHandle", str)
"""The runtime's own name for a session; opaque to us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One use of one tool, as the gate is asked about it."""

    id: str
    """The runtime's id of the call, unique within the turn's attempt."""

    name: str
    """The tool, as the model calls it."""

    arguments: str
    """Its arguments as canonical JSON or as plain text. Only a digest and a short
    excerpt are journalled."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text the agent wrote, to be appended to what it wrote before."""

    text: str


@dataclass(frozen=True, slots=True)
class Activity:
    """What the agent does now, in one line for people."""

    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Something the turn produced beside its answer."""

    id: str
    """Unique within the turn; the same id again replaces the earlier one."""

    name: str
    text: str
    mime_type: str = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens used, summed over the turn so far."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class SessionBound:
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
class TurnFinished:
    """The turn ended. Exactly one, and nothing after it."""

    finish: Finish = Finish.ANSWERED
    answer: str | None = None
    """What the runtime says is the answer (the question, when it asked back). Left
    out, it is the text after the last tool call."""


TurnEvent = Text | Activity | Artifact | Usage | SessionBound | TurnFinished
