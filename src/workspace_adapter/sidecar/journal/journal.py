"""The verbs on the file that knows every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...events import SessionHandle, ToolCall
from ...turns import Call, Outcome, State, Turn


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child process on record."""

    pid: int
    start_ticks: int
    """Field 22 of ``/proc/<pid>/stat``; with the pid it names one process for ever."""
    boot_id: str
    what: str


class Journal:
    """One SQLite file, one writer thread, readers that never wait for it.

    Every ``async`` verb returns after its commit was fsynced. Each raises
    ``JournalUnavailable`` when nothing could be written, and ``JournalTaken`` when
    another process owns the file; then nothing was changed.
    """

    id: str
    """Random, made with the file; part of the mark that children carry."""
    boot_id: str
    """Random, of this life; the owner's row that every commit checks."""

    @classmethod
    async def open(
        cls,
        state_dir: Path,
        *,
        boot_id: str,
        now: float,
        on_change: Callable[[str], None] = lambda turn_id: None,
        on_health: Callable[[bool], None] = lambda healthy: None,
    ) -> Journal: ...

    async def close(self) -> None: ...

    # --- the life of a turn -------------------------------------------------------

    async def accept(self, new: NewTurn, *, inbox_limit: int, limit_bytes: int) -> Accepted: ...

    async def start(
        self,
        turn_id: str,
        *,
        expect: State,
        attempt: int,
        strikes: int,
        cut: str | None,
        now: float,
    ) -> Turn: ...

    async def finish(
        self,
        turn_id: str,
        *,
        attempt: int,
        to: State,
        cause: str,
        outcome: Outcome | None = None,
        answer: str | None = None,
        events: Sequence[NewEvent] = (),
        now: float,
    ) -> Turn | None: ...

    async def change(
        self,
        turn_id: str,
        *,
        expect: Iterable[State],
        to: State,
        cause: str,
        outcome: Outcome | None = None,
        answer: str | None = None,
        cut: str | None = None,
        now: float,
    ) -> Turn | None: ...

    async def settle(self, turn_ids: Sequence[str]) -> None: ...

    async def unsettle(self) -> None: ...

    def delivered(self, turn_id: str, *, now: float, forget: bool = False) -> None: ...

    # --- calls, events, sessions, children ----------------------------------------

    async def permit(self, turn_id: str, attempt: int, call: ToolCall, *, now: float) -> bool: ...

    async def ask(self, turn_id: str, attempt: int, call: ToolCall, *, now: float) -> None: ...

    async def withdraw(self, turn_id: str, attempt: int, call_id: str, *, now: float) -> None: ...

    async def end_call(self, turn_id: str, attempt: int, call_id: str, *, ok: bool, now: float) -> None: ...

    async def append(self, turn_id: str, attempt: int, events: Sequence[NewEvent], *, now: float) -> bool: ...

    async def bind(self, session_id: str, handle: SessionHandle | None) -> None: ...

    async def child_started(self, pid: int, what: str) -> None: ...

    async def children_gone(self, pids: Sequence[tuple[int, int]]) -> None: ...

    async def probe(self) -> None: ...

    async def prune(self, *, retention: float, now: float) -> int: ...

    # --- reading; plain calls, from committed data only ---------------------------

    def turn(self, turn_id: str) -> Turn | None: ...

    def turn_by_key(self, turn_key: str) -> Turn | None: ...

    def turns_of_task(self, task_id: str) -> list[Turn]: ...

    def turns(
        self,
        *,
        states: Iterable[State] | None = None,
        session_id: str | None = None,
        caller: str | None = None,
        limit: int = 100,
        before_seq: int | None = None,
    ) -> list[Turn]: ...

    def unfinished(self) -> list[Turn]: ...

    def previous_in_session(self, turn: Turn) -> Turn | None: ...

    def calls(self, turn_id: str) -> list[Call]: ...

    def message(self, turn_id: str) -> bytes | None: ...

    def events(self, turn_id: str, *, after: int = 0, limit: int = 1000) -> list[LoggedEvent]: ...

    def session(self, session_id: str) -> Session | None: ...

    def children(self) -> list[Child]: ...

    def counts(self) -> dict[State, int]: ...

    def size_bytes(self) -> int: ...
