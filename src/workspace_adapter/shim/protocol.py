"""uvicorn's fast parser, with what it lacks: bounds on what a caller keeps waiting, answers in one piece."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class _InOnePiece:
    """A transport that keeps the head of an answer back for the body that mostly follows at once.

    Otherwise each is a system call and a packet of its own.
    """

    def __init__(self, transport: Any, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport = transport
        self._soon = soon
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, data))
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

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.transport = cast(Any, _InOnePiece(transport, self.loop.call_soon))
        self._late = self.loop.call_later(self.head_time, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self.resume_writing()
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
