"""The layer before the door that reads every request once.

Plain ASGI around the routes. It checks size, type and bearer, keeps the count of callers
held, writes every refusal, and says when an answer was delivered. A refusal is never left
to the codec, whose 0.3 routes turn any exception into HTTP 200: the door marks the
:class:`Exchange`, and nothing unmarked leaves with 2xx.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...settings import Settings
from ..secret_file import SecretFile, Secrets
from .bearer import Bearer, judge
from .envelope import Call, read_json, request_id_of, rest_call, rpc_call
from .refusal import (
    Binding,
    Refusal,
    bad_params,
    busy,
    our_fault,
    too_large,
    unauthorized,
    wrong_content_type,
)

logger = logging.getLogger(__name__)

CARD = "/.well-known/agent-card.json"
HEALTH = "/healthz"
READY = "/readyz"
STATUS = "/status"
METRICS = "/metrics"
SIGNAL = "/signals/restart_pending"
TRANSCRIPT = "/transcript"
INTERNAL = "/internal"
AUTH_STATUS = f"{INTERNAL}/a2a-auth-status"

_PUBLIC = frozenset({CARD, HEALTH, READY})
_BINDINGS = {
    "/": Binding.RPC,
    SIGNAL: Binding.SIGNAL,
    STATUS: Binding.PLAIN,
    METRICS: Binding.PLAIN,
    TRANSCRIPT: Binding.PLAIN,
    AUTH_STATUS: Binding.PLAIN,
}
_CONTENT_TYPES = frozenset({"application/json", "application/a2a+json"})
FULL_HOUSE_RETRY = 5
"""Seconds after which a caller that found every place taken may try again."""

KEY = "workspace_adapter"
"""Where the exchange is found in the ASGI scope."""


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Exchange:
    """One request as the edge read it, and what the door says of its answer."""

    what: str
    """HTTP method and path, for logs."""
    binding: Binding
    caller: str | None = None
    """Who asks, where the bearer was right."""
    signed: bool = False
    """The bearer was right."""
    last_event_id: str | None = None
    traceparent: str | None = None
    """Of the span that sends it, as its header says."""
    request_id: str | int | None = None
    body: object = None
    """As JSON."""
    call: Call | None = None

    reached: bool = False
    """The codec understood the call and handed it to the door."""
    answered: bool = False
    """The door answered it; otherwise whatever the codec sends is replaced."""
    refusal: Refusal | None = None
    tells: str | None = None
    """The turn whose end this answer tells."""
    cursor: str | None = None
    """Of the event that is sent next on a stream."""

    gone: anyio.Event = field(default_factory=anyio.Event)
    """Set when the caller hung up."""


class Edge:
    """ASGI around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        secrets: Secrets,
        delivered: Callable[[str], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._secrets = secrets
        self._delivered = delivered
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = f"/{scope['path'].strip('/')}"  # the platform joins the address and a path as they are
        if path != scope["path"]:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        if path in _PUBLIC or _is_not_here(path):
            await self._app(scope, receive, send)
            return
        exchange = Exchange(
            what=f"{scope['method']} {scope['path']}", binding=_BINDINGS.get(scope["path"], Binding.REST)
        )
        scope[KEY] = exchange
        try:
            body = await self._admit(exchange, scope, receive)
        except Refusal as refusal:
            await _refuse(refusal, exchange, send)
            return
        except _HungUp:
            return
        held = exchange.call is not None and exchange.call.may_be_held
        self._held += held
        try:
            await self._serve(exchange, body, scope, receive, send)
        finally:
            self._held -= held

    # --- in -------------------------------------------------------------------------

    async def _admit(self, exchange: Exchange, scope: Scope, receive: Receive) -> bytes:
        """Read and check the request; return the body that the routes are given."""
        headers = Headers(scope=scope)
        self._check_bearer(exchange, scope["path"], headers)
        exchange.last_event_id = headers.get("last-event-id")
        exchange.traceparent = headers.get("traceparent")
        body = b""
        if scope["method"] == "POST":
            body = await self._read(headers, receive)
            if body or exchange.binding is not Binding.REST:
                exchange.body = _json(headers, body)
                exchange.request_id = request_id_of(exchange.body)
        version = headers.get("a2a-version")
        if exchange.binding is Binding.RPC and scope["method"] == "POST":
            exchange.call = rpc_call(exchange.body, version)
        elif exchange.binding is Binding.REST:
            exchange.call = rest_call(scope["path"], exchange.body if body else {}, version)
        if exchange.call is None:
            return body
        if exchange.call.may_be_held and self._held >= self._settings.held_limit:
            raise busy(
                f"WORKSPACE_HELD_LIMIT={self._settings.held_limit} callers are waiting already",
                FULL_HOUSE_RETRY,
            )
        return exchange.call.for_codec(body)

    def _check_bearer(self, exchange: Exchange, path: str, headers: Headers) -> None:
        authorization = headers.get("authorization")
        if path == TRANSCRIPT:  # the one request on which the platform passes on its own caller's bearer
            token = self._secrets.token
            _insist(judge(authorization, token), token, "the token the platform gave this workspace")
            return
        secret = self._secrets.inbound
        bearer = judge(authorization, secret)
        exchange.signed = bearer is Bearer.RIGHT
        if exchange.signed:
            exchange.caller = headers.get("x-workspace-id") or None
            return
        required = self._settings.require_auth or self._secrets.required
        if bearer is Bearer.WRONG or required or exchange.binding is Binding.PLAIN:
            _insist(bearer, secret, "the platform's inbound secret")

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        limit = self._settings.body_limit_bytes
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large(limit)
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _HungUp
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise too_large(limit)
            more = message.get("more_body", False)
        return b"".join(chunks)

    # --- out ------------------------------------------------------------------------

    async def _serve(
        self, exchange: Exchange, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run the routes until they answered or the caller hung up."""
        async with anyio.create_task_group() as tasks:
            outbound = _Outbound(exchange, send, self._delivered)
            tasks.start_soon(_watch, exchange, outbound, receive, tasks.cancel_scope)
            await self._app(scope, _given(body, exchange), outbound)
            if not outbound.whole:
                tasks.cancel_scope.cancel()


def _is_not_here(path: str) -> bool:
    """Whether the platform would find this on its own runtime only; nothing of it is read."""
    return path != AUTH_STATUS and (path == INTERNAL or path.startswith(f"{INTERNAL}/"))


def _insist(bearer: Bearer, secret: SecretFile, what: str) -> None:
    """Refuse a request whose bearer is not right.

    Raises:
        Refusal: saying what it lacks.
    """
    if bearer is Bearer.NONE:
        raise unauthorized(f"a bearer is required: {what}")
    if bearer is Bearer.UNKNOWN:
        raise unauthorized(f"no bearer can be checked: {secret.path} is missing")
    if bearer is Bearer.WRONG:
        raise unauthorized(f"the bearer is not {what}")


def _json(headers: Headers, body: bytes) -> object:
    if headers.get("content-type", "").partition(";")[0].strip().lower() not in _CONTENT_TYPES:
        raise wrong_content_type()
    return read_json(body)


class _HungUp(Exception):
    """The caller left before its request was read."""


async def _watch(exchange: Exchange, outbound: _Outbound, receive: Receive, scope: anyio.CancelScope) -> None:
    """Let the request go once its caller has; what was accepted goes on."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not outbound.whole:  # a server says the same once everything was sent
        exchange.gone.set()
        scope.cancel()


def _given(body: bytes, exchange: Exchange) -> Receive:
    """Return the ASGI ``receive`` of a request whose body was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await exchange.gone.wait()
        return {"type": "http.disconnect"}

    return receive


class _Outbound:
    """The ASGI ``send`` of one request: holds the head back until it is known to be right."""

    def __init__(self, exchange: Exchange, send: Send, delivered: Callable[[str], None]) -> None:
        self._exchange = exchange
        self._send = send
        self._delivered = delivered
        self._head: Message | None = None
        self._refused = False
        self.whole = False
        """The answer was sent to its last byte; nobody hangs up on it any more."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        more = message.get("more_body", False)
        if self._head is not None:
            if more and message["body"].startswith(b":"):
                return  # a stream's ping before its first event: nothing is decided yet
            await self._begin(self._head)
            self._head = None
        if self._refused:
            return
        if not more:
            await anyio.lowlevel.checkpoint()  # goes no further when the caller has left
        await self._send(_numbered(message, self._exchange))
        self.whole = not more and not self._exchange.gone.is_set()
        if self.whole and self._exchange.tells is not None:
            self._delivered(self._exchange.tells)

    async def _begin(self, head: Message) -> None:
        refusal = self._exchange.refusal or self._unmarked(head["status"])
        if refusal is None:
            await self._send(head)
            return
        self._refused = True
        await _refuse(refusal, self._exchange, self._send)

    def _unmarked(self, status: int) -> Refusal | None:
        """Decide what is sent where the door marked nothing."""
        exchange = self._exchange
        if exchange.answered or exchange.call is None:
            return None
        if exchange.reached:
            return our_fault()
        if status in (404, 405):
            return None  # no such route
        return bad_params("the params do not fit the method")


def _numbered(message: Message, exchange: Exchange) -> Message:
    """Give a stream's event its cursor as its id, and its members an order.

    The codec's maps have another order in each process; a stream that goes on after a
    restart is to be the same to the byte.
    """
    if exchange.cursor is None or not message["body"].startswith(b"data:"):
        return message
    event = json.dumps(json.loads(message["body"][5:]), ensure_ascii=False, sort_keys=True)
    numbered = f"id: {exchange.cursor}\r\ndata: {event}\r\n\r\n".encode()
    exchange.cursor = None
    return {**message, "body": numbered}


async def _refuse(refusal: Refusal, exchange: Exchange, send: Send) -> None:
    status, headers, body = refusal.render(exchange.binding, exchange.request_id)
    method = exchange.call.method if exchange.call is not None else ""
    level = logging.ERROR if status == 500 else logging.INFO
    logger.log(level, "refused %s %s: %s", exchange.what, method, refusal, extra={"status": status})
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    encoded.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
