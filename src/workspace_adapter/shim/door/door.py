"""Where messages to workspaces come in: a row first, then the caller waits for it.

``POST /workspaces/{id}/a2a``. What brings a message (``message/send``, ``message/stream``,
``SendMessage``, ``SendStreamingMessage``) is committed to the queue before anything else, and
the open request is only a waiter on its row. It is held through busy, restart, pause and a
workspace that is gone for a while, all alike, until ``SHIM_HOLD_SECONDS`` or what it asked for
itself is over; then it gets 202 with the queue's id, and the row goes on. Who hangs up takes
nothing back, and who sends the same again joins the row, or gets its answer. A loop between
workspaces ends by the hold of each.

Any other method is passed through, both ways as it comes.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import anyio
from starlette.types import Receive, Scope, Send

from ...errors import (
    ContentConflict,
    StoreUnavailable,
    UnknownWorkspace,
    WorkspaceAdapterError,
    WorkspaceUnreachable,
)
from ...queueing import ENDED
from ..front.body import read
from ..front.identity import WORKSPACE_ID, Caller, caller_of
from ..front.refusal import Refusal
from ..store.contract import Enqueued, Message, Status, Store, Workspace
from ..streams import CONTENT_TYPE
from ..upstream import Response, Upstream
from . import answers, envelope
from .answers import Told
from .envelope import BadCall, Call, NotAllowed, Sender
from .teller import Telling, without_stream
from .waiting import Stopping, Waiters, patience

logger = logging.getLogger(__name__)

_KEEP_ALIVE = 15.0
"""Seconds of silence on a stream that are filled with a comment."""

_FRESH = 1.0
"""Seconds for which a workspace that was read is not read again to pass something through."""

_LARGE_AT_ONCE = 16
"""Large bodies that are read at once: whoever sends many, slowly, must not have us keep them all."""

_KNOWN = 10_000
"""Workspaces remembered for that."""

_THERE = (*envelope.FORWARDED, "accept", "accept-encoding", "last-event-id")
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


class Door:
    """Takes messages, and tells their senders what became of them; bare ASGI behind the edge.

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
        self._large = anyio.CapacityLimiter(_LARGE_AT_ONCE)
        self._keep_alive = keep_alive
        self._known: dict[str, tuple[float, Workspace]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one call to a workspace, and answer it."""
        if scope["method"] != "POST":
            raise Refusal(405, "POST only", headers={"allow": "POST"})
        workspace_id: str = scope["path"].split("/")[2]
        if not WORKSPACE_ID.fullmatch(workspace_id):
            raise Refusal(404, "there is no such workspace")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        call = await self._read(scope, receive, workspace_id, headers)
        if call.message is None:
            await self._pass(call, workspace_id, caller_of(scope), headers, receive, send)
            return
        enqueued = await self._enqueue(call, call.message, send)
        call = replace(call, body=b"", message=None)  # who is held is not to hold its message in memory
        if enqueued is not None:
            await self._hold_open(call, enqueued, workspace_id, headers, receive, send)

    async def _read(
        self, scope: Scope, receive: Receive, workspace_id: str, headers: Mapping[str, str]
    ) -> Call:
        caller = caller_of(scope)
        try:
            return envelope.read(
                await read(scope, receive, self._body_limit, large=self._large),
                workspace_id=workspace_id,
                sender=Sender(
                    identity=caller.identity,
                    workspace_id=caller.workspace_id,
                    operator=caller.operates,
                ),
                headers=headers,
                new_id=_new_id,
            )
        except BadCall as error:
            raise Refusal(400, str(error), hint=error.hint) from None
        except NotAllowed as error:
            raise Refusal(403, str(error)) from None

    # --- messages -----------------------------------------------------------------------------

    async def _enqueue(self, call: Call, message: Message, send: Send) -> Enqueued | None:
        """Commit a message to the queue; ``None``: it was refused, and its caller told."""
        try:
            enqueued = await self._store.enqueue(message)
        except ContentConflict as error:
            await answers.in_rpc(-32602, str(error), call.request_id).send(send)
            return None
        except UnknownWorkspace:
            workspace = await self._store.workspace(message.workspace_id)
            raise answers.no_workspace(message.workspace_id, workspace) from None
        logger.debug(
            "queue item %s: %s by %s",
            enqueued.id,
            f"sent again while {enqueued.state}" if enqueued.joined else "queued",
            call.method,
            extra={"workspace_id": message.workspace_id},
        )
        return enqueued

    async def _hold_open(
        self,
        call: Call,
        enqueued: Enqueued,
        workspace_id: str,
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
    ) -> None:
        async def over() -> Told:
            workspace, depth = None, 1
            with suppress(StoreUnavailable):  # it was there when the message was kept
                depth = await self._store.depth(workspace_id)
                workspace = await self._store.workspace(workspace_id)
            return answers.queued(enqueued.id, depth, workspace)

        with self._waiters.hold() as free:
            hold = patience(headers, self._hold) if free else 0.0

            async def answer() -> None:
                if call.streamed and (hold > 0 or enqueued.state in ENDED):
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
                    return
                told = None if call.streamed else await self._held(call, enqueued, hold)
                await (told or await over()).send(send)

            await _unless_gone(receive, answer)

    async def _held(self, call: Call, enqueued: Enqueued, hold: float) -> Told | None:
        """Wait for an item's end; return what its sender is told of it."""
        try:
            item = await self._waiters.until_ended(enqueued.id, hold, new=not enqueued.joined)
        except Stopping:
            return answers.stopping(enqueued.id)
        if item is None:
            return None
        item = await without_stream(self._store, item)
        return answers.of_item(item, call.method, call.request_id)

    # --- what passes through ------------------------------------------------------------------

    async def _pass(
        self,
        call: Call,
        workspace_id: str,
        caller: Caller,
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
    ) -> None:
        """Pass a call through; once more where the workspace has moved meanwhile and saw nothing of it."""
        there = {name: headers[name] for name in _THERE if name in headers}
        there["content-type"] = "application/json"  # it was read as that, whatever `curl -d` calls it
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
                logger.info("%.60r was not passed through: %s", call.method, error)
                if relay.begun:
                    return  # its caller sees that it is cut
                self._known.pop(workspace_id, None)
                url, workspace = workspace.url, await self._workspace(workspace_id)
                if last or error.sent or workspace.url == url:
                    raise answers.unreachable(workspace, sent=error.sent) from None

    async def _workspace(self, workspace_id: str) -> Workspace:
        """Return a workspace that has a URL, as it was a moment ago.

        Raises:
            Refusal: there is none.
        """
        now = anyio.current_time()
        if (known := self._known.get(workspace_id)) is not None and now - known[0] < _FRESH:
            return known[1]
        workspace = await self._store.workspace(workspace_id)
        if workspace is None or workspace.status is Status.REMOVED:
            raise answers.no_workspace(workspace_id, workspace)
        if not workspace.url:
            raise answers.no_url(workspace)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[workspace_id] = (now, workspace)
        return workspace


class _Relay:
    """Passes a response on as it comes."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.begun = False

    async def run(self, response: Response) -> None:
        there = response.headers
        # As aiohttp decoded them, so each byte is what the workspace sent.
        head = [(n.encode(), there[n].encode("utf-8", "surrogateescape")) for n in _BACK if n in there]
        self.begun = True
        await self._send({"type": "http.response.start", "status": response.status, "headers": head})

        length = there.get("content-length", "")

        async def relay() -> None:
            left = int(length) if length.isdigit() else -1
            async for chunk in response.chunks():
                left -= len(chunk)
                await self._send({"type": "http.response.body", "body": chunk, "more_body": left != 0})
                if left == 0:
                    return
            await self._send({"type": "http.response.body", "body": b""})

        if not there.get("content-type", "").startswith(CONTENT_TYPE):
            await relay()
            return
        try:
            await _unless_gone(self._receive, relay)
        except WorkspaceUnreachable:
            # Its last event is missing: that says it to who reads, and it is asked to subscribe again.
            await self._send({"type": "http.response.body", "body": b""})
            raise


async def _unless_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Work for a caller until it is done, or the caller hung up."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    failed: WorkspaceAdapterError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            await work()
        except WorkspaceAdapterError as error:  # not to be raised as a group
            failed = error
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


def _new_id() -> str:
    return str(uuid.uuid4())


def _number(last_event_id: str | None) -> int:
    """Read a reader's place in a stream; what is none of ours is the start."""
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0
