"""Each session driven by its own runner."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ..adapter import Part, RuntimeAdapter, RuntimeSession, SessionContext, StopReason, TurnRequest
from ..errors import (
    AdapterError,
    BadMessage,
    ContractBroken,
    InvalidTransition,
    RuntimeLost,
    RuntimeUnusable,
    SessionLost,
    TurnFailed,
)
from ..events import Finish, SessionBound, ToolCall, TurnFinished, Usage
from ..ledger import Ledger, Running
from ..resume import Action, Evidence, Verdict
from ..turns import CANCELABLE, Outcome, OutcomeKind, State, Turn
from .boot import Recovery
from .children import LifeChildren
from .eventlog import EventLog
from .fence import fence
from .gate import SessionGate, Switch
from .insist import insist
from .journal import Journal, NewEvent

logger = logging.getLogger(__name__)

_EXPIRY_LOOK = 1.0
"""Seconds between two looks for waiting messages whose sender's time limit passed."""

Materialise = Callable[[Mapping[str, Any]], Awaitable[tuple[Part, ...]]]
"""From a message as sent to the parts a runtime is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Settings of the sessions; seconds and counts."""

    open_sessions: int
    session_idle: float
    turn_idle: float
    grace: float
    """How long a runtime gets to stop, and its context to be left, before it is killed."""


class _Next(Enum):
    """What follows an attempt."""

    NOTHING = auto()  #: the turn ended, or its row already says what becomes of it
    JUDGE = auto()  #: judge it anew, here and now


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How one attempt ended."""

    to: State | None
    """``None``: the row stays as it is."""
    cause: str
    outcome: Outcome | None = None
    answer: str | None = None
    evidence: Evidence | None = None
    """What is known already for judging it anew."""
    close: bool = False
    """The runtime is gone or not to be trusted: leave its context, end its processes."""


class _Lane:
    """One session's runner, with what it keeps warm."""

    def __init__(self, session_id: str, gate: SessionGate) -> None:
        self.session_id = session_id
        self.gate = gate
        self.scope = anyio.CancelScope()
        self.given = anyio.Event()
        self.left = anyio.Event()
        self.leaving = False
        self.running: Running | None = None
        self.attempt_scope: anyio.CancelScope | None = None
        self.attempt_over = anyio.Event()
        self.idled = False
        self.session: RuntimeSession | None = None
        self.children: LifeChildren | None = None
        self.stack: AsyncExitStack | None = None
        self.last_used = time.monotonic()
        self.last_sign = time.monotonic()

    def give(self, running: Running) -> None:
        self.running = running
        self.given.set()

    def leave(self) -> None:
        self.leaving = True
        self.given.set()

    def sign(self) -> None:
        """The runtime gave a sign of life."""
        self.last_sign = time.monotonic()


class Sessions:
    """Starts what the ledger says may start, and sees every turn to its end."""

    def __init__(
        self,
        *,
        adapter: RuntimeAdapter,
        journal: Journal,
        ledger: Ledger,
        switch: Switch,
        recovery: Recovery,
        environ: Mapping[str, str],
        materialise: Materialise,
        workdir: Path,
        adapter_dir: Path,
        bounds: Bounds,
        clock: Callable[[], float],
    ) -> None:
        self._adapter = adapter
        self._journal = journal
        self._ledger = ledger
        self._switch = switch
        self._recovery = recovery
        self._environ = environ
        self._materialise = materialise
        self._workdir = workdir
        self._adapter_dir = adapter_dir
        self._bounds = bounds
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._leaving: dict[str, anyio.Event] = {}
        self._asked_again: set[str] = set()
        self._expiring: dict[str, float] = {}
        self._stopping = False
        self._runners: TaskGroup | None = None
        self.on_change: Callable[[], None] = lambda: None
        """A running turn's calls changed."""
        self.on_end: Callable[[str, bool], None] = lambda turn_id, parked: None
        """A turn left the ledger; whether it parked."""

    # --- for the door and the operator ----------------------------------------------

    def submit(self, turn: Turn, *, asked_again: bool = False) -> None:
        """Put a turn in line: a message, or one that must be continued.

        Args:
            asked_again: it was sent again after it expired or failed retryably, or a
                person released it; age and earlier attempts do not count.
        """
        if asked_again:
            self._asked_again.add(turn.id)
        if turn.state is State.ACCEPTED and turn.expires_at is not None:
            self._expiring[turn.id] = turn.expires_at
        self._ledger.wait(turn.id, turn.session_id, seq=turn.seq, resumed=turn.state is not State.ACCEPTED)
        self.start_what_may()

    async def cancel(self, turn_id: str, *, cause: str = "canceled by its asker") -> Turn | None:
        """Withdraw a turn; ``None`` when it had ended already.

        It is written before the runtime is stopped, and the session's next turn waits
        until the runtime really has.
        """
        canceled = await self._journal.change(
            turn_id,
            expect=CANCELABLE,
            to=State.CANCELED,
            cause=cause,
            outcome=Outcome(kind=OutcomeKind.CANCELED, reason=cause),
            now=self._clock(),
        )
        if canceled is None:
            return None
        logger.info("turn %s: canceled, because %s", turn_id, cause, extra={"turn_id": turn_id})
        self._ledger.withdraw(turn_id)
        lane = self._lanes.get(canceled.session_id)
        running = self._ledger.get(turn_id)
        if lane is not None and running is not None and running.attempt and self._runners is not None:
            lane.gate.refuse()
            self._runners.start_soon(self._stop_attempt, lane)
        return canceled

    def start_what_may(self) -> None:
        """Start waiting turns, as far as gate and capacity allow."""
        if self._runners is None or self._stopping:
            return
        while self._switch.opened and (running := self._ledger.start_next()) is not None:
            self._expiring.pop(running.turn_id, None)
            lane = self._lanes.get(running.session_id)
            if lane is None:
                lane = self._lanes[running.session_id] = self._new_lane(running.session_id)
                self._runners.start_soon(self._drive, lane)
            lane.give(running)

    @property
    def warm(self) -> int:
        """How many sessions are open."""
        return sum(lane.session is not None for lane in self._lanes.values())

    def running_with_mark(self, mark: str) -> str | None:
        """Return the turn whose tools carry this mark."""
        for lane in self._lanes.values():
            if lane.children is not None and lane.children.mark == mark and lane.running:
                return lane.running.turn_id
        return None

    # --- life -----------------------------------------------------------------------

    async def run(self) -> None:
        """Drive sessions until :meth:`stop` is called."""
        async with anyio.create_task_group() as runners:
            self._runners = runners
            self.start_what_may()
            while not self._stopping:
                await self._expire_waiting()
                await anyio.sleep(_EXPIRY_LOOK)

    async def stop(self) -> None:
        """End every runtime the way it resumes best, within the grace.

        A turn that finishes meanwhile is answered; the row of any other stays as it is,
        and so says that it must be continued.
        """
        self._stopping = True
        lanes = tuple(self._lanes.values())
        with anyio.move_on_after(self._bounds.grace):
            async with anyio.create_task_group() as stops:
                for lane in lanes:
                    lane.leave()
                    if lane.session is not None and lane.attempt_scope is not None:
                        stops.start_soon(self._ask_to_stop, lane.session, StopReason.RESTART)
                for lane in lanes:
                    stops.start_soon(lane.left.wait)
        if self._runners is not None:
            self._runners.cancel_scope.cancel()

    def _new_lane(self, session_id: str) -> _Lane:
        gate = SessionGate(
            switch=self._switch,
            journal=self._journal,
            at_closed=self._adapter.capabilities.gate,
            clock=self._clock,
            on_change=lambda: self.on_change(),
        )
        return _Lane(session_id, gate)

    async def _expire_waiting(self) -> None:
        now = self._clock()
        for turn_id in [turn_id for turn_id, at in self._expiring.items() if at <= now]:
            del self._expiring[turn_id]
            if self._ledger.withdraw(turn_id):
                await self._expire(turn_id)

    async def _expire(self, turn_id: str) -> None:
        await self._change(
            turn_id,
            expect=(State.ACCEPTED,),
            to=State.EXPIRED,
            kind=OutcomeKind.EXPIRED,
            because="its sender's time limit passed before it could start",
            retryable=True,
        )

    # --- one lane -------------------------------------------------------------------

    async def _drive(self, lane: _Lane) -> None:
        with lane.scope:
            try:
                if (predecessor := self._leaving.get(lane.session_id)) is not None:
                    await predecessor.wait()
                while await self._given(lane):
                    running = lane.running
                    assert running is not None
                    await self._see_to_its_end(lane, running)
                    self._put_down(lane, running)
            finally:
                # From here on a new turn of this session gets a lane of its own, which waits.
                self._leaving[lane.session_id] = lane.left
                if self._lanes.get(lane.session_id) is lane:
                    del self._lanes[lane.session_id]
                await self._close(lane)
                if self._leaving.get(lane.session_id) is lane.left:
                    del self._leaving[lane.session_id]
                lane.left.set()
        if lane.running is not None:
            self._put_down(lane, lane.running)

    async def _given(self, lane: _Lane) -> bool:
        """Wait for the session's next turn; say whether there is one."""
        if lane.running is None and not lane.leaving:
            lane.last_used = time.monotonic()
            with anyio.move_on_after(self._bounds.session_idle):
                await lane.given.wait()
        lane.given = anyio.Event()
        return lane.running is not None and not self._stopping

    def _put_down(self, lane: _Lane, running: Running) -> None:
        """Take a turn out of the ledger; one that must go on gets in line again."""
        lane.running = None
        self._ledger.end(running.turn_id)
        turn = self._journal.turn(running.turn_id)
        self.on_end(running.turn_id, turn is not None and turn.state is State.PARKED)
        if turn is not None and not self._stopping:
            again = turn.id in self._asked_again
            if again or turn.state in (State.ACCEPTED, State.PARKED, State.INTERRUPTED):
                self.submit(turn, asked_again=again)
        self.start_what_may()

    async def _see_to_its_end(self, lane: _Lane, running: Running) -> None:
        """Run a turn through as many attempts as the plan and the gate allow."""
        next_, evidence = _Next.JUDGE, None
        while next_ is _Next.JUDGE and self._switch.opened and not self._stopping:
            turn = self._journal.turn(running.turn_id)
            if turn is None or turn.state is State.CANCELED:
                break
            running.attempt = 0
            next_, evidence = await self._attempt(lane, running, turn, evidence)

    async def _attempt(
        self, lane: _Lane, running: Running, turn: Turn, evidence: Evidence | None
    ) -> tuple[_Next, Evidence | None]:
        verdict = await self._judge(lane, turn, evidence)
        if verdict.action is not Action.RESUME:
            await self._conclude(turn, verdict)
            return _Next.NOTHING, None
        if not self._switch.opened or self._stopping:
            return _Next.NOTHING, None
        try:
            started = await insist(
                lambda: self._journal.start(
                    turn.id,
                    expect=turn.state,
                    attempt=turn.attempt,
                    strikes=verdict.strikes,
                    cut=verdict.cut,
                    now=self._clock(),
                )
            )
        except InvalidTransition as error:
            logger.info("%s", error)
            return _Next.NOTHING, None
        self._asked_again.discard(turn.id)
        running.attempt = started.attempt
        log = EventLog(self._journal, turn.id, started.attempt, clock=self._clock)

        def call_started(call: ToolCall) -> None:
            lane.sign()
            log.tool_started(call)

        def call_ended(call_id: str, ok: bool) -> None:
            lane.sign()
            log.tool_ended(call_id, ok)

        lane.gate.begin(running, on_call=call_started, on_end=call_ended)
        lane.attempt_over, lane.idled = anyio.Event(), False
        end = await self._work(lane, running, started, verdict, log)
        lane.attempt_over.set()
        lane.gate.end()
        await self._finish(started, end, log)
        if end.close:
            await self._close(lane)
        judge = end.to is State.INTERRUPTED
        return (_Next.JUDGE if judge else _Next.NOTHING), end.evidence

    async def _judge(self, lane: _Lane, turn: Turn, evidence: Evidence | None) -> Verdict:
        if turn.state is State.ACCEPTED:
            if turn.expires_at is not None and turn.expires_at <= self._clock():
                return Verdict(
                    action=Action.EXPIRE,
                    because="its sender's time limit passed before it could start",
                )
            return Verdict(action=Action.RESUME, because="new", note=self._recovery.opening_note(turn))
        if turn.state is State.PARKED and lane.session is not None:
            evidence = Evidence.seen()  # parked in this life; its runtime is still there
        return await self._recovery.judge(turn, evidence=evidence, asked_again=turn.id in self._asked_again)

    async def _conclude(self, turn: Turn, verdict: Verdict) -> None:
        """Write what the plan decided, where that is not another attempt."""
        self._asked_again.discard(turn.id)
        match verdict.action:
            case Action.DELIVER:
                to, kind = State.ANSWERED, OutcomeKind.ANSWERED
            case Action.SUSPEND:
                to, kind = State.SUSPENDED, OutcomeKind.SUSPENDED
            case Action.EXPIRE:
                to, kind = State.EXPIRED, OutcomeKind.EXPIRED
            case Action.CANCEL:
                to, kind = State.CANCELED, OutcomeKind.CANCELED
            case _:
                return
        await self._change(
            turn.id,
            expect=(turn.state,),
            to=to,
            kind=kind,
            because=verdict.because,
            retryable=to is State.EXPIRED,
            answer=verdict.answer,
            cut=verdict.cut,
        )

    async def _change(
        self,
        turn_id: str,
        *,
        expect: tuple[State, ...],
        to: State,
        kind: OutcomeKind,
        because: str,
        retryable: bool = False,
        answer: str | None = None,
        cut: str | None = None,
    ) -> None:
        reason = "" if kind is OutcomeKind.ANSWERED else because
        await insist(
            lambda: self._journal.change(
                turn_id,
                expect=expect,
                to=to,
                cause=because,
                outcome=Outcome(kind=kind, reason=reason, retryable=retryable),
                answer=answer,
                cut=cut,
                now=self._clock(),
            )
        )
        logger.info("turn %s: %s, because %s", turn_id, to, because, extra={"turn_id": turn_id})

    async def _finish(self, turn: Turn, end: _End, log: EventLog) -> None:
        events = log.take()
        if end.to is None:
            await insist(lambda: self._journal.append(turn.id, turn.attempt, events, now=self._clock()))
            return
        if end.to in (State.PARKED, State.INTERRUPTED):
            events.append(NewEvent(kind="status", body={"state": str(end.to), "attempt": turn.attempt}))
        finished = await insist(
            lambda: self._journal.finish(
                turn.id,
                attempt=turn.attempt,
                to=end.to or State.FAILED,
                cause=end.cause,
                outcome=end.outcome,
                answer=end.answer,
                events=events,
                now=self._clock(),
            )
        )
        logger.info(
            "turn %s: %s, because %s",
            turn.id,
            end.to if finished else "late result ignored",
            end.cause,
            extra={"turn_id": turn.id, "session_id": turn.session_id, "attempt": turn.attempt},
        )

    # --- one attempt ----------------------------------------------------------------

    async def _work(self, lane: _Lane, running: Running, turn: Turn, verdict: Verdict, log: EventLog) -> _End:
        """Give one attempt to the runtime; every way it can end is an ``_End``."""
        end: _End | None = None
        try:
            message = json.loads(self._journal.message(turn.id) or b"{}")
            request = TurnRequest(
                id=turn.id,
                attempt=turn.attempt,
                parts=await self._materialise(message),
                metadata=message.get("metadata") or {},
                resumption=verdict.resumption,
                note=verdict.note,
            )
            if lane.session is None or verdict.fresh_session:
                await self._open(lane, fresh=verdict.fresh_session)
            if lane.gate.refused:
                return _End(to=None, cause="canceled before its runtime began")
            if not self._switch.opened:
                return _End(to=State.PARKED, cause="the gate closed before its runtime began")
            assert lane.session is not None
            lane.sign()
            async with anyio.create_task_group() as watchers:
                lane.attempt_scope = watchers.cancel_scope
                watchers.start_soon(log.write)
                watchers.start_soon(self._watch_idle, lane, running)
                end = await self._iterate(lane, lane.session, turn, request, log)
                await log.settle()
                watchers.cancel_scope.cancel()
        except (AdapterError, BadMessage) as error:  # opening it, or its message's files
            end = _failure(error)
        finally:
            lane.attempt_scope = None
        if lane.idled and (end is None or end.to is not State.ANSWERED):
            return _End(
                to=State.FAILED,
                cause="idle",
                outcome=Outcome(
                    kind=OutcomeKind.FAILED,
                    reason=f"the agent gave no sign of life for {self._bounds.turn_idle:g} s"
                    " (WORKSPACE_TURN_IDLE_LIMIT) and was stopped",
                    retryable=True,
                ),
                close=True,
            )
        if end is None:  # killed after it would not stop
            end = _End(to=None, cause="stopped", close=True)
        if self._stopping and end.to in (State.FAILED, State.INTERRUPTED):
            # What the stop did to the runtime is not the turn's failure.
            return _End(to=None, cause="the workspace stops")
        return end

    async def _iterate(
        self,
        lane: _Lane,
        session: RuntimeSession,
        turn: Turn,
        request: TurnRequest,
        log: EventLog,
    ) -> _End:
        usage, end = Usage(input_tokens=0, output_tokens=0), None
        try:
            with fence("run_turn"):
                async with aclosing(session.run_turn(request)) as events:
                    async for event in events:
                        lane.sign()
                        match event:
                            case TurnFinished():
                                end = _finished(event, usage, log.answer)
                                break
                            case SessionBound(handle=handle):
                                await insist(partial(self._journal.bind, turn.session_id, handle))
                            case Usage():
                                usage = event
                            case _:
                                await log.say(event)
            if end is None:
                raise ContractBroken("the adapter ended the turn without TurnFinished")
        except AdapterError as error:
            if end is None:
                return _failure(error, usage)
            logger.warning("turn %s: after its end the adapter failed: %s", turn.id, error)
        return end

    async def _watch_idle(self, lane: _Lane, running: Running) -> None:
        while (left := lane.last_sign + self._bounds.turn_idle - time.monotonic()) > 0:
            await anyio.sleep(left)
            if running.open or running.held:
                lane.sign()
        lane.idled = True
        await self._stop_attempt(lane)

    async def _stop_attempt(self, lane: _Lane) -> None:
        """Make the attempt of one lane stop: ask, wait for the grace, then cut."""
        over, session = lane.attempt_over, lane.session
        if self._adapter.capabilities.cancels and session is not None and lane.attempt_scope:
            with anyio.move_on_after(self._bounds.grace):
                await self._ask_to_stop(session, StopReason.CANCEL)
                await over.wait()
        if not over.is_set():
            (lane.attempt_scope or lane.scope).cancel()

    async def _ask_to_stop(self, session: RuntimeSession, why: StopReason) -> None:
        try:
            with anyio.move_on_after(self._bounds.grace), fence("stop"):
                await session.stop(why)
        except AdapterError as error:
            logger.warning("the runtime could not be asked to stop: %s", error)

    # --- opening and leaving --------------------------------------------------------

    async def _open(self, lane: _Lane, *, fresh: bool) -> None:
        """Open the runtime's session, in the lane's own task and outside any shorter scope."""
        await self._close(lane)
        await self._make_room()
        known = self._journal.session(lane.session_id)
        lane.children = LifeChildren(self._environ, self._journal)
        lane.stack = AsyncExitStack()
        context = SessionContext(
            session_id=lane.session_id,
            workdir=self._workdir,
            state_dir=self._adapter_dir,
            gate=lane.gate,
            children=lane.children,
            resume=known.handle if known is not None and not fresh else None,
        )
        with fence("open_session"):
            lane.session = await lane.stack.enter_async_context(self._adapter.open_session(context))

    async def _make_room(self) -> None:
        """Close the sessions idle longest until another may be opened."""
        while self.warm >= self._bounds.open_sessions:
            idle = [lane for lane in self._lanes.values() if lane.session and not lane.running]
            if not idle:
                return
            oldest = min(idle, key=lambda lane: lane.last_used)
            logger.info("session %s: closed to make room", oldest.session_id)
            oldest.leave()
            await oldest.left.wait()

    async def _close(self, lane: _Lane) -> None:
        """Leave the runtime's context, then end whatever of its life still runs."""
        stack, children = lane.stack, lane.children
        lane.session = lane.stack = lane.children = None
        if children is None or stack is None or self._runners is None:
            return
        # The context may hold a cancel scope of its own, so no scope of ours may be opened
        # around leaving it; somebody else watches the clock and kills what it waits for.
        overdue = anyio.CancelScope()
        self._runners.start_soon(self._hurry, overdue, lane, children)
        try:
            with fence("leaving the session"):
                await stack.aclose()
        except AdapterError as error:
            logger.warning("session %s was not left cleanly: %s", lane.session_id, error)
        finally:
            overdue.cancel()
            with anyio.CancelScope(shield=True):
                await children.reap()

    async def _hurry(self, overdue: anyio.CancelScope, lane: _Lane, children: LifeChildren) -> None:
        with overdue:
            await anyio.sleep(self._bounds.grace)
            logger.warning("session %s takes longer to leave than the grace", lane.session_id)
            await children.reap()
            await anyio.sleep(self._bounds.grace)
            lane.scope.cancel()


def _finished(event: TurnFinished, usage: Usage, said: str) -> _End:
    """Read how the runtime says the turn ended."""
    answer = event.answer if event.answer is not None else said
    match event.finish:
        case Finish.PARKED:
            return _End(to=State.PARKED, cause="it ended at the closed gate")
        case Finish.ANSWERED:
            outcome = _outcome(OutcomeKind.ANSWERED, usage)
            return _End(to=State.ANSWERED, cause="answered", outcome=outcome, answer=answer)
        case Finish.ASKED_BACK:
            outcome = _outcome(OutcomeKind.ASKED_BACK, usage)
            return _End(to=State.ANSWERED, cause="asked back", outcome=outcome, answer=answer)
        case Finish.REJECTED:
            reason = answer or "the agent rejected the request"
            outcome = _outcome(OutcomeKind.REJECTED, usage, reason=reason)
            return _End(to=State.FAILED, cause="rejected by the agent", outcome=outcome)


def _failure(error: AdapterError | BadMessage, usage: Usage | None = None) -> _End:
    """Read what an exception of the adapter's says about its turn."""
    match error:
        case SessionLost():
            return _End(
                to=State.INTERRUPTED,
                cause=f"the runtime lost the session: {error}",
                evidence=Evidence.session_lost(),
                close=True,
            )
        case RuntimeLost():
            return _End(to=State.INTERRUPTED, cause=f"the runtime died: {error}", close=True)
    retryable = isinstance(error, RuntimeUnusable) or (isinstance(error, TurnFailed) and error.retryable)
    return _End(
        to=State.FAILED,
        cause=type(error).__name__,
        outcome=_outcome(OutcomeKind.FAILED, usage, reason=str(error), retryable=retryable),
        close=not isinstance(error, TurnFailed | BadMessage),
    )


def _outcome(kind: OutcomeKind, usage: Usage | None, *, reason: str = "", retryable: bool = False) -> Outcome:
    return Outcome(
        kind=kind,
        reason=reason,
        retryable=retryable,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
    )
