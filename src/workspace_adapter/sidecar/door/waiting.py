"""Where callers wait: for the door to open, for a turn to change."""

from __future__ import annotations

import anyio

from .refusal import Refusal, busy, restarting

_BOOT_RETRY = 5
"""Seconds after which a caller may try again who waited in vain for the workspace to start."""

_HELD_RETRY = 1
"""Seconds after which a caller may wait on; its message is kept."""


class WaitingRoom:
    """Everybody in it is told at once when the stop comes, and nobody stays for ever."""

    def __init__(self, *, hold_limit: float) -> None:
        self._limit = hold_limit
        self._opened = anyio.Event()
        self._waits: set[anyio.CancelScope] = set()
        self._stop: Refusal | None = None

    def __len__(self) -> int:
        """Return how many wait now."""
        return len(self._waits)

    def open(self) -> None:
        """Let in whoever waits for the workspace to start: what earlier lives left is submitted."""
        self._opened.set()

    async def opened(self) -> None:
        """Return once they are let in."""
        await self._opened.wait()

    def shut(self, retry_after: int) -> None:
        """The stop has come: send everybody away, and whoever comes later.

        Args:
            retry_after: seconds after which callers may try again.
        """
        self._stop = restarting(retry_after)
        for wait in tuple(self._waits):
            wait.cancel()

    def deadline(self) -> float:
        """Return until when a caller who comes now may be held."""
        return anyio.current_time() + self._limit

    async def enter(self, until: float) -> None:
        """Return once work is taken.

        Raises:
            Refusal: the stop has come, or it took too long.
        """
        if self._opened.is_set() and self._stop is None:
            return
        if not await self._wait(self._opened, until):
            raise busy(f"{self._passed} and the workspace has not started yet", _BOOT_RETRY)

    async def wait(self, event: anyio.Event, until: float) -> None:
        """Wait for an event that concerns a message which was accepted.

        Raises:
            Refusal: the stop has come, or it took too long.
        """
        if not await self._wait(event, until):
            why = f"{self._passed}; the message is kept and worked on: send it again to wait on"
            raise busy(why, _HELD_RETRY, taken=True)

    @property
    def _passed(self) -> str:
        return f"WORKSPACE_HOLD_LIMIT={self._limit:g} s have passed"

    async def _wait(self, event: anyio.Event, until: float) -> bool:
        if self._stop is None:
            with anyio.CancelScope(deadline=until) as scope:
                self._waits.add(scope)
                try:
                    await event.wait()
                    return True
                finally:
                    self._waits.discard(scope)
        if self._stop is not None:
            raise self._stop
        return False
