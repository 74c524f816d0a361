"""What the verbs of every noun stand on: connections, the rules, words to all replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import anyio
import anyio.abc
import asyncpg

from ....errors import StoreUnavailable
from ....queueing import Rules, State
from ..contract import Cycle, Status
from .connections import Connections
from .words import PASSING, PAUSE, Words

T = TypeVar("T")

LIVE = "('queued', 'delayed', 'leased')"

NOW = "coalesce($1::float8, extract(epoch FROM statement_timestamp())::float8)"
"""The time a verb was told, as its first value, or the database's clock."""

DEPTH = (
    "(SELECT count(*) FROM (SELECT FROM a2a_queue AS q WHERE q.workspace_id = {0} AND q.state = 'queued'"
    " AND NOT q.taken LIMIT {1}) AS found)"
    " + (SELECT count(*) FROM (SELECT FROM a2a_queue AS q WHERE q.workspace_id = {0} AND q.state = 'queued'"
    " AND q.taken LIMIT {1}) AS found)"
    " + (SELECT count(*) FROM (SELECT FROM a2a_queue AS q WHERE q.workspace_id = {0} AND q.state = 'delayed'"
    " LIMIT {1}) AS found)"
)
"""What waits, counted on the partial indexes and no further than the cap."""


class Part:
    """The store, as far as one noun's verbs know it."""

    _rules: Rules
    _connections: Connections
    _patience: float
    _tasks: anyio.abc.TaskGroup
    _words: Words
    on_due: Callable[[str], None]
    on_ended: Callable[[int], None]
    on_said: Callable[[int], None]
    on_cycle: Callable[[str], None]

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do something that can be repeated, on a connection; try again while the database is away.

        Raises:
            StoreUnavailable: it stayed away.
        """
        deadline: float | None = None
        while True:
            try:
                return await self._connections.run(work)
            except asyncpg.DataError:
                raise
            except PASSING as error:
                if deadline is None:
                    deadline = anyio.current_time() + self._patience
                if anyio.current_time() > deadline:
                    raise unavailable(error) from error
            except asyncpg.PostgresError as error:
                raise unavailable(error) from error
            await anyio.sleep(PAUSE)

    async def _all(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._run(lambda connection: connection.fetch(sql, *values))

    async def _one(self, sql: str, *values: object) -> asyncpg.Record | None:
        rows = await self._all(sql, *values)
        return rows[0] if rows else None

    def _tell(
        self,
        *,
        due: Collection[str] = (),
        ended: Collection[int] = (),
        said: Collection[int] = (),
        cycle: Collection[str] = (),
    ) -> None:
        """Have all replicas told what was committed; this one is at once."""
        told: tuple[tuple[str, Callable[[Any], None], Collection[Any]], ...] = (
            ("d", self.on_due, due),
            ("e", self.on_ended, ended),
            ("s", self.on_said, said),
            ("c", self.on_cycle, cycle),
        )
        for kind, tell, ids in told:
            for of in ids:
                tell(of)
                self._words.say(f"{kind}{of}")

    def _hear(self, word: str) -> None:
        kind, of = word[:1], word[1:]
        if kind == "d":
            self.on_due(of)
        elif kind == "e":
            self.on_ended(int(of))
        elif kind == "s":
            self.on_said(int(of))
        elif kind == "c":
            self.on_cycle(of)


async def holds(connection: Any, cycle: Cycle) -> bool:
    """Say whether a cycle is still its owner's; until the transaction ends, nobody takes it."""
    return bool(
        await connection.fetchval(
            "SELECT true FROM cycles WHERE id = $1 AND attempt = $2 AND owner = $3 AND ended_at IS NULL"
            " FOR SHARE",
            cycle.id,
            cycle.attempt,
            cycle.owner,
        )
    )


def unavailable(error: Exception) -> StoreUnavailable:
    """Say that the database cannot be used."""
    return StoreUnavailable(
        f"PostgreSQL cannot be used ({type(error).__name__}: {error}): see SHIM_DATABASE_URL and the"
        " database's log. Nothing was acknowledged"
    )


def among(states: Collection[State | Status]) -> str:
    """Write constants of ours for an ``IN``."""
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"
