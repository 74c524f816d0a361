"""Requests that come at once, or while others are on their way, travel together in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.abc

from ....errors import StoreUnavailable

A = TypeVar("A")
B = TypeVar("B")


class Gathered(Generic[A, B]):
    """Sends requests in the task of whoever comes when a lane is free; the others wait for the next."""

    def __init__(
        self,
        send: Callable[[list[A]], Awaitable[Sequence[B | Exception]]],
        tasks: anyio.abc.TaskGroup,
        *,
        most: int = 200,
        lanes: int = 2,
    ) -> None:
        """Say how many travel together at most, and how many statements may be under way."""
        self._send = send
        self._tasks = tasks
        self._most = most
        self._free = lanes
        self._crowded = True
        self._waiting: list[tuple[A, asyncio.Future[B]]] = []

    async def __call__(self, request: A) -> B:
        """Have it sent, whatever becomes of the caller."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._free:
            self._free -= 1
            with anyio.CancelScope(shield=True):
                if self._crowded:
                    await asyncio.sleep(0)  # whoever comes at the same time goes along
                await self._next()
        return await future

    async def _next(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        results: Sequence[B | Exception] = [StoreUnavailable("the store failed at it")] * len(batch)
        try:
            if batch:
                self._crowded = len(batch) > 1
                results = await self._send([request for request, _ in batch])
        except StoreUnavailable as error:
            results = [error] * len(batch)
        finally:
            self._tell(batch, results)  # also when a bug ended it: nobody waits for ever
            # Whoever sent these has its own to do.
            if self._waiting:
                self._tasks.start_soon(self._next)
            else:
                self._free += 1

    def _tell(self, batch: Sequence[tuple[A, asyncio.Future[B]]], results: Sequence[B | Exception]) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
                future.exception()  # whoever sent it may have met the bug itself, and ask no more
            else:
                future.set_result(result)
