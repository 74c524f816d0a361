"""The store in one SQLite file: no set-up, one process. WAL, ``synchronous=FULL``, group commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from ....queueing import Rules
from .cycles import Cycles
from .log import Log
from .queue import Queue
from .schema import migrate
from .streams import Streams
from .workspaces import Workspaces
from .writer import Transaction, Writer


class SqliteStore(Workspaces, Queue, Streams, Cycles, Log):
    """What the shim keeps, in one file that one process has open."""

    def __init__(self, path: Path, rules: Rules) -> None:
        self._path = path
        self._rules = rules
        self.on_due: Callable[[str], None] = _nobody
        self.on_ended: Callable[[int], None] = _nobody
        self.on_said: Callable[[int], None] = _nobody
        self.on_cycle: Callable[[str], None] = _nobody

    async def __aenter__(self) -> Self:
        self._writer = Writer(self._path, prepare=migrate)
        await self._writer.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._writer.close()

    async def disown(self) -> None:
        def disown(transaction: Transaction) -> None:
            transaction.change("UPDATE a2a_queue SET lease_until = 0 WHERE state = 'leased'")
            transaction.change("UPDATE cycles SET lease_until = 0 WHERE ended_at IS NULL")

        await self._writer.run(disown)


def _nobody(_: object) -> None:
    """Nobody listens yet."""
