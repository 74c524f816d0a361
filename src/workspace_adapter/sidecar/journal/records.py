"""What goes into the journal and comes out of it, beside turns and calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...events import SessionHandle
from ...turns import State, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTurn:
    """A message the door wants accepted."""

    turn_id: str
    task_id: str
    session_id: str
    turn_key: str
    content_hash: str
    message_id: str
    caller: str | None
    source: str | None
    message: bytes
    """The message object as JSON, as it was sent; kept until the turn ends."""
    accepted_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What became of a message at the door."""

    turn: Turn
    joined: bool
    """It was here before: nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """One entry for a turn's event log."""

    kind: str
    """``status``, ``text``, ``activity``, ``artifact``, ``tool``."""
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """One entry of a turn's event log."""

    n: int
    """Its position: 1, 2, 3 … without gaps, over all attempts. The cursor is this as text."""
    attempt: int
    at: float
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation."""

    id: str
    caller: str | None
    handle: SessionHandle | None
    created_at: float
    last_turn_at: float


@dataclass(slots=True)
class SessionSummary:
    """One conversation as an operator lists it."""

    session: Session
    turns: dict[State, int]
    """How many of its turns are in each state; those with none are left out."""
    active_at: float
    """When something last happened in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child process on record."""

    pid: int
    start_ticks: int
    """Field 22 of ``/proc/<pid>/stat``; with the pid it names one process for ever."""
    boot_id: str
    what: str
