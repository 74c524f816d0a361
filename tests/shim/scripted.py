"""A workspace made of a socket: it answers each request as it is told, or breaks off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio


@dataclass(frozen=True, slots=True)
class Request:
    """What came."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        text: str = json.loads(self.body)["params"]["message"]["parts"][0]["text"]
        return text


class Exchange:
    """One request with its connection."""

    def __init__(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._reader = reader
        self._writer = writer
        self.keep = True

    async def answer(self, status: int = 200, body: object = b"", **headers: str) -> None:
        """Send a whole response; anything but bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(status, **{"content_length": str(len(data)), **headers})
        await self.say(data)

    async def result(self, text: str) -> None:
        """Send an answer as a workspace of ours does."""
        parts = [{"kind": "text", "text": text}]
        await self.answer(200, {"jsonrpc": "2.0", "id": 1, "result": {"kind": "message", "parts": parts}})

    async def head(self, status: int, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
        await self.say("\r\n".join([*lines, "", ""]).encode())

    async def event(self, result: object, cursor: str | None = None) -> None:
        """Send one event of a stream whose head was sent."""
        head = "" if cursor is None else f"id: {cursor}\n"
        await self.say(
            f"{head}data: {json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': result})}\n\n".encode()
        )

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the caller hangs up."""
        await self._reader.read(1)

    def close(self) -> None:
        """Hang up in the ordinary way."""
        self.keep = False

    def reset(self) -> None:
        """Hang up so that the caller's next read fails."""
        self._writer.transport.abort()
        self.keep = False


Script = Callable[[Exchange], Awaitable[None]]


class Scripted:
    """One such workspace; ``script`` may be changed at any time."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.running = 0
        """Requests not answered yet."""
        self.most = 0
        """As many as ever ran at once."""
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def texts(self) -> list[str]:
        return [request.text for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                keep = True
                while keep:
                    exchange = Exchange(await _request(reader), reader, writer)
                    self.requests.append(exchange.request)
                    self.running += 1
                    self.most = max(self.most, self.running)
                    try:
                        await self.script(exchange)
                    finally:
                        self.running -= 1
                    keep = exchange.keep
            finally:
                writer.close()


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    """Serve a scripted workspace on a free port."""
    workspace = Scripted(script)
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await workspace.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    workspace.port = server.sockets[0].getsockname()[1]
    try:
        yield workspace
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def until(condition: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(0.005)


def envelope(text: str, *, message_id: str = "m-1", method: str = "message/send", **more: Any) -> bytes:
    """Build a message's body as the door keeps it."""
    message = {"role": "user", "messageId": message_id, "parts": [{"kind": "text", "text": text}], **more}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"message": message}}).encode()


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)
