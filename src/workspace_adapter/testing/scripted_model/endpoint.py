"""The scripted model as an HTTP server."""

from __future__ import annotations

import json
import socket
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Self

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .script import DROP, HANG, Fault, Reply, ScriptError, decide

_REMEMBERED = 500
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class _Dropped(Exception):
    """Raised inside a response to break its connection off."""


class _Server(uvicorn.Server):
    """Leaves the process's signals to whoever runs the test."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class ScriptedModel:
    """Serves ``POST /v1/messages``, streaming or not, while its context is entered.

    ``GET /_requests`` returns the bodies it was sent, newest last, and ``POST /_reset``
    forgets them with the counts of faults: what ``requests`` and ``reset()`` are in
    process. Nothing else is remembered.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on ``host`` and ``port`` once entered; port 0 takes a free one."""
        self._address = (host, port)
        self._requests: deque[Any] = deque(maxlen=_REMEMBERED)
        self._made: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where it listens, as ``ANTHROPIC_BASE_URL`` wants it."""
        host, port = self._address
        return f"http://{host}:{port}"

    @property
    def requests(self) -> list[Any]:
        """The bodies of the last requests for a message, oldest first."""
        return list(self._requests)

    def reset(self) -> None:
        """Forget the requests and the counts of faults made."""
        self._requests.clear()
        self._made.clear()

    async def __aenter__(self) -> Self:
        listener = socket.create_server(self._address)
        self._address = listener.getsockname()[:2]
        self._closing = anyio.Event()
        app = Starlette(
            routes=[
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
                Route("/_requests", self._show, methods=["GET"]),
                Route("/_reset", self._reset, methods=["POST"]),
            ]
        )
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
        server = _Server(config)

        async def serve() -> None:
            with listener:
                await server.serve(sockets=[listener])

        def leave() -> None:
            self._closing.set()
            server.should_exit = True

        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(serve)
        self._stack.callback(leave)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the test."""
        with anyio.move_on_after(seconds):
            await self._closing.wait()

    async def _messages(self, request: Request) -> Response:
        body = await request.json()
        self._requests.append(body)
        try:
            move = decide(body["messages"], self._made)
        except ScriptError as error:
            return _error(400, f"bad script: {error}")
        await self._wait(move.delay)
        match move:
            case Fault(status=status) if status == HANG:
                await self._closing.wait()
                return Response(status_code=503)
            case Fault(status=status) if status == DROP:
                return StreamingResponse(_broken(), media_type="text/event-stream")
            case Fault():
                return _error(move.status, move.message, move.headers)
            case Reply() if body.get("stream"):
                return StreamingResponse(self._stream(move, body), media_type="text/event-stream")
            case Reply():
                await self._wait(move.chunk_delay * (move.chunks - 1))
                return JSONResponse(_message(move, body))

    async def _stream(self, reply: Reply, body: Mapping[str, Any]) -> AsyncIterator[str]:
        message = _message(reply, body)
        blocks, usage = message["content"], message["usage"]
        yield _event("message_start", message=message | {"content": [], "stop_reason": None})
        for index, block in enumerate(blocks):
            if block["type"] == "text":
                empty, pieces = {"type": "text", "text": ""}, _pieces(block["text"], reply.chunks)
                deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
            else:
                empty = block | {"input": {}}
                deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
            yield _event("content_block_start", index=index, content_block=empty)
            for nth, delta in enumerate(deltas):
                if nth:
                    await self._wait(reply.chunk_delay)
                yield _event("content_block_delta", index=index, delta=delta)
            yield _event("content_block_stop", index=index)
        yield _event(
            "message_delta", delta={"stop_reason": reply.stop_reason, "stop_sequence": None}, usage=usage
        )
        yield _event("message_stop")

    async def _count(self, request: Request) -> Response:
        return JSONResponse({"input_tokens": _tokens(await request.json())})

    async def _show(self, request: Request) -> Response:
        return JSONResponse(self.requests)

    async def _reset(self, request: Request) -> Response:
        self.reset()
        return Response(status_code=204)


def _message(reply: Reply, body: Mapping[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if reply.text or not reply.calls:
        content.append({"type": "text", "text": reply.text})
    for call in reply.calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.input})
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "scripted"),
        "content": content,
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": _tokens(body),
            "output_tokens": _tokens(content),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }


def _tokens(said: Any) -> int:
    """About four characters each."""
    return len(json.dumps(said)) // 4


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, count)))
    return [text[at : at + size] for at in range(0, len(text), size)] or [""]


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"


async def _broken() -> AsyncIterator[str]:
    yield "event: ping\n"
    raise _Dropped


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    error = {"type": _ERROR_TYPES.get(status, "api_error"), "message": message}
    return JSONResponse({"type": "error", "error": error}, status, dict(headers or {}))
