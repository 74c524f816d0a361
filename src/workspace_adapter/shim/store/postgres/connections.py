"""A few connections, each made when it is wanted first: asyncpg's own pool costs a task a statement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import anyio
import asyncpg

T = TypeVar("T")


class Connections:
    """Connections that take turns."""

    def __init__(
        self, url: str, settings: Mapping[str, str], *, most: int, timeout: float, limit: float = 30.0
    ) -> None:
        """Name the database.

        Args:
            timeout: seconds to wait for a connection to be made.
            limit: seconds a statement may take.
        """
        self._url = url
        self._settings = dict(settings)
        self._timeout = timeout
        self._limit = limit
        self._slots = anyio.Semaphore(most, fast_acquire=True)
        self._idle: list[Any] = []

    async def open(self) -> None:
        """Make the first, so that no verb has to."""
        self._idle.append(await self._take())

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do something on one that nobody else has meanwhile."""
        async with self._slots:
            connection = await self._take()
            try:
                return await work(connection)
            except anyio.get_cancelled_exc_class():
                connection.terminate()  # it is in the middle of something
                raise
            except (TimeoutError, asyncpg.ReadOnlySQLTransactionError):
                # Its server may be gone without a word, or another is the first now: no other connection
                # to it is better. New ones are made to whichever the name leads to.
                for old in (connection, *self._idle):
                    old.terminate()
                raise
            finally:
                if connection.is_closed():
                    connection.terminate()  # asyncpg may have forgotten half of it
                else:
                    self._idle.append(connection)

    async def close(self) -> None:
        """Close those that nobody has."""
        while self._idle:
            await self._idle.pop().close(timeout=self._timeout)

    async def _take(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
        return await asyncpg.connect(
            self._url, timeout=self._timeout, command_timeout=self._limit, server_settings=self._settings
        )
