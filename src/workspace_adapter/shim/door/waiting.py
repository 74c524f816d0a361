"""Open requests wait on rows, on whichever replica they are.

Whoever waits listens first and reads then, so no word is missed. A word that is lost
between replicas costs until the next glance, which asks once for all that are waited for.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import anyio

from ...errors import StoreUnavailable, WorkspaceAdapterError
from ...queueing import ENDED
from ..store.contract import Item, Queue

logger = logging.getLogger(__name__)

GLANCE = 1.0
"""Seconds between two looks at what is waited for."""


class Stopping(WorkspaceAdapterError):
    """The shim is about to end; what was queued stays queued."""


class Ring:
    """What one listener hears of one item."""

    def __init__(self, *, of_stream: bool) -> None:
        self.of_stream = of_stream
        """It is rung for more events, too."""
        self.ended = False
        """The item has ended, or is gone; it can be read."""
        self._event = anyio.Event()

    def ring(self) -> None:
        """Something happened to the item."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until it rang since the last wait; return whether it did in this time."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        rang = self._event.is_set()
        self._event = anyio.Event()
        return rang


class Waiters:
    """Everybody who waits for an item, up to a limit.

    Args:
        most: who may be held open at once.
    """

    def __init__(self, store: Queue, *, most: int, glance: float = GLANCE) -> None:
        self._store = store
        self._most = most
        self._glance = glance
        self._rings: dict[int, set[Ring]] = {}
        self._held = 0
        self._stopping = False
        self._left = anyio.Event()

    # --- words --------------------------------------------------------------------------

    def ended(self, item_id: int) -> None:
        """An item ended: the store's ``on_ended``."""
        for ring in self._rings.get(item_id, ()):
            ring.ended = True
            ring.ring()

    def said(self, item_id: int) -> None:
        """The stream of an item has more events: the store's ``on_said``."""
        for ring in self._rings.get(item_id, ()):
            if ring.of_stream:
                ring.ring()

    async def run(self) -> None:
        """Make up for words that were lost, until it is cancelled."""
        while True:
            await anyio.sleep(self._glance)
            if not self._rings:
                continue
            waited_for = list(self._rings)
            try:
                for item_id in await self._store.ended(waited_for):
                    self.ended(item_id)
            except StoreUnavailable as error:
                logger.debug("callers wait on without a look at the store: %s", error)
            for item_id in waited_for:
                self.said(item_id)

    def stop(self) -> None:
        """Send everybody away who waits, and whoever comes later."""
        self._stopping = True
        for rings in self._rings.values():
            for ring in rings:
                ring.ring()
        if not self._held:
            self._left.set()

    async def left(self) -> None:
        """Return once everybody who was sent away has gone."""
        await self._left.wait()

    # --- waiting ------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Requests held open now."""
        return self._held

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Take a place; yield whether there was one."""
        free = self._held < self._most
        self._held += free
        try:
            yield free
        finally:
            self._held -= free
            if self._stopping and not self._held:
                self._left.set()

    @contextmanager
    def listen(self, item_id: int, *, of_stream: bool) -> Iterator[Ring]:
        """Hear of an item from here on: that it ended, and with ``of_stream`` that it has more events."""
        ring = Ring(of_stream=of_stream)
        self._rings.setdefault(item_id, set()).add(ring)
        try:
            yield ring
        finally:
            listening = self._rings[item_id]
            listening.discard(ring)
            if not listening:
                del self._rings[item_id]

    def check(self) -> None:
        """Refuse to wait on.

        Raises:
            Stopping: the shim is about to end.
        """
        if self._stopping:
            raise Stopping("the platform is restarting")

    async def until_ended(self, item_id: int, seconds: float, *, new: bool = False) -> Item | None:
        """Return an item once it has ended; ``None``: it has not in this time, or is gone.

        A store that cannot be read is waited for as well.

        Args:
            new: it was queued a moment ago, so nobody needs to look first.

        Raises:
            Stopping: the shim is about to end.
        """
        until = anyio.current_time() + seconds
        with self.listen(item_id, of_stream=False) as ring:
            ring.ended = not new
            while True:
                if ring.ended:
                    ring.ended = False
                    with suppress(StoreUnavailable):
                        item = await self._store.item(item_id)
                        if item is None or item.state in ENDED:
                            return item
                self.check()
                left = until - anyio.current_time()
                if left <= 0:
                    return None
                await ring.wait(left)


_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.ASCII | re.IGNORECASE)
_ASYNC = re.compile(r"(?:^|[,;])\s*respond-async\s*(?:$|[,;])", re.IGNORECASE)


def patience(headers: Mapping[str, str], limit: float) -> float:
    """Return the seconds that a caller is held: what it asks for, at most the limit.

    ``Prefer: wait=n`` (``respond-async`` alone is not at all) and ``X-Timeout``; the least counts.
    What makes no sense is not asked for.
    """
    wanted = [limit]
    prefer = headers.get("prefer", "")
    if found := _WAIT.search(prefer):
        wanted.append(float(found[1]))
    elif _ASYNC.search(prefer):
        wanted.append(0.0)
    with suppress(ValueError):
        sent = float(headers["x-timeout"]) if "x-timeout" in headers else math.nan
        if sent >= 0:
            wanted.append(sent)
    return min(wanted)
