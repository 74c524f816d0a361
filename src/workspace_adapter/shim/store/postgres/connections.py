"""A few connections, each made when it is wanted first: asyncpg's own pool costs a task a statement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg


class Connections:
    """Connections that take turns."""

    def __init__(self, url: str, settings: Mapping[str, str], *, most: int, timeout: float) -> None:
        """Name the database.

        Args:
            timeout: seconds to wait for a connection to be made.
        """
        self._url = url
        self._settings = dict(settings)
        self._timeout = timeout
        self._slots = anyio.Semaphore(most, fast_acquire=True)
        self._idle: list[Any] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Any]:
        """Have one to oneself; one that was left in the middle of something is not used again."""
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            except Exception:
                self._give(connection)
                raise
            except BaseException:
                connection.terminate()
                raise
            self._give(connection)

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
            self._url, timeout=self._timeout, command_timeout=30, server_settings=self._settings
        )

    def _give(self, connection: Any) -> None:
        if connection.is_closed():
            connection.terminate()  # asyncpg may have forgotten half of it
        else:
            self._idle.append(connection)
