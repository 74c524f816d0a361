"""The store in PostgreSQL, for any number of replicas: ``SKIP LOCKED``, ``NOTIFY`` after the commit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio
import asyncpg

from ....queueing import Rules
from .connections import Connections
from .cycles import Cycles
from .enqueue import Enqueue
from .log import Log
from .part import unavailable
from .queue import Queue
from .schema import migrate
from .streams import Streams
from .words import PASSING, Words
from .workspaces import Workspaces

_SETTINGS = {
    "application_name": "workspace-adapter",
    "jit": "off",
    # Milliseconds. A replica that is frozen in the middle must not hold up the others.
    "idle_in_transaction_session_timeout": "5000",
    # Each statement has one good plan, along an index. A table that grew since it was last
    # analysed must not make the planner choose another.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
}


class PostgresStore(Workspaces, Queue, Enqueue, Streams, Cycles, Log):
    """What the shim keeps, in a PostgreSQL database that any number of replicas share."""

    def __init__(
        self,
        url: str,
        rules: Rules,
        *,
        schema: str = "workspace_adapter",
        connections: int = 8,
        patience: float = 10.0,
    ) -> None:
        """Name the database.

        Args:
            connections: at most, besides the one that listens.
            patience: seconds for which a verb tries again when the database is away.
        """
        self._url = url
        self._rules = rules
        self._schema = schema
        self._most_connections = connections
        self._patience = patience
        self.on_due: Callable[[str], None] = _nobody
        self.on_ended: Callable[[int], None] = _nobody
        self.on_said: Callable[[int], None] = _nobody
        self.on_cycle: Callable[[str], None] = _nobody

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            settings = {**_SETTINGS, "search_path": self._schema}
            self._connections = Connections(
                self._url, settings, most=self._most_connections, timeout=self._patience
            )
            stack.push_async_callback(self._connections.close)
            try:
                await migrate(self._url, self._schema, timeout=self._patience)
                await self._connections.open()
            except (*PASSING, asyncpg.PostgresError) as error:
                raise unavailable(error) from error
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            self._words = Words(self._url, self._schema, settings, self._hear)
            self._open_enqueue()
            self._open_queue()
            self._listening = anyio.CancelScope()
            await self._tasks.start(self._listen)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._listening.cancel()
        await self._stack.__aexit__(None, None, None)

    async def disown(self) -> None:
        """Leave all leases to their time."""

    async def _listen(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self._listening:
            await self._words.run(task_status=task_status)


def _nobody(_: object) -> None:
    """Nobody listens yet."""
