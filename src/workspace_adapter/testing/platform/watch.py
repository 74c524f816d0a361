"""What the platform does about a workspace that says nothing: look, ask, restart."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from .envelope import self_turn
from .queue import Queue
from .row import Row, Status
from .times import Times

_PROBE = (
    "You have been busy for a while without a sign of progress. If you are still working, say in one line"
    " what you are doing; if you are stuck, say so."
)


class Watch:
    """Three sweeps over one workspace: liveness, stall, phantom tasks.

    Args:
        restart: asked to restart a workspace that is offline or stalled.
    """

    def __init__(
        self, *, workspace_id: str, row: Row, queue: Queue, times: Times, restart: Callable[[], None]
    ) -> None:
        self._workspace_id = workspace_id
        self._row = row
        self._queue = queue
        self._times = times
        self._restart = restart
        self._probed_at: float | None = None
        self._restarted_at: float | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await anyio.sleep(self._times.sweep)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look once."""
        row = self._row
        if row.alive_until is not None and now >= row.alive_until:
            row.alive_until = None
            if row.status in (Status.ONLINE, Status.DEGRADED):
                row.status = Status.OFFLINE
                self._restart()
        self._look_for_stall(now)
        if row.active_tasks > 0 and self._silence(now) >= self._times.phantom:
            row.active_tasks = 0

    def _look_for_stall(self, now: float) -> None:
        if self._probed_at is not None:
            if (self._row.active_at or 0.0) > self._probed_at:
                self._probed_at = None
            elif now - self._probed_at >= self._times.stall_grace:
                self._probed_at = None
                if self._restarted_at is None or now - self._restarted_at >= self._times.stall_cooldown:
                    self._restarted_at = now
                    self._restart()
        elif self._row.active_tasks > 0 and self._silence(now) >= self._times.silent:
            self._probed_at = now
            turn = self_turn(self._workspace_id, "self-stall", _PROBE, kind="stall_probe")
            self._queue.enqueue(turn, caller=None, now=now)

    def _silence(self, now: float) -> float:
        return now - self._row.active_at if self._row.active_at is not None else 0.0
