"""What goes into the journal and comes out of it, beside turns and calls."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ...events import SessionHandle
from ...turns import State, Turn


def new_id() -> str:
    """Make up an id: a UUID of version 7 (RFC 9562), whose order is that of the making.

    What was made together stands together in every index. With random ids each message
    would have a page of each index written anew.
    """
    milliseconds, random = time.time_ns() // 1_000_000, secrets.randbits(74)
    high = (milliseconds % (1 << 48)) << 16 | 7 << 12 | random >> 62
    low = 0b10 << 62 | random % (1 << 62)
    return str(UUID(int=high << 64 | low))


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
    canvas: bool = False


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
