"""uvicorn's fast parser, with what it lacks: bounds on what a caller keeps waiting, answers in one piece,
and a short cut for heartbeats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .body import header

_OK = b"HTTP/1.1 200 OK\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"

_SMALL = 16 << 10
"""Bytes of a body that may take a short cut."""

ShortCut = Callable[[bytes | bytearray, str | None, Callable[[bytes | None], None]], bool]
"""Given a body, its ``Authorization`` and whom to tell the answer: JSON, or ``None`` when the request is to
be given to the application after all. Returns whether it took the request."""


class _InOnePiece:
    """A transport that keeps the head of an answer back for the body that mostly follows at once.

    Otherwise each is a system call and a packet of its own.
    """

    def __init__(self, transport: Any, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport = transport
        self._soon = soon
        self._head: bytes | None = None
        # What every request asks for is found here, not by way of an error.
        self.is_closing = transport.is_closing
        self.writelines = transport.writelines

    def write(self, data: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            # Of nothing as the last piece, asyncio's own loop never thinks that it is written.
            self._transport.writelines((head, data) if data else (head,))
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._soon(self._flush)  # nothing followed: a stream
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """One connection."""

    head_limit = 64 << 10
    """Bytes of a request's line and headers."""
    head_time = 20.0
    """Seconds that they may take to come; as long, a new connection may be silent."""
    read_time = 60.0
    """Seconds in which a caller must read something of what waits to be written to it."""

    _head: int = 0
    """Bytes of the head that is incomplete."""
    _whole = False
    """No head is incomplete."""
    _late: Any = None
    _unread: Any = None
    """Runs while more waits to be written than should."""
    _short_cuts: Mapping[str, ShortCut] = {}
    """What the application answers without a task for each request, by path."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._short_cuts = getattr(self.app, "short_cuts", {})
        self.transport = cast(Any, _InOnePiece(transport, self.loop.call_soon))
        self._late = self.loop.call_later(self.head_time, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self.resume_writing()
        self._unset_keepalive_if_required()  # uvicorn's own leaves it, and all of us, after a reset
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._whole or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > self.head_limit:
            self._refuse(b"431 Request Header Fields Too Large", "the request's headers are too large")
        elif self._late is None:
            self._late = self.loop.call_later(self.head_time, self.transport.close)

    def on_message_begin(self) -> None:
        self._whole = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._whole, self._head = True, 0
        self._in_time()
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        take = self._short_cuts.get(cycle.scope["path"])
        if take is None:
            super()._start_asgi_task(cycle, app)
        else:  # soon, when all that came with its head is read
            self.loop.call_soon(self._go, cycle, app, take)

    def _go(self, cycle: RequestResponseCycle, app: Any, take: ShortCut) -> None:
        """Take the short cut, or the way of all requests."""
        scope: Any = cycle.scope
        plain = not cycle.more_body and len(cycle.body) <= _SMALL and scope["method"] == "POST"
        bearer = header(scope, b"authorization")
        if self.flow.write_paused or not (
            plain and take(cycle.body, bearer, partial(self._answer, cycle, app))
        ):
            super()._start_asgi_task(cycle, app)

    def _answer(self, cycle: RequestResponseCycle, app: Any, body: bytes | None) -> None:
        # The first of several requests is not told that its connection is gone: only the last one is.
        if cycle.disconnected or self.transport.is_closing():
            return
        if body is None:
            super()._start_asgi_task(cycle, app)
            return
        headers = b"".join(b"%s: %s\r\n" % named for named in cycle.default_headers)
        if not cycle.keep_alive:
            headers += b"connection: close\r\n"
        self.transport.writelines((_OK % (headers, len(body), body),))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _look_again(self, size: int) -> None:
        self._unread = self.loop.call_later(self.read_time, self._cut_off, size)

    def _cut_off(self, size: int) -> None:
        """End a connection of which nothing was read meanwhile; its place and what waits is others'."""
        left = self.transport.get_write_buffer_size()
        if left >= size:
            self.transport.abort()
        else:
            self._look_again(left)

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", "this is no HTTP request")

    def _refuse(self, status: bytes, error: str) -> None:
        body = json.dumps({"error": error}).encode()
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (status, len(body), body)
        )
        self.transport.close()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
