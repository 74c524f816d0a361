"""Where A2A messages come in: the codec's request handler on journal and sessions."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import anyio
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import (
    A2A_ERROR_MAPPING,
    A2AError,
    ExtendedAgentCardNotConfiguredError,
    InvalidRequestError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from ... import traces, wire
from ...errors import BadMessage, ContentConflict, InboxFull, JournalError, Refused, UnknownTask
from ...settings import Settings
from ...telling import Work
from ...turns import ENDED, TOLD, State, Turn
from ..bell import Bell
from ..journal import Accepted, Journal, NewTurn, new_id
from . import listing, own_answers, rendering
from .cursor import Cursor
from .edge import KEY, Exchange
from .envelope import Call, Dialect
from .parts import Uploads
from .refusal import Refusal, bad_params, busy
from .rendering import Event
from .tasks import Tasks
from .waiting import WaitingRoom

logger = logging.getLogger(__name__)

_BUSY_RETRY = 5
"""Seconds after which a message that found no room may be sent again."""

_OWN_WINDOW = 60.0
"""Seconds within which as many messages are answered at once as may wait in the inbox."""


class TurnRunner(Protocol):
    """What the door asks of the sessions."""

    def submit(self, turn: Turn, *, asked_again: bool = False) -> None:
        """Put a turn in line; harmless for one that is there already."""

    async def cancel(self, turn_id: str) -> Turn | None:
        """Withdraw a turn; ``None`` when it had ended already."""

    def work(self) -> Work:
        """Return what runs, and how much waits."""


class Door(RequestHandler):
    """Accepts messages, joins those it knows, and tells their askers how they ended.

    A turn belongs to the journal and to its session; whoever waits here may leave.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        bell: Bell,
        sessions: TurnRunner,
        uploads: Uploads,
        room: WaitingRoom,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._bell = bell
        self._sessions = sessions
        self._uploads = uploads
        self._settings = settings
        self._clock = clock
        self._tasks = Tasks(journal)
        self._room = room
        self._telling = WeakSet[Exchange]()
        """Requests whose answer tells a turn's end, for as long as they last."""
        self._own = deque[float](maxlen=settings.inbox_limit)
        """When messages were answered at once, lately."""
        self._forgets = settings.dedupe == "until-delivered"

    def delivered(self, turn_id: str) -> None:
        """The end of this turn was written to a caller who was there."""
        self._journal.delivered(turn_id, now=self._clock(), forget=self._forgets)

    def tells(self, turn_id: str) -> bool:
        """Whether this turn's end is on its way to a caller, who may read slowly."""
        return any(exchange.tells == turn_id for exchange in self._telling)

    def _tell(self, exchange: Exchange, turn: Turn) -> None:
        exchange.tells = turn.id
        self._telling.add(exchange)

    # --- messages -------------------------------------------------------------------

    async def on_message_send(
        self, params: a2a.SendMessageRequest, context: ServerCallContext
    ) -> a2a.Task | a2a.Message:
        """Answer ``message/send``: once the turn was told, unless the caller will not wait."""
        with _answering(context) as (exchange, call):
            until = self._room.deadline()
            turn, seen = await self._take(exchange, call, params, until)
            waits = not params.configuration.return_immediately
            if waits:
                turn = await self._told(turn, seen, until)
            if turn.state in TOLD:
                self._tell(exchange, turn)
            if waits and self._replies_message(call):
                return rendering.message(turn)
            return self._tasks.task([turn], history=0)

    async def on_message_send_stream(
        self, params: a2a.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Answer ``message/stream``: the Task, then its turn's log from the start or the cursor."""
        with _answering(context) as (exchange, call):
            turn, seen = await self._take(exchange, call, params, self._room.deadline())
            cursor = _sent_cursor(exchange, call)
            if cursor is None or cursor.turn_seq != turn.seq:
                cursor = Cursor(turn.seq, 0)
            yield _next(exchange, cursor, rendering.task(turn, progress=None, cursor=cursor))
            async for event in self._follow(exchange, turn, cursor, seen):
                yield event

    def _replies_message(self, call: Call) -> bool:
        reply = self._settings.a2a_reply
        return reply == "message" or (reply == "auto" and call.dialect is Dialect.V03)

    async def _take(
        self, exchange: Exchange, call: Call, params: a2a.SendMessageRequest, until: float
    ) -> tuple[Turn, int]:
        """Accept the message, or join the turn that it started when it came first.

        Returns the turn, and the attempt whose end is no news to this asker: the last one
        where this message asks for another, else -1.
        """
        await self._room.enter(until)
        if params.configuration.HasField("task_push_notification_config"):
            raise PushNotificationNotSupportedError
        sent = call.message
        assert sent is not None
        turn_key = wire.turn_key(exchange.caller, sent.context_id, sent.message_id)
        known = self._journal.turn_by_key(turn_key)
        if known is not None and known.state in ENDED and self._forgets:
            await self._journal.probe()  # what was delivered a moment ago is forgotten behind this
            known = self._journal.turn_by_key(turn_key)
        own = wire.self_answered(call.params)
        if known is not None:
            task_id, session_id = known.task_id, known.session_id
        elif own is not None:
            self._check_own_rate()
            task_id, session_id = new_id(), sent.context_id or new_id()  # it decides no task of anybody's
        else:
            task_id, session_id = self._place(sent, exchange.caller)
            await self._uploads.check(sent.raw)
        now = self._clock()
        expires_in = wire.expires_in(call.params)
        new = NewTurn(
            turn_id=new_id(),
            task_id=task_id,
            session_id=session_id,
            turn_key=turn_key,
            content_hash=wire.content_hash(sent.raw),
            message_id=sent.message_id,
            caller=exchange.caller,
            source=wire.source_of(call.params),
            message=self._kept(sent, exchange),
            accepted_at=now,
            expires_at=None if expires_in is None else now + expires_in,
            # The platform names no caller for its user, and a peer must not speak to that user through us.
            canvas=exchange.caller is None
            and wire.from_canvas(call.params, sent.context_id, self._settings.workspace_id),
        )
        # A caller who hangs up here must not leave a turn on disk that nobody starts.
        with anyio.CancelScope(shield=True):
            if own is not None:
                return await self._answer_at_once(new, own, sent.raw), -1
            accepted = await self._journal.accept(
                new,
                inbox_limit=self._settings.inbox_limit,
                limit_bytes=self._settings.journal_limit_bytes,
            )
        return self._submit(accepted)

    async def _answer_at_once(self, new: NewTurn, own: wire.SelfAnswered, message: Mapping[str, Any]) -> Turn:
        """Journal a message that the agent has no part in together with its answer."""
        accepted = await self._journal.answer_at_once(
            new,
            answer=own_answers.answer(own, self._sessions.work(), now=self._clock()),
            notice=own_answers.notice(own, message),
            limit_bytes=self._settings.journal_limit_bytes,
        )
        logger.info(
            "turn %s: %s answered at once", accepted.turn.id, own, extra={"turn_id": accepted.turn.id}
        )
        return accepted.turn

    def _kept(self, sent: wire.SentMessage, exchange: Exchange) -> bytes:
        """Return the message as the journal keeps it: where there are traces, with the span that sent it."""
        if self._settings.traces_endpoint is None or not traces.is_sent(exchange.traceparent):
            return sent.encoded
        metadata = {**(sent.raw.get("metadata") or {}), traces.KEY: exchange.traceparent}
        return json.dumps({**sent.raw, "metadata": metadata}, ensure_ascii=False).encode()

    def _check_own_rate(self) -> None:
        """Refuse what comes faster than the platform ever sends it: no inbox bounds it.

        Raises:
            Refusal: as many came within a minute as may wait in the inbox.
        """
        now = anyio.current_time()
        if len(self._own) == self._own.maxlen and (wait := self._own[0] + _OWN_WINDOW - now) > 0:
            limit = f"WORKSPACE_INBOX_LIMIT={self._own.maxlen}"
            raise busy(f"{limit} notices and probes came within {_OWN_WINDOW:g} s", wait)
        self._own.append(now)

    def _submit(self, accepted: Accepted) -> tuple[Turn, int]:
        """Put the turn in line where it is not; see :meth:`_take` for what is returned."""
        turn, seen = accepted.turn, -1
        if accepted.joined:
            turn = self._journal.turn(turn.id) or turn  # it may have gone on since it was joined
            if _may_be_asked_again(turn):
                seen = turn.attempt
                self._sessions.submit(turn, asked_again=True)
        else:
            self._sessions.submit(turn)
        logger.info(
            "turn %s: %s",
            turn.id,
            f"sent again while {turn.state}" if accepted.joined else "accepted",
            extra={"turn_id": turn.id, "session_id": turn.session_id, "task_id": turn.task_id},
        )
        return turn, seen

    def _place(self, sent: wire.SentMessage, caller: str | None) -> tuple[str, str]:
        """Return the task and the session of a new message.

        Raises:
            UnknownTask: the task it names is not there, or not this caller's.
            BadMessage: the context it names is not its task's.
        """
        if sent.task_id is None:
            return new_id(), sent.context_id or new_id()
        latest = self._tasks.turns(sent.task_id, caller)[-1]
        if sent.context_id not in (None, latest.session_id):
            raise BadMessage("message.contextId is not the context of message.taskId")
        goes_on = latest.state not in ENDED or rendering.asked_back(latest)
        return (sent.task_id if goes_on else new_id()), latest.session_id

    async def _told(self, turn: Turn, seen: int, until: float) -> Turn:
        """Wait until the turn's asker can be told how it stands."""
        while True:
            rings = self._bell.listen(turn.id)
            turn = self._as_it_stands(turn, seen)
            if _is_told(turn, seen):
                return turn
            await self._room.wait(rings, until)

    def _as_it_stands(self, turn: Turn, seen: int) -> Turn:
        """Read a turn anew.

        Raises:
            UnknownTask: its session was forgotten before its asker could be told anything.
        """
        found = self._journal.turn(turn.id)
        if found is None and not _is_told(turn, seen):
            raise UnknownTask(
                "the conversation was forgotten, with this message: send it again to begin anew"
            )
        return found or turn

    # --- streams --------------------------------------------------------------------

    async def on_subscribe_to_task(
        self, params: a2a.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Answer ``tasks/resubscribe``: the Task, then what followed it or the cursor."""
        with _answering(context) as (exchange, call):
            turns = self._tasks.turns(params.id, exchange.caller)
            cursor = _sent_cursor(exchange, call)
            turn = next((t for t in turns if cursor is not None and t.seq == cursor.turn_seq), None)
            if cursor is not None and turn is not None:
                task = rendering.task(turn, progress=None, cursor=cursor)
            else:
                turn = turns[-1]
                if _is_terminal(turn) and call.dialect is Dialect.V10:
                    raise UnsupportedOperationError("the task has ended: get it instead")
                cursor, task = self._tasks.snapshot(turns)
            yield _next(exchange, cursor, task)
            async for event in self._follow(exchange, turn, cursor, seen=-1):
                yield event

    async def _follow(
        self, exchange: Exchange, turn: Turn, cursor: Cursor, seen: int
    ) -> AsyncGenerator[Event]:
        """Yield what a turn's log says after the cursor, until the turn was told."""
        rings: anyio.Event | None = None
        while True:
            turn = self._as_it_stands(turn, seen)
            logged = self._journal.events(turn.id, after=cursor.n)
            if logged and logged[0].n > cursor.n + 1:  # the cursor is older than what is kept
                turns = self._journal.turns_of_task(turn.task_id)
                cursor, task = self._tasks.snapshot([t for t in turns if t.seq <= turn.seq])
                yield _next(exchange, cursor, task)
            elif logged:
                for entry in logged:
                    cursor = Cursor(turn.seq, entry.n)
                    yield _next(exchange, cursor, rendering.event(turn, entry))
            elif _is_told(turn, seen):
                break
            elif rings is None:
                rings = self._bell.listen(turn.id)  # and look once more before waiting
            else:
                try:
                    await self._room.wait(rings, self._room.deadline())
                except Refusal as refusal:
                    restarting = refusal.status == 502
                    pause = rendering.pause(turn, cursor, str(refusal), restarting=restarting)
                    yield _next(exchange, cursor, pause)
                    return
                rings = None
        if turn.state in TOLD:
            self._tell(exchange, turn)
        for end, event in rendering.ends(turn, cursor.n, self._tasks.progress(turn).said):
            if end > cursor:
                yield _next(exchange, end, event)

    # --- tasks ----------------------------------------------------------------------

    async def on_get_task(self, params: a2a.GetTaskRequest, context: ServerCallContext) -> a2a.Task:
        """Answer ``tasks/get``, for every turn the journal keeps and also while draining."""
        with _answering(context) as (exchange, _):
            history = listing.history_length(params)
            turns = self._tasks.turns(params.id, exchange.caller)
            if turns[-1].state in TOLD:
                self._tell(exchange, turns[-1])
            return self._tasks.task(turns, history=history)

    async def on_list_tasks(
        self, params: a2a.ListTasksRequest, context: ServerCallContext
    ) -> a2a.ListTasksResponse:
        """Answer ``ListTasks``: the caller's own tasks, latest change first."""
        with _answering(context) as (exchange, _):
            return listing.page(self._tasks, params, exchange.caller)

    async def on_cancel_task(self, params: a2a.CancelTaskRequest, context: ServerCallContext) -> a2a.Task:
        """Answer ``tasks/cancel``: withdraw every turn of the task that has not ended."""
        with _answering(context) as (exchange, _):
            await self._room.enter(self._room.deadline())
            canceled = False
            # Those that wait go first, so that none starts in the place of the one that runs.
            for turn in reversed(self._tasks.turns(params.id, exchange.caller)):
                if turn.state not in ENDED:
                    canceled |= await self._sessions.cancel(turn.id) is not None
            if not canceled:
                raise TaskNotCancelableError("the task has ended already")
            return self._tasks.task(self._tasks.turns(params.id, exchange.caller))

    # --- what this workspace does not do ----------------------------------------------

    async def on_create_task_push_notification_config(
        self, params: a2a.TaskPushNotificationConfig, context: ServerCallContext
    ) -> a2a.TaskPushNotificationConfig:
        """Refuse: callers are told on requests of their own."""
        with _answering(context):
            raise PushNotificationNotSupportedError

    async def on_get_task_push_notification_config(
        self, params: a2a.GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> a2a.TaskPushNotificationConfig:
        """Refuse, as above."""
        with _answering(context):
            raise PushNotificationNotSupportedError

    async def on_list_task_push_notification_configs(
        self, params: a2a.ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> a2a.ListTaskPushNotificationConfigsResponse:
        """Refuse, as above."""
        with _answering(context):
            raise PushNotificationNotSupportedError

    async def on_delete_task_push_notification_config(
        self, params: a2a.DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """Refuse, as above."""
        with _answering(context):
            raise PushNotificationNotSupportedError

    async def on_get_extended_agent_card(
        self, params: a2a.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> a2a.AgentCard:
        """Refuse: there is one card, and it is public."""
        with _answering(context):
            raise ExtendedAgentCardNotConfiguredError


@contextmanager
def _answering(context: ServerCallContext) -> Iterator[tuple[Exchange, Call]]:
    """Mark the exchange with what became of the call; whatever is not marked is a fault of ours."""
    exchange: Exchange = context.state[KEY]
    assert exchange.call is not None
    exchange.reached = True
    try:
        yield exchange, exchange.call
    except (Refusal, Refused, JournalError, A2AError) as error:
        exchange.refusal = _refusal(error)
        raise InvalidRequestError from None  # for the codec; the edge writes the refusal
    exchange.answered = True


def _refusal(error: Refusal | Refused | JournalError | A2AError) -> Refusal:
    """Say in the protocol's words why a call is not served."""
    match error:
        case Refusal():
            return error
        case A2AError():
            return Refusal(str(error), status=A2A_ERROR_MAPPING[type(error)].http_code, error=error)
        case UnknownTask():
            return Refusal(str(error), status=404, error=TaskNotFoundError(str(error)))
        case BadMessage() | ContentConflict():
            return bad_params(str(error))
        case InboxFull():
            return busy(str(error), _BUSY_RETRY)
        case _:
            return busy(f"the journal cannot take it now: {error}", _BUSY_RETRY)


def _next(exchange: Exchange, cursor: Cursor, event: Event) -> Event:
    """Let a stream's next event go, numbered."""
    exchange.answered = True
    exchange.cursor = str(cursor)
    return event


def _sent_cursor(exchange: Exchange, call: Call) -> Cursor | None:
    """Return where the caller says that it stands; none where that is no cursor of ours."""
    metadata = call.params.get("metadata")
    sent = metadata.get("cursor") if isinstance(metadata, dict) else None
    return Cursor.parse(exchange.last_event_id or sent)


def _may_be_asked_again(turn: Turn) -> bool:
    failed_retryably = turn.state is State.FAILED and turn.outcome is not None and turn.outcome.retryable
    return turn.state is State.EXPIRED or failed_retryably


def _is_told(turn: Turn, seen: int) -> bool:
    return turn.state in TOLD and turn.attempt > seen


def _is_terminal(turn: Turn) -> bool:
    return turn.state in ENDED and not rendering.asked_back(turn)
