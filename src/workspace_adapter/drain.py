"""The drain: from "restart pending" to "safe to stop".

A pure state machine; ``sidecar/drainer.py`` is its moving half::

    SERVING ──begin──► DRAINING ──settled, or the cap──► DRAINED ──stop──► STOPPING
       ▲                  │                                 │
       └────────── the window passed without a stop ────────┘

Nothing is cut here. Draining closes the gate and starts no turn; what runs goes on
until it ends, its next call is held, or the stop comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .ledger import Running


class DrainState(StrEnum):
    """Where the workspace stands."""

    SERVING = "serving"  #: the gate is open
    DRAINING = "draining"  #: the gate is closed; waiting for turns to settle
    DRAINED = "drained"  #: acknowledged; waiting for the stop
    STOPPING = "stopping"  #: the stop has come; there is no way back


class Command(StrEnum):
    """What the moving half has to do, in this order."""

    CLOSE_GATE = "close-gate"  #: no permit, no start from this instant on
    ACKNOWLEDGE = "acknowledge"  #: mark the settled turns, then answer every waiting caller
    OPEN_GATE = "open-gate"  #: held calls go on, parked turns continue
    STOP = "stop"  #: end runtimes, close the journal, exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an acknowledged drain has to say."""

    finished: int
    """Turns that ended since the drain began, parked ones not counted."""
    parked: tuple[str, ...]
    held: tuple[str, ...]
    running: tuple[str, ...]
    """Turns that nothing could settle within the cap; they go on."""
    took: float
    """Seconds."""

    @property
    def drained(self) -> bool:
        """Whether stopping now cuts nothing."""
        return not self.running

    def as_json(self) -> dict[str, object]:
        """The result of the acknowledgement on the wire."""
        return {
            "acknowledged": True,
            "drained": self.drained,
            "finished": self.finished,
            "parked": list(self.parked),
            "held": list(self.held),
            "running": list(self.running),
            "took_ms": round(self.took * 1000),
        }


class Drain:
    """The drain of one workspace. Every method is told ``now``, in monotonic seconds."""

    def __init__(self, *, window: float) -> None:
        self.window = window
        """Seconds an acknowledged drain waits for the stop."""
        self.state = DrainState.SERVING
        self.report: Report | None = None
        """Of the drain under way, once it is acknowledged."""
        self._began = 0.0
        self._cap_at = 0.0
        self._acknowledged_at = 0.0
        self._window_until = 0.0
        self._stop_when_done = False
        self._finished = 0
        self._parked: list[str] = []

    @property
    def gate_open(self) -> bool:
        """Whether permits are given and turns started."""
        return self.state is DrainState.SERVING

    @property
    def deadline(self) -> float | None:
        """When :meth:`look` must be called next, whatever happens."""
        match self.state:
            case DrainState.DRAINING:
                return self._cap_at
            case DrainState.DRAINED:
                return self._window_until
            case _:
                return None

    def begin(
        self,
        running: Iterable[Running],
        *,
        now: float,
        cap: float,
        stop: bool = False,
        signed: bool = True,
    ) -> list[Command]:
        """Somebody says that a restart is pending.

        A second call joins the drain that is under way, and extends the window of one
        that was acknowledged.

        Args:
            running: the ledger's turns.
            cap: seconds to wait for turns to settle.
            stop: the caller will not come back with a stop: stop by yourself when done.
            signed: the caller proved who it is. Who did not can double the window at most:
                a stranger must not keep the gate closed for ever.
        """
        if self.state is DrainState.STOPPING:
            return []
        self._stop_when_done = self._stop_when_done or stop
        commands = []
        if self.state is DrainState.SERVING:
            self.state = DrainState.DRAINING
            self._began, self._cap_at = now, now + cap
            self._finished, self._parked, self.report = 0, [], None
            commands = [Command.CLOSE_GATE]
        elif self.state is DrainState.DRAINED:
            until = now + self.window
            if not signed:
                until = min(until, self._acknowledged_at + 2 * self.window)
            self._window_until = max(self._window_until, until)
            if stop and self.report is not None and not self.report.drained:
                # What could not settle for the earlier caller gets this one's time as well.
                self.state = DrainState.DRAINING
                self._cap_at = now + cap
        elif stop:
            # Who stops us has the last word on how long there is, be it more or less.
            self._cap_at = now + cap
        return commands + self.look(running, now=now)

    def turn_ended(self, turn_id: str, *, parked: bool) -> None:
        """A turn ended; call :meth:`look` after it."""
        if self.state is DrainState.SERVING:
            return
        if parked:
            self._parked.append(turn_id)
        else:
            self._finished += 1

    def look(self, running: Iterable[Running], *, now: float) -> list[Command]:
        """Decide again: after every change of a running turn, and at the deadline."""
        turns = tuple(running)
        if self.state is DrainState.DRAINED and self._stop_when_done:
            self.state = DrainState.STOPPING
            return [Command.STOP]
        if self.state is DrainState.DRAINED and now >= self._window_until:
            self.state = DrainState.SERVING
            return [Command.OPEN_GATE]
        if self.state is not DrainState.DRAINING:
            return []
        unsettled = tuple(turn.turn_id for turn in turns if not turn.settled)
        if unsettled and now < self._cap_at:
            return []
        self.report = Report(
            finished=self._finished,
            parked=tuple(self._parked),
            held=tuple(turn.turn_id for turn in turns if turn.held and not turn.open),
            running=unsettled,
            took=now - self._began,
        )
        self.state = DrainState.DRAINED
        self._acknowledged_at, self._window_until = now, now + self.window
        if self._stop_when_done:
            self.state = DrainState.STOPPING
            return [Command.ACKNOWLEDGE, Command.STOP]
        return [Command.ACKNOWLEDGE]

    def stop(self) -> list[Command]:
        """Stop now, settled or not."""
        if self.state is DrainState.STOPPING:
            return []
        commands = [Command.CLOSE_GATE] if self.state is DrainState.SERVING else []
        self.state = DrainState.STOPPING
        return [*commands, Command.STOP]
