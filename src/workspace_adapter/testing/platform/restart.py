"""The restart cycle: signal, stop, start, and the turn that tells the agent of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
import anyio.abc
import anyio.to_thread
import httpx

from .container import Container
from .envelope import SYSTEM, restart_context, restart_pending
from .gojson import encode
from .proxy import Proxy
from .queue import RESTART_CONTEXT_PRIORITY, Queue
from .row import Row, Status
from .times import Times
from .tokens import Tokens


@dataclass(frozen=True, slots=True)
class Signalled:
    """One signal, and what came of it."""

    at: float
    """On the monotonic clock."""
    status: int | None
    """``None`` when no answer came."""
    body: bytes = b""


class Restarts:
    """What restarts one workspace.

    Args:
        has_greeted: whether the agent has met its user; before, it is told of no restart.
    """

    def __init__(
        self,
        *,
        workspace_id: str,
        row: Row,
        queue: Queue,
        tokens: Tokens,
        times: Times,
        container: Container | None,
        has_greeted: bool,
    ) -> None:
        self._workspace_id = workspace_id
        self._row = row
        self._queue = queue
        self._tokens = tokens
        self._times = times
        self._container = container
        self._has_greeted = has_greeted
        self._running = False
        self._pending = False
        self._provisioning = anyio.Lock()
        self.proxy: Proxy
        self.tasks: anyio.abc.TaskGroup
        self.signals: list[Signalled] = []
        self.cycles = 0
        """Containers stopped and started."""
        self.debounced = 0
        """Requests dropped because the last cycle was too young."""
        self.contexts: list[str] = []
        """What became of each restart context: delivered, queued or dropped."""

    # --- requests -------------------------------------------------------------------

    def by_id(self, *, after_mutation: bool = False) -> None:
        """Restart as the platform does by itself: N requests make two cycles at most.

        Args:
            after_mutation: whether something changed that only a restart applies, such as a
                plugin: then no request is too early.
        """
        began = self._row.restart_started_at
        if not after_mutation and began is not None and time.monotonic() - began < self._times.debounce:
            self.debounced += 1
        elif self._running:
            self._pending = True
        else:
            self._running = True
            self.tasks.start_soon(self._coalesced)

    def by_button(self) -> None:
        """Restart as the button does: no signal, and nobody else learns that a restart runs."""
        self.tasks.start_soon(self._stop_and_start)

    async def signal(self) -> None:
        """Say that a restart is pending; the answer changes nothing."""
        url, now = self._row.url, time.monotonic()
        self._row.draining_since = now
        try:
            with anyio.fail_after(self._times.signal):
                async with httpx.AsyncClient(verify=False, trust_env=False, timeout=None) as client:
                    answer = await client.post(
                        f"{url}/signals/restart_pending",
                        content=encode(restart_pending(self._workspace_id)),
                        headers={"Content-Type": "application/json", "X-Restart-Signal": "true"},
                    )
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL):
            self._row.draining_since = None
            self.signals.append(Signalled(now, None))
        else:
            self.signals.append(Signalled(now, answer.status_code, answer.content))

    # --- one cycle ------------------------------------------------------------------

    async def _coalesced(self) -> None:
        try:
            while True:
                self._pending = False
                self._row.restart_started_at = time.monotonic()
                self._row.restarting = True
                if self._row.status is Status.PROVISIONING:
                    await anyio.sleep(self._times.interrupted_provisioning)
                self.tasks.start_soon(self.signal)
                await self._stop_and_start()
                self._row.restarting = False
                if not self._pending:
                    return
        finally:
            self._running = self._row.restarting = False

    async def _stop_and_start(self) -> None:
        row, container = self._row, self._container
        if container is None:
            return
        async with self._provisioning:
            ended = time.monotonic()
            await anyio.to_thread.run_sync(container.stop)
            row.url, row.status = "", Status.PROVISIONING
            row.alive_until = row.draining_since = None
            row.boot_turn = self._has_greeted
            self._tokens.provision()
            started = time.monotonic()
            await anyio.to_thread.run_sync(container.start)
            row.url = row.provisioned_url or row.url  # which may have been registered by now
            self.cycles += 1
            if self._has_greeted:
                self.tasks.start_soon(self._tell, ended, started)

    async def _tell(self, ended: float, started: float) -> None:
        """Tell the agent that it was restarted, before anybody else is heard."""
        try:
            self.contexts.append(await self._told(ended, started))
        finally:
            self._row.boot_turn = False

    async def _told(self, ended: float, started: float) -> str:
        row, times = self._row, self._times
        with anyio.move_on_after(times.until_online) as waited:
            while row.status is not Status.ONLINE:  # noqa: ASYNC110  # as it does
                await anyio.sleep(times.poll)
        turn = restart_context(self._workspace_id, ended_seconds_ago=time.monotonic() - ended)
        if waited.cancelled_caught:
            self._queue.enqueue(
                turn,
                caller=None,
                now=time.monotonic(),
                key=f"restart-context-{self._workspace_id}",
                priority=RESTART_CONTEXT_PRIORITY,
                ttl=times.restart_context_ttl,
            )
            return "queued"
        with anyio.move_on_after(times.until_beating) as waited:
            while not row.url or row.heartbeat_at is None or row.heartbeat_at < started:  # noqa: ASYNC110
                await anyio.sleep(times.poll)
        if waited.cancelled_caught:
            return "dropped"
        outcome = await self.proxy.send(turn, caller=f"{SYSTEM}restart-context")
        return "delivered" if outcome.error is None else "dropped"
