"""What is done on a timer, because nobody rings for it: times that pass, workspaces that fall silent.

Every replica sweeps. Each part is safe to do twice at once, has a timer of its own that
is a little irregular, and waits for no workspace: one that is slow, or fails, holds up
no other.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from ..errors import StoreUnavailable
from .store.contract import Store

logger = logging.getLogger(__name__)

MOST = 500
"""Rows one statement changes; there is another while it found as many."""

SELDOM = 30
"""Intervals between two looks for what is older than the retention."""


class Sweeper:
    """Sweeps until cancelled.

    Args:
        ring: told of each workspace that may have something to send.
        stranded: looks at what waits for workspaces to which nothing can be sent.
        silent: told of a workspace that fell silent.
        interval: seconds between two sweeps, at most.
        offline_after: seconds of silence after which a workspace counts as offline. One that never beat
            is provisioning, or beats to nobody.
        jitter: gives a number between 0 and 1.
    """

    def __init__(
        self,
        store: Store,
        *,
        ring: Callable[[str], None],
        stranded: Callable[[], Awaitable[None]],
        silent: Callable[[str], None] = lambda _: None,
        interval: float = 1.0,
        offline_after: float = 30.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._ring = ring
        self._stranded = stranded
        self._silent = silent
        self._interval = interval
        self._offline_after = offline_after
        self._jitter = jitter
        self._failing: set[str] = set()
        self._hears_since = 0.0
        """Before, or while the store was away, no beat could be heard: nobody was silent."""

    async def run(self) -> None:
        """Sweep until cancelled."""
        interval, self._hears_since = self._interval, anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._every, interval, "promote", self._promote)
            tasks.start_soon(self._every, interval, "due", self._due)
            tasks.start_soon(self._every, interval, "expire", self._expire)
            tasks.start_soon(self._every, max(interval, self._offline_after / 10), "offline", self._offline)
            tasks.start_soon(self._every, 5 * interval, "stranded", self._stranded)
            tasks.start_soon(self._every, SELDOM * interval, "forget", self._forget)

    async def _every(self, seconds: float, what: str, part: Callable[[], Awaitable[None]]) -> None:
        while True:
            # A word that was lost costs one interval, and no more.
            await anyio.sleep(seconds * (0.7 + self._jitter() / 4))
            try:
                await part()
            except StoreUnavailable as error:
                if not self._failing:
                    logger.warning("the store cannot be used, nothing is dispatched: %s", error)
                self._failing.add(what)
                self._hears_since = anyio.current_time()
            else:
                if what in self._failing:
                    self._failing.remove(what)
                    if not self._failing:
                        logger.warning("the store can be used again")

    async def _promote(self) -> None:
        while await self._store.promote(most=MOST) == MOST:
            pass

    async def _due(self) -> None:
        for workspace_id in await self._store.due():
            self._ring(workspace_id)

    async def _expire(self) -> None:
        while await self._store.expire(most=MOST) == MOST:
            pass

    async def _forget(self) -> None:
        while await self._store.forget(most=MOST) == MOST:
            pass

    async def _offline(self) -> None:
        if anyio.current_time() - self._hears_since < self._offline_after:
            return
        for workspace_id in await self._store.fell_silent(self._offline_after):
            logger.warning(
                "workspace %s counts as offline: it has not beaten for %g s",
                workspace_id,
                self._offline_after,
            )
            self._silent(workspace_id)
