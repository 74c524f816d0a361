"""The drain's moving half: clock in, commands out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import anyio

from ..drain import Command, Drain, DrainState, Report
from ..errors import JournalUnavailable
from ..ledger import Ledger
from ..turns import TOLD, State
from ..wire import RestartSignal
from .durations import WAITS, Durations
from .gate import Switch
from .journal import Journal

logger = logging.getLogger(__name__)

CLOSED_BY = "drain"

KEPT = "drains"
"""The key under which the journal keeps what drains took: a stop, as a rule, follows each."""


class SignalTooSoon(Exception):
    """An unsigned signal came sooner than a window after the gate reopened."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("an unsigned signal was heard a moment ago and no restart came")
        self.retry_after = retry_after
        """Seconds."""


class Drainer:
    """Carries out what ``drain.Drain`` decides."""

    def __init__(
        self,
        *,
        drain: Drain,
        ledger: Ledger,
        switch: Switch,
        cap: float,
    ) -> None:
        self._drain = drain
        self._ledger = ledger
        self._switch = switch
        self.cap = cap
        """Seconds a drain waits unless its caller says less."""
        self.journal: Journal | None = None
        """Where settled turns are marked; before it is open nothing runs that could be."""
        self.took = Durations(WAITS)
        """What drains took until they were acknowledged, also those of earlier lives."""
        self.reopen: Callable[[], None] = lambda: None
        """Called when turns may start again."""
        self._changed = anyio.Event()
        self._acknowledged = anyio.Event()
        self._pending: list[Command] = []
        self._deaf_until = 0.0
        self._signed = True
        self.stopping = anyio.Event()
        """Set when the stop has come."""

    @property
    def state(self) -> DrainState:
        """Where the workspace stands."""
        return self._drain.state

    async def signal(self, signal: RestartSignal, *, signed: bool) -> Report:
        """A platform says that a restart is pending.

        Raises:
            SignalTooSoon: it is not signed, and another unsigned one was heard in vain.
        """
        now = time.monotonic()
        if not signed and self._drain.state is DrainState.SERVING and now < self._deaf_until:
            raise SignalTooSoon(self._deaf_until - now)
        return await self.begin("restart signal", cap=min(self.cap, signal.patience), signed=signed)

    async def begin(self, why: str, *, cap: float, stop: bool = False, signed: bool = True) -> Report:
        """Begin a drain or join the one under way; return its report once acknowledged.

        Args:
            why: for the log.
            cap: seconds to wait for turns to settle.
            stop: stop by ourselves when it is over.
            signed: whether who asks has proved who it is.
        """
        self._signed = self._signed or signed
        if self._drain.state is DrainState.SERVING:
            self._acknowledged, self._signed = anyio.Event(), signed
            logger.info("drain begins: %s; %d turns running, cap %.3g s", why, len(self._ledger), cap)
        else:
            logger.info("drain joined: %s; it is %s", why, self._drain.state)
        self._take(self._drain.begin(self._ledger, now=time.monotonic(), cap=cap, stop=stop, signed=signed))
        await self._acknowledged.wait()
        report = self._drain.report
        if report is None:  # stopped before anything was acknowledged
            running = tuple(turn.turn_id for turn in self._ledger)
            report = Report(finished=0, parked=(), held=(), running=running, took=0.0)
        return report

    def stop_now(self) -> None:
        """Stop without waiting for anybody to settle."""
        logger.warning("stop now: told twice")
        self._take(self._drain.stop())

    def turn_left(self, turn_id: str, state: State | None) -> None:
        """A turn left the ledger; the drain may be over. Only an end or a parking is reported."""
        if state is State.PARKED or state in TOLD:
            self._drain.turn_ended(turn_id, parked=state is State.PARKED)
        self.look()

    def look(self) -> None:
        """Something about a running turn changed."""
        self._take(self._drain.look(self._ledger, now=time.monotonic()))

    async def run(self) -> None:
        """Carry out commands until the stop has come."""
        while not self.stopping.is_set():
            while self._pending:
                await self._carry_out(self._pending.pop(0))
            changed, deadline = self._changed, self._drain.deadline
            if self._pending or self.stopping.is_set():
                continue
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            with anyio.move_on_after(wait):
                await changed.wait()
            self.look()

    def _take(self, commands: list[Command]) -> None:
        """Close the gate in this very step; leave what has to wait for the disk to ``run``."""
        for command in commands:
            if command is Command.CLOSE_GATE:
                self._switch.close(CLOSED_BY)
            else:
                self._pending.append(command)
        self._changed.set()
        self._changed = anyio.Event()

    async def _carry_out(self, command: Command) -> None:
        match command:
            case Command.ACKNOWLEDGE:
                await self._acknowledge()
            case Command.OPEN_GATE:
                await self._open_gate()
            case Command.STOP:
                self._acknowledged.set()
                self.stopping.set()

    async def _acknowledge(self) -> None:
        report = self._drain.report
        if report is not None:
            self.took.observe(report.took)
            if self.journal is not None:
                self.journal.note(KEPT, self.took.as_text())
            settled = [*report.parked, *report.held]
            try:
                if self.journal is not None and settled:
                    await self.journal.settle(settled)
            except JournalUnavailable:
                logger.warning("the settled turns could not be marked: their next attempt counts")
            logger.info(
                "drain acknowledged after %.3f s: %d finished, %d parked, %d held, %d still running",
                report.took,
                report.finished,
                len(report.parked),
                len(report.held),
                len(report.running),
            )
        self._acknowledged.set()

    async def _open_gate(self) -> None:
        logger.warning("no restart came within the window: work goes on")
        if not self._signed:
            self._deaf_until = time.monotonic() + self._drain.window
        try:
            if self.journal is not None:
                await self.journal.unsettle()
        except JournalUnavailable:
            logger.warning("the settled turns could not be unmarked: their next attempt is free")
        # A signal that came while that was written has closed it again.
        if self._drain.gate_open and self._switch.open(CLOSED_BY):
            self.reopen()
