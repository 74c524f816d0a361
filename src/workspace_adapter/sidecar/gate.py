"""The switch every tool call passes."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..adapter import AtClosedGate, Permit
from ..errors import JournalUnavailable
from ..events import ToolCall
from ..ledger import Running
from .insist import insist
from .journal import Journal

UNWRITABLE = "journal"
"""Who closes the switch while the journal cannot be written."""


class Switch:
    """Open unless somebody holds it closed; one for the whole workspace."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """It was closed or opened."""
        self._closed_by: set[str] = set()
        self._opens = anyio.Event()

    @property
    def opened(self) -> bool:
        """Whether permits are given and turns started."""
        return not self._closed_by

    @property
    def closed_by(self) -> tuple[str, ...]:
        """Who holds it closed."""
        return tuple(sorted(self._closed_by))

    def close(self, who: str) -> None:
        """Close it, from this instant on."""
        self._closed_by.add(who)
        self.on_change()

    def open(self, who: str) -> bool:
        """Take back one's own closing; return whether that opened it."""
        if who not in self._closed_by:
            return False
        self._closed_by.discard(who)
        if self._closed_by:
            return False
        self._opens.set()
        self._opens = anyio.Event()
        self.on_change()
        return True

    async def wait_opened(self) -> None:
        """Return once it is open."""
        while not self.opened:
            await self._opens.wait()


class SessionGate:
    """The gate as one session meets it: the switch, the ledger and the journal behind it."""

    def __init__(
        self,
        *,
        switch: Switch,
        journal: Journal,
        at_closed: AtClosedGate | None,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._switch = switch
        self._journal = journal
        self._at_closed = at_closed
        self._clock = clock
        self._on_change = on_change
        self._running: Running | None = None
        self._refused = anyio.Event()
        self.met_unwritable = False
        """Whether the attempt found the gate closed because the journal could not be written."""
        self._on_call: Callable[[ToolCall], None] = lambda call: None
        self._on_end: Callable[[str, bool], None] = lambda call_id, ok: None

    def begin(
        self,
        running: Running,
        *,
        on_call: Callable[[ToolCall], None],
        on_end: Callable[[str, bool], None],
    ) -> None:
        """Let this turn's calls ask; ``on_call`` and ``on_end`` hear of those that run."""
        self._running, self._on_call, self._on_end = running, on_call, on_end
        self._refused = anyio.Event()
        self.met_unwritable = False

    @property
    def refused(self) -> bool:
        """Whether the turn was canceled, or is over."""
        return self._refused.is_set()

    def refuse(self) -> None:
        """Answer ``PARKED`` from now on, to held calls too: the turn was canceled."""
        self._refused.set()

    def end(self) -> None:
        """The turn's attempt is over, its calls with it; a late call of it gets no permit."""
        if self._running is not None:
            self._running.open.clear()
        self._running = None
        self.refuse()

    @property
    def closed(self) -> bool:
        """Whether the switch is closed, for every session."""
        return not self._switch.opened

    def opened(self) -> bool:
        """Whether this session's gate is open now; what finds it closed may end its attempt."""
        self.met_unwritable |= UNWRITABLE in self._switch.closed_by
        return self._switch.opened and not self._refused.is_set()

    async def ask(self, call: ToolCall) -> Permit:
        """Say whether ``call`` may start; the permit is on disk before this returns."""
        if not isinstance(call, ToolCall):
            raise TypeError(f"the gate is asked about a ToolCall, not {type(call).__name__}")
        running = self._running
        while running is not None and not self._refused.is_set():
            if not self.opened():
                await self._record_asked(running, call)
                if self._at_closed is not AtClosedGate.HOLD:
                    return Permit.PARKED
                await self._hold(running, call)
            elif await self._permit(running, call):
                self._on_call(call)
                return Permit.GRANTED
        return Permit.PARKED

    async def ended(self, call_id: str, *, ok: bool = True) -> None:
        """Record that a permitted call ended; on disk before this returns."""
        running, ok = self._running, bool(ok)
        if running is None or call_id not in running.open:
            return
        await insist(
            lambda: self._journal.end_call(
                running.turn_id, running.attempt, call_id, ok=ok, now=self._clock()
            )
        )
        running.open.discard(call_id)
        self._on_end(call_id, ok)
        self._on_change()

    async def _permit(self, running: Running, call: ToolCall) -> bool:
        # Open before the write begins: a drain must not take the turn for settled meanwhile.
        running.open.add(call.id)
        granted = False
        try:
            if not await self._journal.permit(running.turn_id, running.attempt, call, now=self._clock()):
                self.refuse()
                return False
            granted = self.opened()
            if not granted:
                await self._journal.withdraw(running.turn_id, running.attempt, call.id, now=self._clock())
            return granted
        except JournalUnavailable:
            self._switch.close(UNWRITABLE)
            return False
        finally:
            if not granted:
                running.open.discard(call.id)
                self._on_change()

    async def _hold(self, running: Running, call: ToolCall) -> None:
        running.held.add(call.id)
        self._on_change()
        try:
            async with anyio.create_task_group() as waits:
                waits.start_soon(self._wake, waits.cancel_scope, self._switch.wait_opened)
                waits.start_soon(self._wake, waits.cancel_scope, self._refused.wait)
        finally:
            running.held.discard(call.id)
            self._on_change()

    @staticmethod
    async def _wake(scope: anyio.CancelScope, wait: Callable[[], object]) -> None:
        await wait()  # type: ignore[misc]
        scope.cancel()

    async def _record_asked(self, running: Running, call: ToolCall) -> None:
        try:
            await self._journal.ask(running.turn_id, running.attempt, call, now=self._clock())
        except JournalUnavailable:
            # Only the recovery note is poorer for it: the call was never started.
            self._switch.close(UNWRITABLE)
