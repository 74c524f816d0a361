"""Which turn of which session runs now, and what becomes of each."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from ...adapter import Part, StopReason, TurnRequest
from ...errors import BadMessage, InvalidTransition, TurnFailed
from ...ledger import Ledger, Running
from ...resume import Action, Evidence, Resumption, Verdict, notice_due, platform_note
from ...telling import Doing, Work
from ...traces import KEY as TRACEPARENT
from ...traces import Place
from ...turns import CANCELABLE, ENDED, TOLD, Notice, Outcome, OutcomeKind, State, Turn
from ..boot import Recovery, message_of
from ..fence import cancelled_by_us
from ..gate import SessionGate, Switch
from ..insist import insist
from ..journal import NewEvent
from .ends import End, failed
from .eventlog import EventLog
from .lane import Ground, Lane

logger = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks for waiting messages whose sender's time limit passed, at most between
two for silent runtimes."""

_ABOUT = 120
"""Characters of a message that say what its turn is about."""


class Materialise(Protocol):
    """From a message as sent to the parts a runtime is given."""

    def __call__(self, message: Mapping[str, Any], *, session_id: str) -> Awaitable[tuple[Part, ...]]: ...


class _Next(Enum):
    """What follows an attempt."""

    NOTHING = auto()  #: the turn ended, or its row already says what becomes of it
    JUDGE = auto()  #: judge it anew, here and now


class Sessions:
    """Starts what the ledger says may start, and sees every turn to its end."""

    def __init__(
        self,
        *,
        ground: Ground,
        ledger: Ledger,
        switch: Switch,
        recovery: Recovery,
        materialise: Materialise,
        clock: Callable[[], float],
    ) -> None:
        self._ground = ground
        self._journal = ground.journal
        self._bounds = ground.bounds
        self._ledger = ledger
        self._switch = switch
        self._recovery = recovery
        self._materialise = materialise
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._asked_again: set[str] = set()
        self._expiring: dict[str, float] = {}
        self._stopping = False
        self._runners: TaskGroup | None = None
        self.on_change: Callable[[], None] = lambda: None
        """A running turn's calls changed."""
        self.on_end: Callable[[str, State | None], None] = lambda turn_id, state: None
        """A turn left the ledger, in this state; ``None`` when the journal forgot it."""
        self.on_start: Callable[[Turn, Turn, Verdict], None] = lambda before, started, verdict: None
        """An attempt was charged; the turn as it was, and as it is."""
        self.place: Callable[[Turn], Place | None] = lambda turn: None
        """Says where a turn stands in a trace, if there are traces."""
        self.on_told: Callable[[Turn], None] = lambda turn: None
        """A turn ended, or was suspended."""

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
            self._expiring[turn.id] = anyio.current_time() + turn.expires_at - self._clock()
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
        self.on_told(canceled)
        logger.info("turn %s: canceled, because %s", turn_id, cause, extra={"turn_id": turn_id})
        self._ledger.withdraw(turn_id)
        self._expiring.pop(turn_id, None)
        lane = self._lanes.get(canceled.session_id)
        running = self._ledger.get(turn_id)
        if (
            lane is not None
            and running is not None
            and self._runners is not None
            and (running.attempt and lane.running is running)
        ):
            lane.gate.refuse()
            self._runners.start_soon(lane.stop_attempt)
        return canceled

    @asynccontextmanager
    async def barred(self, session_id: str) -> AsyncIterator[None]:
        """Start no turn of a session meanwhile; one that runs goes on. Messages are still accepted."""
        self._ledger.bar(session_id)
        try:
            yield
        finally:
            self._ledger.unbar(session_id)
            self.start_what_may()

    async def close(self, session_id: str) -> None:
        """Return when a session's turn has ended and its runtime is left; see that none starts."""
        while (lane := self._lanes.get(session_id)) is not None:
            lane.leave()
            await lane.left.wait()

    def start_what_may(self) -> None:
        """Start waiting turns, as far as gate and capacity allow."""
        if self._runners is None or self._stopping:
            return
        while self._switch.opened and (running := self._ledger.start_next()) is not None:
            self._expiring.pop(running.turn_id, None)
            self._lane(running.session_id, self._runners).give(running)

    def running_with_mark(self, mark: str) -> str | None:
        """Return the turn whose tools carry this mark."""
        for lane in self._lanes.values():
            if lane.running and lane.carries(mark):
                return lane.running.turn_id
        return None

    def work(self) -> Work:
        """Return what runs, and how much waits."""
        doing = []
        for running in self._ledger:
            lane = self._lanes.get(running.session_id)
            turn, log = (lane.working if lane else None) or (None, None)
            doing.append(
                Doing(
                    turn_id=running.turn_id,
                    session_id=running.session_id,
                    since=turn.started_at if turn else None,
                    quiet=lane.quiet if lane else 0.0,
                    line=log.doing if log else "starting",
                )
            )
        return Work(doing=doing, waiting=len(self._ledger.waiting))

    def runtimes(self) -> dict[str, str]:
        """Return the sessions whose runtime is there: ``open`` and idle, or ``running`` a turn."""
        return {
            session_id: "running" if lane.running else "open"
            for session_id, lane in self._lanes.items()
            if lane.running or lane.warm
        }

    # --- life -----------------------------------------------------------------------

    async def run(self) -> None:
        """Drive sessions until :meth:`stop` is called."""
        async with anyio.create_task_group() as runners:
            self._runners = runners
            runners.start_soon(self._look_for_silence)
            self.start_what_may()
            while not self._stopping:
                await self._expire_waiting()
                await anyio.sleep(_LOOK)

    async def stop(self) -> None:
        """End every runtime the way it resumes best, within the grace.

        A turn that finishes meanwhile is answered; the row of any other stays as it is,
        and so says that it must be continued.
        """
        self._stopping = True
        if self._runners is None:
            return
        lanes = tuple(self._lanes.values())
        for lane in lanes:
            lane.leave()
            self._runners.start_soon(lane.ask_to_stop, StopReason.RESTART)
        with anyio.move_on_after(self._bounds.grace):
            for lane in lanes:
                await lane.left.wait()
        for lane in lanes:
            if not lane.left.is_set():
                await lane.kill()
        self._runners.cancel_scope.cancel()

    async def _look_for_silence(self) -> None:
        """Stop attempts whose runtime was silent for the limit, at most a quarter of it late."""
        while not self._stopping:
            for lane in self._lanes.values():
                lane.look_for_silence()
            await anyio.sleep(min(_LOOK, self._bounds.turn_idle / 4))

    async def _expire_waiting(self) -> None:
        now = anyio.current_time()
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

    # --- lanes ----------------------------------------------------------------------

    def _lane(self, session_id: str, runners: TaskGroup) -> Lane:
        """Return the session's lane, a new one where there is none or it is leaving."""
        lane = self._lanes.get(session_id)
        if lane is not None and not lane.leaving:
            return lane
        gate = SessionGate(
            switch=self._switch,
            journal=self._journal,
            at_closed=self._ground.adapter.capabilities.gate,
            clock=self._clock,
            on_change=lambda: self.on_change(),
        )
        new = self._lanes[session_id] = Lane(
            session_id,
            ground=self._ground,
            gate=gate,
            helpers=runners,
            make_room=self._make_room,
            after=lane.left if lane is not None else None,
        )
        runners.start_soon(self._drive, new)
        return new

    async def _make_room(self) -> None:
        """Close the sessions idle longest until another may be opened."""
        while True:
            warm = [lane for lane in self._lanes.values() if lane.warm]
            idle = [lane for lane in warm if lane.running is None]
            if len(warm) < self._bounds.open_sessions or not idle:
                return
            oldest = min(idle, key=lambda lane: lane.last_used)
            if not oldest.leaving:
                logger.info("session %s: closed to make room", oldest.session_id)
            oldest.leave()
            await oldest.left.wait()

    async def _drive(self, lane: Lane) -> None:
        """See the turns of one lane to their ends, until it leaves or is cut."""
        try:
            with lane.scope:
                try:
                    if lane.after is not None:
                        await lane.after.wait()
                    while not self._stopping and (running := await lane.next()) is not None:
                        await self._see_to_its_end(lane, running)
                        self._put_down(lane, running)
                finally:
                    # From here on a new turn of this session gets a lane of its own, which waits.
                    lane.leaving = True
                    try:
                        await lane.close()
                    finally:
                        lane.gate.end()
                        if self._lanes.get(lane.session_id) is lane:
                            del self._lanes[lane.session_id]
                        lane.left.set()
        except anyio.get_cancelled_exc_class():
            if cancelled_by_us():
                raise
            logger.error("session %s: its runtime cancelled us", lane.session_id)
        if lane.running is not None and not self._stopping:
            if lane.working is not None:
                await self._finish(lane, lane.cut())
            self._put_down(lane, lane.running)

    def _put_down(self, lane: Lane, running: Running) -> None:
        """Take a turn out of the ledger; one that must go on gets in line again."""
        lane.running = None
        self._ledger.end(running.turn_id)
        turn = self._journal.turn(running.turn_id)
        self.on_end(running.turn_id, turn.state if turn is not None else None)
        if turn is None:
            self._asked_again.discard(running.turn_id)
        elif not self._stopping:
            again = turn.id in self._asked_again
            if again or turn.state in (State.ACCEPTED, State.PARKED, State.INTERRUPTED):
                self.submit(turn, asked_again=again)
        self.start_what_may()

    # --- one turn -------------------------------------------------------------------

    async def _see_to_its_end(self, lane: Lane, running: Running) -> None:
        """Run a turn through as many attempts as the plan and the gate allow."""
        next_, evidence = _Next.JUDGE, None
        while next_ is _Next.JUDGE and self._switch.opened and not self._stopping:
            turn = self._journal.turn(running.turn_id)
            if turn is None or turn.state is State.CANCELED:
                break
            running.attempt = 0
            next_, evidence = await self._attempt(lane, running, turn, evidence)

    async def _attempt(
        self, lane: Lane, running: Running, turn: Turn, evidence: Evidence | None
    ) -> tuple[_Next, Evidence | None]:
        verdict = await self._judge(lane, turn, evidence)
        if verdict.action is not Action.RESUME:
            await self._conclude(turn, verdict)
            return _Next.NOTHING, None
        if not self._switch.opened or self._stopping:
            return _Next.NOTHING, None
        notice = self._notice(turn, verdict)
        try:
            started = await insist(
                lambda: self._journal.start(
                    turn.id,
                    expect=turn.state,
                    attempt=turn.attempt,
                    strikes=verdict.strikes,
                    cut=verdict.cut,
                    notice=notice,
                    with_message=verdict.resumption is not Resumption.CONTINUE,
                    now=self._clock(),
                )
            )
        except InvalidTransition as error:
            logger.info("%s", error)
            return _Next.NOTHING, None
        self.on_start(turn, started, verdict)
        self._asked_again.discard(turn.id)
        running.attempt = started.attempt
        place = self.place(started)
        begun: dict[str, object] = {}
        if turn.state in ENDED:
            begun["anew"] = True
        if place is not None and place.sent is not None:
            begun[TRACEPARENT] = place.sent
        log = EventLog(self._journal, turn.id, started.attempt, verdict, clock=self._clock, begun=begun)
        lane.working = started, log
        lane.gate.begin(
            running, on_call=partial(lane.call_started, log), on_end=partial(lane.call_ended, log)
        )
        if notice is not None:
            noted = "\n\n".join(filter(None, (platform_note(notice), verdict.note)))
            verdict = replace(verdict, note=noted)
        end = await self._work(lane, started, verdict, log, place)
        lane.gate.end()
        if self._stopping and end.to in (State.FAILED, State.INTERRUPTED):
            # What the stop did to the runtime is not the turn's failure.
            end = End(to=None, cause="the workspace stops")
        await self._finish(lane, end)
        if end.close:
            await lane.close()
        judge = end.to is State.INTERRUPTED
        return (_Next.JUDGE if judge else _Next.NOTHING), end.evidence

    def _notice(self, turn: Turn, verdict: Verdict) -> Notice | None:
        """Return what the attempt's prompt must tell the agent from the platform."""
        notice = self._journal.notice(turn.session_id)
        if notice is None:
            return None
        given, showed = None, False
        if notice.given_to is not None:
            given = self._journal.turn(notice.given_to)
            showed = self._journal.showed(notice.given_to, notice.attempt)
        due = notice_due(notice, to=turn, resumption=verdict.resumption, given=given, showed=showed)
        return notice if due else None

    async def _work(
        self, lane: Lane, turn: Turn, verdict: Verdict, log: EventLog, place: Place | None
    ) -> End:
        message = message_of(self._journal.message(turn.id))
        if message is None:
            return failed(TurnFailed("its message was lost with a damaged journal: send a new one"))
        metadata = dict(message.get("metadata") or {})
        if place is not None:
            metadata[TRACEPARENT] = place.within(turn.id, turn.attempt)
        try:
            request = TurnRequest(
                id=turn.id,
                attempt=turn.attempt,
                parts=await self._materialise(message, session_id=turn.session_id),
                metadata=metadata,
                resumption=verdict.resumption,
                note=verdict.note,
            )
        except BadMessage as error:
            return failed(error)
        except OSError as error:
            why = f"the files of the message cannot be put on disk: {error.strerror}"
            return failed(TurnFailed(why, retryable=True))
        if lane.running is not None:
            lane.running.about = " ".join(request.text[:_ABOUT].split())
            self.on_change()
        return await lane.work(request, log, fresh=verdict.fresh_session)

    async def _judge(self, lane: Lane, turn: Turn, evidence: Evidence | None) -> Verdict:
        if turn.state is State.ACCEPTED:
            if turn.expires_at is not None and turn.expires_at <= self._clock():
                return Verdict(
                    action=Action.EXPIRE,
                    because="its sender's time limit passed before it could start",
                )
            return Verdict(action=Action.RESUME, because="new", note=self._recovery.opening_note(turn))
        if turn.state is State.PARKED and lane.opened:
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
        changed = await insist(
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
        if changed is not None:
            self.on_told(changed)
        logger.info("turn %s: %s, because %s", turn_id, to, because, extra={"turn_id": turn_id})

    async def _finish(self, lane: Lane, end: End) -> None:
        """Write how the attempt under way ended."""
        assert lane.working is not None
        turn, log = lane.working
        lane.working, events = None, log.take()
        if end.to is None:
            await insist(lambda: self._journal.append(turn.id, turn.attempt, events, now=self._clock()))
            logger.info("turn %s: left as it is, because %s", turn.id, end.cause, extra={"turn_id": turn.id})
            return
        free = end.to is State.PARKED and lane.gate.met_unwritable
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
        if finished is not None and finished.state in TOLD:
            self.on_told(finished)
        if free:  # it parked because of our disk, which is no strike against it
            await insist(lambda: self._journal.settle([turn.id]))
        logger.info(
            "turn %s: %s, because %s",
            turn.id,
            end.to if finished else "late result ignored",
            end.cause,
            extra={"turn_id": turn.id, "session_id": turn.session_id, "attempt": turn.attempt},
        )
