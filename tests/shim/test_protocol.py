"""One connection: what it may take, and how answers leave."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.shim.conftest import ON_THE_SHIMS_LOOP
from workspace_adapter.port import bind
from workspace_adapter.server import Server
from workspace_adapter.shim.front.protocol import Protocol
from workspace_adapter.shim.front.refusal import write

DEADLINE = 10.0
LARGE = 32 << 20


class Impatient(Protocol):
    head_time = 0.2
    head_limit = 2000
    read_time = 0.2
    lost: Callable[[], object] = lambda: None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        type(self).lost()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Say when a connection has ended on the server's side."""
    event = anyio.Event()
    monkeypatch.setattr(Impatient, "lost", staticmethod(event.set))
    return event


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await receive()
        await anyio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"data"})
    elif scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(LARGE)})
    else:
        await write(send, 200, {"path": scope["path"]})


class ShortCuts:
    """An application with a short cut that answers when it is told to."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, str | None]] = []
        self.answers: list[Callable[[bytes | None], None]] = []
        self.short_cuts = {"/short": self.take}

    def take(
        self, raw: bytes | bytearray, authorization: str | None, answer: Callable[[bytes | None], None]
    ) -> bool:
        if raw == b"odd":
            return False
        self.taken.append((bytes(raw), authorization))
        self.answers.append(answer)
        return True

    async def told(self, number: int) -> Callable[[bytes | None], None]:
        """Return who waits for an answer, once so many do."""
        while len(self.answers) < number:
            await anyio.sleep(0.005)
        return self.answers[number - 1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole, more = b"", True
        while more:
            message = await receive()
            whole, more = whole + message["body"], message["more_body"]
        await write(send, 200, {"the long way": whole.decode()[:3]})


def posted(body: bytes, *headers: str, path: str = "/short", method: str = "POST") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def connection(app: ASGIApp = app) -> AsyncIterator[SocketStream]:
    with bind("127.0.0.1", 0) as listener:
        server = Server(app, listener, http=Impatient)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run)
            try:
                with anyio.fail_after(DEADLINE):
                    async with await anyio.connect_tcp(*listener.getsockname()) as stream:
                        yield stream
            finally:
                await server.end()


async def all_of(stream: SocketStream) -> bytes:
    told = b""
    while True:
        try:
            told += await stream.receive()
        except anyio.EndOfStream:
            return told


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with connection() as stream:
        assert await all_of(stream) == b""


async def test_a_head_that_comes_too_slowly_is_not_waited_for() -> None:
    async with connection() as stream:
        await stream.send(b"GET / HTTP/1.1\r\n\r\n")
        assert b"200 OK" in await stream.receive()
        began = anyio.current_time()
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):  # noqa: PT012  # whichever notices
            for sign in b"GET / HTTP/1.1\r\nx: " + b"a" * 1000:
                await stream.send(bytes([sign]))
                with anyio.move_on_after(0.02):
                    await stream.receive()
        assert anyio.current_time() - began < 2


async def test_a_head_that_is_too_large_is_refused() -> None:
    async with connection() as stream:
        await stream.send(b"GET / HTTP/1.1\r\nx: " + b"a" * 3000)
        assert (await all_of(stream)).startswith(b"HTTP/1.1 431")


async def test_what_is_no_http_is_told_so_in_json() -> None:
    async with connection() as stream:
        await stream.send(b"hello\r\n\r\n")
        assert (await all_of(stream)).endswith(b'{"error": "this is no HTTP request"}')


async def test_an_answer_leaves_in_one_piece_and_the_head_of_a_stream_at_once() -> None:
    async with connection() as stream:
        await stream.send(b"GET /a HTTP/1.1\r\n\r\n")
        assert (await stream.receive()).endswith(b'\r\n\r\n{"path":"/a"}')
        await stream.send(b"GET /stream HTTP/1.1\r\n\r\n")
        assert (await stream.receive()).endswith(b"\r\n\r\n")
        assert b"data" in await stream.receive()


async def test_requests_that_come_together_are_answered_in_turn() -> None:
    async with connection() as stream:
        await stream.send(b"GET /1 HTTP/1.1\r\n\r\nGET /stream HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
        told = b""
        while b'"/2"' not in told:
            told += await stream.receive()
        assert told.index(b'"/1"') < told.index(b"data") < told.index(b'"/2"')


@ON_THE_SHIMS_LOOP
async def test_who_reads_nothing_of_an_answer_is_cut_off(lost: anyio.Event) -> None:
    async with connection() as stream:
        await stream.send(b"GET /large HTTP/1.1\r\n\r\n")
        await lost.wait()
        assert len(await all_of(stream)) < LARGE


async def test_who_reads_an_answer_slowly_gets_all_of_it(lost: anyio.Event) -> None:
    async with connection() as stream:
        await stream.send(b"GET /large HTTP/1.1\r\n\r\n")
        began, told = anyio.current_time(), 0
        while told < LARGE:
            told += len(await stream.receive(1 << 20))
            await anyio.sleep(Impatient.read_time / 8)
        assert anyio.current_time() - began > 2 * Impatient.read_time
        assert not lost.is_set()


async def test_a_short_cut_is_given_the_body_and_its_answer_is_the_reply() -> None:
    app = ShortCuts()
    async with connection(app) as stream:
        await stream.send(posted(b"one", "authorization: Bearer b"))
        (await app.told(1))(b'{"a":1}')
        reply = await stream.receive()
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert reply.endswith(b'content-type: application/json\r\ncontent-length: 7\r\n\r\n{"a":1}')
        assert b"date: " in reply
        await stream.send(posted(b"two", "connection: close"))
        (await app.told(2))(b"{}")
        assert b"connection: close\r\n" in await all_of(stream)
    assert app.taken == [(b"one", "Bearer b"), (b"two", None)]


async def test_what_a_short_cut_does_not_take_goes_the_long_way() -> None:
    app = ShortCuts()
    async with connection(app) as stream:
        for refused in (posted(b"odd"), posted(bytes(1 << 15)), posted(b"get", method="PUT")):
            await stream.send(refused)
            assert b"the long way" in await stream.receive()
        await stream.send(posted(b"one")[:-1])
        await anyio.sleep(0.05)
        await stream.send(b"e")
        assert b'{"the long way":"one"}' in await stream.receive()
        assert app.taken == []
        await stream.send(posted(b"two"))
        (await app.told(1))(None)
        assert b'{"the long way":"two"}' in await stream.receive()


async def test_short_cuts_of_one_connection_are_answered_in_turn() -> None:
    app = ShortCuts()
    async with connection(app) as stream:
        await stream.send(posted(b"one") + posted(b"far", path="/far") + posted(b"two"))
        first = await app.told(1)
        await anyio.sleep(0.05)
        assert [body for body, _ in app.taken] == [b"one"], "the next waits for its turn"
        first(b'{"n":1}')
        (await app.told(2))(b'{"n":2}')
        told = b""
        while b'{"n":2}' not in told:
            told += await stream.receive()
        assert told.index(b'{"n":1}') < told.index(b'"far"') < told.index(b'{"n":2}')


@ON_THE_SHIMS_LOOP
async def test_nobody_is_told_an_answer_when_the_connection_was_ended_for_what_came_behind() -> None:
    app = ShortCuts()
    async with connection(app) as stream:
        await stream.send(posted(b"one") + posted(b"two") + b"hello\r\n\r\n")
        assert (await all_of(stream)).startswith(b"HTTP/1.1 400")
        assert [body for body, _ in app.taken] == [b"one"]
        for body in (b"{}", None):
            app.answers[0](body)


async def test_nothing_is_kept_of_a_connection_that_was_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = anyio.Event()
    kept: list[object] = []
    ended = Impatient.connection_lost

    def noted(self: Impatient, exc: Exception | None) -> None:
        assert exc is not None
        ended(self, exc)
        kept.append(self.timeout_keep_alive_task)
        gone.set()

    monkeypatch.setattr(Impatient, "connection_lost", noted)
    async with connection() as stream:
        await stream.send(b"GET / HTTP/1.1\r\n\r\n")
        await stream.receive()
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        await gone.wait()
    assert kept == [None]


async def test_nobody_is_told_an_answer_whose_connection_is_gone() -> None:
    app = ShortCuts()
    async with connection(app) as stream:
        await stream.send(posted(b"one"))
        answer = await app.told(1)
        await stream.aclose()
        await anyio.sleep(0.05)
        answer(b"{}")
        answer(None)
