"""Where messages to workspaces come in: a row first, then the caller waits for it.

``POST /workspaces/{id}/a2a``. What brings a message (``message/send``, ``message/stream``,
``SendMessage``, ``SendStreamingMessage``) is committed to the queue before anything else, and
the open request is only a waiter on its row. It is held through busy, restart, pause and a
workspace that is gone for a while, all alike, until ``SHIM_HOLD_SECONDS`` or what it asked for
itself is over; then it gets 202 with the queue's id, and the row goes on. Who hangs up takes
nothing back, and who sends the same again joins the row, or gets its answer. A loop between
workspaces ends by the hold of each.

Any other method is passed through, both ways as it comes.

Bare ASGI: nothing here is built per request that the request does not need.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio
from starlette.types import Receive, Scope, Send

from ..errors import (
    BadMessage,
    ContentConflict,
    QueueFull,
    StoreUnavailable,
    UnknownWorkspace,
    WorkspaceUnreachable,
)
from ..queueing import ENDED, State
from . import answers, envelope
from .answers import Told, told
from .envelope import BadCall, Call, NotAllowed, Sender
from .store.contract import Enqueued, Item, Role, Status, Store, Workspace
from .streams import CONTENT_TYPE, whole
from .teller import Telling
from .upstream import Response, Upstream
from .waiting import Stopping, Waiters, patience

logger = logging.getLogger(__name__)

_KEEP_ALIVE = 15.0
"""Seconds of silence on a stream that are filled with a comment."""

_FRESH = 1.0
"""Seconds for which a workspace that was read is not read again to pass something through."""

_KNOWN = 10_000
"""Workspaces remembered for that."""

_CONTENT_TYPES = frozenset({"application/json", "application/a2a+json"})

_THERE = (*envelope.FORWARDED, "content-type", "accept", "accept-encoding", "last-event-id")
"""Headers of a request that is passed through which its workspace sees."""

_BACK = (
    "content-type",
    "content-length",
    "content-encoding",
    "cache-control",
    "retry-after",
    "x-accel-buffering",
)
"""Headers of a response that is passed through which its caller sees."""


class Caller(Protocol):
    """Who asks, as far as it matters here."""

    @property
    def role(self) -> Role | None: ...
    @property
    def workspace_id(self) -> str | None: ...
    @property
    def identity(self) -> str | None: ...


class Door:
    """Takes messages, and tells their senders what became of them.

    Args:
        hold: seconds a caller is held at most.
        body_limit: bytes a request may have.
    """

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        waiters: Waiters,
        *,
        hold: float,
        body_limit: int,
        keep_alive: float = _KEEP_ALIVE,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._waiters = waiters
        self._hold = hold
        self._body_limit = body_limit
        self._keep_alive = keep_alive
        self._known: dict[str, tuple[float, Workspace]] = {}

    # --- POST /workspaces/{id}/a2a ------------------------------------------------------------

    async def ask(
        self, scope: Scope, receive: Receive, send: Send, *, workspace_id: str, caller: Caller
    ) -> None:
        """Take one call to a workspace, and answer it."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body = await self._read(headers, receive)
            if body is None:
                return
            call = envelope.read(
                body,
                workspace_id=workspace_id,
                sender=Sender(
                    identity=caller.identity,
                    workspace_id=caller.workspace_id,
                    operator=caller.role in (None, Role.OPERATOR),
                ),
                headers=headers,
                new_id=_new_id,
            )
            if call.message is None:
                await self._pass(call, headers, receive, send, workspace_id, caller)
            else:
                await self._queue(call, headers, receive, send)
            return
        except _Refused as refused:
            answer = refused.told
        except BadCall as error:
            answer = told(400, {"error": str(error), "hint": error.hint})
        except NotAllowed as error:
            answer = told(403, {"error": str(error)})
        await answer.send(send)

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> bytes | None:
        """Read the body; ``None``: its sender hung up before it was whole."""
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._body_limit:
            raise _Refused(answers.too_large(self._body_limit))
        if headers.get("content-type", "").partition(";")[0].strip().lower() not in _CONTENT_TYPES:
            why = "Content-Type must be application/json or application/a2a+json"
            raise _Refused(told(415, {"error": why}))
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._body_limit:
                raise _Refused(answers.too_large(self._body_limit))
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    # --- messages -----------------------------------------------------------------------------

    async def _queue(self, call: Call, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        enqueued = await self._enqueue(call)
        workspace_id = call.message.workspace_id if call.message is not None else ""
        with self._waiters.hold() as free:
            hold = patience(headers, self._hold) if free else 0.0

            async def over() -> Told:
                return await self._over(enqueued.id, workspace_id)

            async def answer() -> None:
                if call.streamed and (hold or enqueued.state in ENDED):
                    telling = Telling(
                        self._store,
                        self._waiters,
                        send,
                        item_id=enqueued.id,
                        call=call,
                        after=_number(headers.get("last-event-id")),
                        hold=hold,
                        over=over,
                        keep_alive=self._keep_alive,
                    )
                    await telling.run(new=not enqueued.joined)
                else:
                    answer = await self._held(call, enqueued, hold, over)
                    await answer.send(send)

            await _unless_gone(receive, answer)

    async def _enqueue(self, call: Call) -> Enqueued:
        assert call.message is not None
        workspace_id = call.message.workspace_id
        try:
            enqueued = await self._store.enqueue(call.message)
        except (ContentConflict, BadMessage) as error:
            raise _Refused(answers.in_rpc(-32602, str(error), call.request_id)) from None
        except QueueFull as error:
            raise _Refused(answers.full(error.depth, str(error))) from None
        except UnknownWorkspace:
            raise _Refused(await self._no_workspace(workspace_id)) from None
        except StoreUnavailable as error:
            logger.debug("a message to workspace %s was not taken: %s", workspace_id, error)
            raise _Refused(answers.store_unavailable()) from None
        logger.debug(
            "queue item %s: %s by %s to workspace %s",
            enqueued.id,
            f"sent again while {enqueued.state}" if enqueued.joined else "queued",
            call.method,
            workspace_id,
        )
        return enqueued

    async def _held(
        self, call: Call, enqueued: Enqueued, hold: float, over: Callable[[], Awaitable[Told]]
    ) -> Told:
        """Wait for an item's end; return what its sender is told."""
        try:
            item = await self._waiters.until_ended(enqueued.id, hold, new=not enqueued.joined)
        except Stopping:
            return answers.stopping(enqueued.id)
        if item is None:
            return await over()
        if item.method in envelope.STREAMED and item.answer is not None and item.answer.status == 200:
            return answers.of_item(await self._without_stream(item), call.method, call.request_id)
        return answers.of_item(item, call.method, call.request_id)

    async def _over(self, item_id: int, workspace_id: str) -> Told:
        try:
            depth = await self._store.depth(workspace_id)
            return answers.queued(item_id, depth, await self._store.workspace(workspace_id))
        except StoreUnavailable:  # it was there when the message was kept
            return answers.queued(item_id, 0, None)

    async def _no_workspace(self, workspace_id: str) -> Told:
        try:
            return answers.no_workspace(workspace_id, await self._store.workspace(workspace_id))
        except StoreUnavailable:
            return answers.store_unavailable()

    async def _without_stream(self, item: Item) -> Item:
        """Return an item whose answer is that of its whole stream."""
        assert item.answer is not None
        events: list[bytes] = []
        number = 0
        while said := await self._store.said(item.id, after=number):
            events += [data for _, data in said]
            number = said[-1][0]
        return replace(item, answer=replace(item.answer, body=whole(events, item.answer.body)))

    # --- what passes through ------------------------------------------------------------------

    async def _pass(
        self,
        call: Call,
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
        workspace_id: str,
        caller: Caller,
    ) -> None:
        """Pass a call through; once more where the workspace has moved meanwhile and saw nothing of it."""
        there = {name: headers[name] for name in _THERE if name in headers}
        if caller.identity is not None:
            there["x-workspace-id"] = caller.identity
        workspace = await self._workspace(workspace_id)
        relay = _Relay(receive, send)
        for last in (False, True):
            try:
                async with self._upstream.open(workspace, "POST", "", there, call.body) as response:
                    await relay.run(response)
                return
            except WorkspaceUnreachable as error:
                logger.debug("%s was not passed through: %s", call.method, error)
                self._known.pop(workspace_id, None)
                if relay.begun:
                    return  # its caller sees that it is cut
                url, workspace = workspace.url, await self._workspace(workspace_id)
                if last or error.sent or workspace.url == url:
                    raise _Refused(answers.unreachable(workspace, sent=error.sent)) from None

    async def _workspace(self, workspace_id: str) -> Workspace:
        """Return a workspace that has a URL, as it was a moment ago.

        Raises:
            _Refused: there is none.
        """
        now = anyio.current_time()
        read_at, workspace = self._known.get(workspace_id, (-_FRESH, None))
        if workspace is not None and now - read_at < _FRESH:
            return workspace
        try:
            workspace = await self._store.workspace(workspace_id)
        except StoreUnavailable:
            raise _Refused(answers.store_unavailable()) from None
        if workspace is None or workspace.status is Status.REMOVED:
            raise _Refused(answers.no_workspace(workspace_id, workspace))
        if not workspace.url:
            raise _Refused(answers.no_url(workspace))
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[workspace_id] = (now, workspace)
        return workspace

    # --- GET /workspaces/{id}/a2a/queue/{queue_id} --------------------------------------------

    async def show(
        self, receive: Receive, send: Send, *, workspace_id: str, queue_id: str, caller: Caller
    ) -> None:
        """Tell how a message stands to who sent it, to its workspace, and to an operator."""
        await (await self._standing(workspace_id, queue_id, caller)).send(send)

    async def _standing(self, workspace_id: str, queue_id: str, caller: Caller) -> Told:
        numeric = queue_id.isascii() and queue_id.isdigit() and len(queue_id) <= 18
        try:
            item = await self._store.item(int(queue_id)) if numeric else None
            if item is None or item.workspace_id != workspace_id:
                return told(404, {"error": "queue item not found", "retryable": True})
            if not _may_see(item, caller):
                return told(403, {"error": "only its sender, its workspace and an operator may see it"})
            if item.state is State.COMPLETED and item.method in envelope.STREAMED and item.answer is not None:
                item = await self._without_stream(item)
        except StoreUnavailable:
            return answers.store_unavailable()
        return told(200, _shown(item))


# --- pieces -----------------------------------------------------------------------------------


class _Refused(Exception):
    """A call that is not served, with its answer."""

    def __init__(self, told: Told) -> None:
        super().__init__(told.status)
        self.told = told


class _Relay:
    """Passes a response on as it comes."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.begun = False

    async def run(self, response: Response) -> None:
        head = [
            (name.encode(), response.headers[name].encode("latin-1"))
            for name in _BACK
            if name in response.headers
        ]
        self.begun = True
        await self._send({"type": "http.response.start", "status": response.status, "headers": head})

        async def relay() -> None:
            async for chunk in response.chunks():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})

        if response.headers.get("content-type", "").startswith(CONTENT_TYPE):
            await _unless_gone(self._receive, relay)
        else:
            await relay()


async def _unless_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Work for a caller until it is done, or the caller hung up."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await work()
        tasks.cancel_scope.cancel()


def _new_id() -> str:
    return str(uuid.uuid4())


def _number(last_event_id: str | None) -> int:
    """Read a reader's place in a stream; what is none of ours is the start."""
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _may_see(item: Item, caller: Caller) -> bool:
    if caller.role in (None, Role.OPERATOR):
        return True
    return caller.identity == item.caller or (
        caller.role is Role.WORKSPACE and caller.workspace_id == item.workspace_id
    )


_STATUS = {
    State.QUEUED: "queued",
    State.DELAYED: "queued",
    State.LEASED: "dispatched",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.EXPIRED: "dropped",
    State.DROPPED: "dropped",
}
"""The existing platform's words."""


def _shown(item: Item) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "queue_id": str(item.id),
        "workspace_id": item.workspace_id,
        "status": _STATUS[item.state],
        "state": str(item.state),
        "priority": item.priority,
        "attempts": item.attempt,
        "last_error": item.last_error,
        "enqueued_at": _moment(item.enqueued_at),
        "dispatched_at": _moment(item.leased_at),
        "completed_at": _moment(item.ended_at),
        "expires_at": _moment(item.expires_at),
    }
    if item.answer is not None:
        shown["response_body"] = _json(item.answer.body)
    return {name: value for name, value in shown.items() if value is not None}


def _moment(at: float | None) -> str | None:
    """Write a time as RFC 3339 has it."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
