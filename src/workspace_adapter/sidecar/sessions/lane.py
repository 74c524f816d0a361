"""One session's runtime: opened, given its turns, stopped and left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from ...adapter import RuntimeAdapter, RuntimeSession, SessionContext, StopReason, TurnRequest
from ...errors import AdapterError, ContractBroken
from ...events import SessionBound, ToolCall, TurnFinished, Usage
from ...ledger import Running
from ...turns import State, Turn
from ..children import LifeChildren
from ..fence import fence
from ..gate import SessionGate
from ..insist import insist
from ..journal import Journal
from .ends import End, failed, finished, idle
from .eventlog import EventLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Settings of the sessions; seconds and counts."""

    open_sessions: int
    session_idle: float
    turn_idle: float
    grace: float
    """How long a runtime gets to stop, and its context to be left, before it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every lane of a workspace stands on."""

    adapter: RuntimeAdapter
    journal: Journal
    environ: Mapping[str, str]
    workdir: Path
    adapter_dir: Path
    bounds: Bounds


class Lane:
    """What one task drives; only :meth:`give`, :meth:`leave`, :meth:`look_for_silence`,
    :meth:`stop_attempt`, :meth:`ask_to_stop` and :meth:`kill` are called from others.

    Args:
        helpers: who stops this lane's runtime, and speaks to it meanwhile.
        make_room: returns when one more session may be opened.
        after: the lane that drove this session before has left.
    """

    def __init__(
        self,
        session_id: str,
        *,
        ground: Ground,
        gate: SessionGate,
        helpers: TaskGroup,
        make_room: Callable[[], Awaitable[None]],
        after: anyio.Event | None,
    ) -> None:
        self.session_id = session_id
        self.gate = gate
        self.after = after
        self.scope = anyio.CancelScope()
        """Encloses everything the lane does; cancelled when nothing less ends its runtime."""
        self.left = anyio.Event()
        self.leaving = False
        self.running: Running | None = None
        self.working: tuple[Turn, EventLog] | None = None
        """The attempt under way, until its end is written."""
        self.last_used = time.monotonic()
        self._ground = ground
        self._bounds = ground.bounds
        self._helpers = helpers
        self._make_room = make_room
        self._given = anyio.Event()
        self._session: RuntimeSession | None = None
        self._children: LifeChildren | None = None
        self._stack: AsyncExitStack | None = None
        self._attempt: anyio.CancelScope | None = None
        self._over = anyio.Event()
        self._over.set()
        self._end: End | None = None
        self._idled = False
        self._last_sign = time.monotonic()

    # --- its turns --------------------------------------------------------------------

    def give(self, running: Running) -> None:
        """Hand over the session's next turn."""
        self.running = running
        self._given.set()

    def leave(self) -> None:
        """End the lane as soon as it has no turn."""
        self.leaving = True
        self._given.set()

    async def next(self) -> Running | None:
        """Wait for the session's next turn; ``None`` when the lane is to end."""
        if self.running is None and not self.leaving:
            self.last_used = time.monotonic()
            with anyio.move_on_after(self._bounds.session_idle):
                await self._given.wait()
        self._given = anyio.Event()
        self.leaving = self.leaving or self.running is None
        return self.running

    @property
    def warm(self) -> bool:
        """Whether a runtime is open, or on its way in or out."""
        return self._stack is not None

    @property
    def opened(self) -> bool:
        """Whether a runtime is there that remembers the session."""
        return self._session is not None

    def carries(self, mark: str) -> bool:
        """Whether the tools of its turns carry this mark."""
        return self._children is not None and self._children.mark == mark

    # --- one attempt --------------------------------------------------------------------

    async def work(self, request: TurnRequest, log: EventLog, *, fresh: bool) -> End:
        """Give one attempt to the runtime; every way it can end is an ``End``.

        Args:
            fresh: the runtime's session is lost: open a new one.
        """
        self._over, self._end, self._idled = anyio.Event(), None, False
        self.sign()
        try:
            return await self._work(request, log, fresh=fresh)
        finally:
            self._over.set()

    def sign(self) -> None:
        """Take note of a sign of life."""
        self._last_sign = time.monotonic()

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last_sign

    def call_started(self, log: EventLog, call: ToolCall) -> None:
        """A tool call got its permit."""
        self.sign()
        log.tool_started(call)

    def call_ended(self, log: EventLog, call_id: str, ok: bool) -> None:
        """A permitted tool call ended."""
        self.sign()
        log.tool_ended(call_id, ok)

    def cut(self) -> End:
        """What became of an attempt that had to be cut."""
        if self._end is not None:
            return replace(self._end, close=True)
        if self._idled:
            return idle(self._bounds.turn_idle)
        return End(to=State.INTERRUPTED, cause="its runtime was cut off", close=True)

    async def _work(self, request: TurnRequest, log: EventLog, *, fresh: bool) -> End:
        if (barred := self._barred()) is not None:
            return barred
        try:
            if self._session is None or fresh:
                await self._open(fresh=fresh)
        except AdapterError as error:
            return failed(error)
        if (barred := self._barred()) is not None:
            return barred
        assert self._session is not None
        end: End | None = None
        try:
            async with anyio.create_task_group() as writing:
                self._attempt = writing.cancel_scope
                writing.start_soon(log.write)
                end = await self._iterate(self._session, request, log)
                self._attempt.deadline = math.inf
                log.end()
        finally:
            self._attempt = None
        if end is None or (self._idled and end.to is not State.ANSWERED):
            return self.cut()
        return end

    def _barred(self) -> End | None:
        """Say why the runtime must not see the turn after all."""
        if self.gate.refused:
            return End(to=None, cause="it was canceled before its runtime began")
        if not self.gate.opened():
            return End(to=State.PARKED, cause="the gate closed before its runtime began")
        return None

    async def _iterate(self, session: RuntimeSession, request: TurnRequest, log: EventLog) -> End:
        usage: Usage | None = None
        try:
            with fence("run_turn"):
                async with aclosing(session.run_turn(request)) as events:
                    async for event in events:
                        self.sign()
                        match event:
                            case TurnFinished():
                                self._end = finished(event, usage, log.answer)
                                if self._attempt is not None:
                                    # The turn has ended; what its runtime tidies up must not keep it.
                                    self._attempt.deadline = anyio.current_time() + self._bounds.grace
                                break
                            case SessionBound(handle=handle):
                                bind = partial(self._ground.journal.bind, self.session_id, handle)
                                await insist(bind)
                            case Usage():
                                usage = event
                            case _:
                                await log.say(event)
            if self._end is None:
                raise ContractBroken("the adapter ended the turn without TurnFinished")
        except AdapterError as error:
            if self._end is None:
                return failed(error, usage)
            logger.warning("turn %s: after its end the adapter failed: %s", request.id, error)
        return self._end

    # --- stopping -----------------------------------------------------------------------

    def look_for_silence(self) -> None:
        """Make an attempt stop whose runtime was silent too long, with no call open or held.

        While the gate is closed it may be we for whom it waits: what it said, or did, cannot be
        written.
        """
        if self._over.is_set() or self._idled:
            return
        at_work = self.running is not None and (self.running.open or self.running.held)
        if at_work or self.gate.closed:
            self.sign()
        if time.monotonic() - self._last_sign >= self._bounds.turn_idle:
            self._idled = True
            self._helpers.start_soon(self.stop_attempt)

    async def stop_attempt(self) -> None:
        """Make the attempt stop: ask, cut, kill, each with the grace between."""
        over = self._over
        if self._ground.adapter.capabilities.cancels and self._session is not None and self._attempt:
            self._helpers.start_soon(self.ask_to_stop, StopReason.CANCEL)
            with anyio.move_on_after(self._bounds.grace):
                await over.wait()
        if not over.is_set():
            (self._attempt or self.scope).cancel()
            with anyio.move_on_after(self._bounds.grace):
                await over.wait()
        if not over.is_set():
            logger.error("session %s: its runtime does not stop, its processes are ended", self.session_id)
            await self.kill()

    async def ask_to_stop(self, why: StopReason) -> None:
        """Ask the runtime to stop its turn, where it runs one; it gets the grace to hear."""
        if self._session is None or self._attempt is None:
            return
        try:
            with anyio.move_on_after(self._bounds.grace), fence("stop"):
                await self._session.stop(why)
        except AdapterError as error:
            logger.warning("session %s could not be asked to stop: %s", self.session_id, error)

    async def kill(self) -> None:
        """End every process of the runtime; what waits for them goes on."""
        if self._children is not None:
            await self._children.reap()

    # --- opening and leaving ------------------------------------------------------------

    async def _open(self, *, fresh: bool) -> None:
        """Open the runtime's session, in the lane's own task and outside any shorter scope."""
        await self.close()
        await self._make_room()
        self._children = LifeChildren(self._ground.environ, self._ground.journal)
        self._stack = AsyncExitStack()
        known = self._ground.journal.session(self.session_id)
        context = SessionContext(
            session_id=self.session_id,
            workdir=self._ground.workdir,
            state_dir=self._ground.adapter_dir,
            gate=self.gate,
            children=self._children,
            resume=known.handle if known is not None and not fresh else None,
        )
        with fence("open_session"):
            session = await self._stack.enter_async_context(self._ground.adapter.open_session(context))
            if not isinstance(session, RuntimeSession):
                raise TypeError(f"it must give a RuntimeSession, not {type(session).__name__}")
        self._session = session
        self.sign()

    async def close(self) -> None:
        """Leave the runtime's context, then end whatever of its life still runs."""
        stack, children = self._stack, self._children
        self._session = None
        if stack is None or children is None:
            return
        # The context may hold a cancel scope of its own, so no scope of ours may be opened
        # around leaving it; somebody else watches the clock and kills what it waits for.
        overdue = anyio.CancelScope()
        self._helpers.start_soon(self._hurry, overdue)
        try:
            with fence("leaving the session"):
                await stack.aclose()
        except AdapterError as error:
            logger.warning("session %s was not left cleanly: %s", self.session_id, error)
        finally:
            overdue.cancel()
            with anyio.CancelScope(shield=True):
                await children.reap()
            self._stack = self._children = None

    async def _hurry(self, overdue: anyio.CancelScope) -> None:
        with overdue:
            await anyio.sleep(self._bounds.grace)
            logger.warning("session %s takes longer to leave than the grace", self.session_id)
            await self.kill()
            await anyio.sleep(self._bounds.grace)
            self.scope.cancel()
