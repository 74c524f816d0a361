"""The emptying of the queue: a heartbeat causes it, and a sweeper on a timer."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import anyio.abc

from .answers import parsed
from .delegations import Delegations
from .proxy import GATEWAY, Outcome, Proxy
from .queue import Item, Queue
from .row import Row, Status
from .times import Times

_SWEPT_AT_ONCE = 8
"""Items one sweep dispatches at most."""


class Dispatcher:
    """What carries queued messages to the workspace.

    Args:
        answered: told of the answer to each message from the canvas.
    """

    def __init__(
        self,
        *,
        row: Row,
        queue: Queue,
        proxy: Proxy,
        delegations: Delegations,
        times: Times,
        max_concurrent: int,
        answered: Callable[[str, object], None],
    ) -> None:
        self._row = row
        self._queue = queue
        self._proxy = proxy
        self._delegations = delegations
        self._times = times
        self._max_concurrent = max_concurrent
        self._answered = answered

    def beat(self, tasks: anyio.abc.TaskGroup) -> None:
        """Dispatch what a workspace has room for that has just said so."""
        room = self._max_concurrent - self._row.active_tasks
        if room > 0:
            tasks.start_soon(self.empty, room)

    async def sweep(self) -> None:
        """Look again and again, whatever the workspace says of its load."""
        while True:
            await anyio.sleep(self._times.sweep)
            heard = self._row.status in (Status.ONLINE, Status.DEGRADED)
            if heard and self._queue.due(time.monotonic()):
                await self.empty(min(self._max_concurrent, _SWEPT_AT_ONCE))

    async def empty(self, capacity: int) -> None:
        """Dispatch so many, one after the other; none while a boot turn is under way."""
        if self._row.boot_turn:
            return
        for turn in range(capacity):
            item = self._queue.claim(time.monotonic())
            if item is None:
                return
            if turn == 0 and not self._row.url and self._row.status in _SETTLING:
                self._later(item, "workspace has no URL yet")
                continue
            self._settle(item, await self._proxy.send(item.body, caller=item.caller))

    def _settle(self, item: Item, outcome: Outcome) -> None:
        if outcome.status == 202:
            self._queue.complete(item, None)  # believed to be queued again: here it is lost
        elif outcome.error is None:
            response = parsed(outcome.body)
            if response is None:
                return  # the column is JSON: the row stays dispatched for ever
            self._queue.complete(item, response)
            self._delegations.stitch(item.message_id, response)
            if item.caller is None:
                self._answered(item.message_id, response)
        elif outcome.status in GATEWAY and not outcome.dead and self._row.recently_alive(time.monotonic()):
            self._later(item, outcome.error)
        else:
            self._queue.fail(item, outcome.error)

    def _later(self, item: Item, error: str) -> None:
        if not self._queue.retry_later(item, error, time.monotonic()):
            self._delegations.stitch(item.message_id, None, dropped=True)


_SETTLING = (Status.PROVISIONING, Status.AWAITING_AGENT)
