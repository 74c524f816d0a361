"""Messages the journal accepts in a second, against the very same statements run by nobody but SQLite.

Fair because the statements are recorded from the journal's own verb, values and all, and run
again on one connection to a journal of the same tables, in transactions as large as there are
callers, each with its fsync; and against one append with one ``fdatasync`` of this disk, which is
the most that one caller who waits can have.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio

from benchmarks.disk import Disk
from benchmarks.frame import Bench, Figure, at_least
from workspace_adapter.sidecar.journal import Journal, NewTurn, new_id, schema, verbs
from workspace_adapter.sidecar.journal.blobs import Blobs
from workspace_adapter.sidecar.journal.writer import Transaction
from workspace_adapter.turns import State

CALLERS = {1: 0.5, 8: 2.3, 64: 4.5}
"""How many at once, and how many times one ``fdatasync`` they are to get."""

BURST, BURSTS = 192, 4
"""Messages that are accepted in one go, and how often in a round; between bursts the inbox is emptied."""

LIMITS = {"inbox_limit": BURST + 1, "limit_bytes": 2 << 30}

Statement = tuple[str, Sequence[object] | dict[str, object]]


def message() -> NewTurn:
    """A message of 1 KiB, in a session of its own; ids as the door makes them."""
    return NewTurn(
        turn_id=new_id(),
        task_id=new_id(),
        session_id=new_id(),
        turn_key=uuid4().hex * 2,
        content_hash=uuid4().hex * 2,
        message_id=uuid4().hex,
        caller=None,
        source=None,
        message=b"x" * 1024,
        accepted_at=time.time(),
        expires_at=None,
    )


async def measure(bench: Bench) -> list[Figure]:
    """Accept with 1, 8 and 64 callers."""
    raw = Raw(bench.scratch)
    disk = Disk(bench.scratch)
    journal = await Journal.open(bench.scratch / "state", boot_id=uuid4().hex, now=time.time())
    sides: dict[str, Callable[[], Awaitable[float]]] = {"fdatasync": disk.rate(BURST)}
    for callers in CALLERS:
        sides[f"journal {callers}"] = partial(accepted, journal, callers)
        sides[f"raw {callers}"] = partial(raw.run, callers)
    try:
        rates = await bench.interleave(sides, rounds=15)
    finally:
        await journal.close()
        raw.close()
        disk.close()
    figures = []
    for callers, times in CALLERS.items():
        what = f"{callers} caller{'s' * (callers > 1)}"
        ours, theirs = rates[f"journal {callers}"], rates[f"raw {callers}"]
        for against, reference, limit in (
            (f"the statements raw, {callers} to a transaction", theirs, at_least(times=0.5)),
            ("one fdatasync", rates["fdatasync"], at_least(times=times)),
        ):
            figures.append(
                Figure(what=what, unit="/s", measured=ours, against=against, reference=reference, limit=limit)
            )
    return figures


async def accepted(journal: Journal, callers: int) -> float:
    """Let callers accept one message after another, each waiting for its own."""
    took = 0.0
    for _ in range(BURSTS):
        new = [message() for _ in range(BURST)]
        waiting = iter(new)

        async def caller(waiting: Iterator[NewTurn] = waiting) -> None:
            for one in waiting:
                await journal.accept(one, **LIMITS)

        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(caller)
        took += time.perf_counter() - began
        async with anyio.create_task_group() as tasks:
            for one in new:
                tasks.start_soon(_emptied, journal, one.turn_id)
    return BURSTS * BURST / took


async def _emptied(journal: Journal, turn_id: str) -> None:
    expect, to = [State.ACCEPTED], State.CANCELED
    await journal.change(turn_id, expect=expect, to=to, cause="measured", now=time.time())


class _Recording(Transaction):
    """A transaction that remembers what it ran."""

    said: list[Statement]

    def execute(self, sql: str, values: Sequence[object] | dict[str, object] = ()) -> sqlite3.Cursor:
        self.said.append((sql, values))
        return super().execute(sql, values)


class Raw:
    """The journal's statements on a connection of their own."""

    def __init__(self, directory: Path) -> None:
        self._blobs = Blobs(directory)
        self._model = _made(directory / "model.db")
        self._model.execute("PRAGMA synchronous=OFF")
        self._connection = _made(directory / "raw.db")

    def close(self) -> None:
        """Close the files."""
        self._model.close()
        self._connection.close()

    async def run(self, callers: int) -> float:
        """Run what the journal would, so many messages to a transaction."""
        took = 0.0
        for _ in range(BURSTS):
            batches = [self._statements(callers) for _ in range(BURST // callers)]
            _empty(self._model)
            began = time.perf_counter()
            for batch in batches:
                self._connection.execute("BEGIN IMMEDIATE")
                for sql, values in batch:
                    self._connection.execute(sql, values).fetchone()
                self._connection.execute("COMMIT")
            took += time.perf_counter() - began
            _empty(self._connection)
        return BURSTS * BURST / took

    def _statements(self, messages: int) -> list[Statement]:
        """What the journal's verb runs for so many messages."""
        transaction = _Recording(self._model, "", self._blobs)
        transaction.said = []
        self._model.execute("BEGIN")
        for _ in range(messages):
            new = message()
            verbs.accept(transaction, new, new.message, **LIMITS)
        self._model.execute("COMMIT")
        return transaction.said


def _made(path: Path) -> sqlite3.Connection:
    schema.create(path)
    connection = schema.connect(path)
    connection.execute("PRAGMA journal_mode=WAL").fetchone()
    return connection


def _empty(connection: sqlite3.Connection) -> None:
    """End every turn, as the journal's own are between bursts."""
    connection.execute("UPDATE turns SET state = 'canceled', ended_at = accepted_at WHERE ended_at IS NULL")
    connection.execute("DELETE FROM messages")
