"""Routes to verbs; no decisions."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Any, NamedTuple, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .. import __version__
from ..drain import Report
from ..settings import Settings
from ..wire import BadSignal, RestartSignal, parse_restart_signal, rpc_error, rpc_result
from .door import edge
from .door.card import etag
from .drainer import SignalTooSoon
from .secret_file import Secrets

_CARD_MAX_AGE = 60
"""Seconds. A restart may change the card."""

_INVALID_REQUEST = -32600
_INVALID_PARAMS = -32602


class Drainer(Protocol):
    """What hears the platform's signal."""

    async def signal(self, signal: RestartSignal, *, signed: bool) -> Report:
        """Drain, and report once that is acknowledged."""


class Scraped(NamedTuple):
    """What a scraper is told."""

    body: bytes
    media_type: str


class MetricsMissing(Exception):
    """The extra that ``/metrics`` needs is not installed."""


def create_app(
    *,
    codec: ASGIApp,
    drainer: Drainer,
    status: Callable[[], Mapping[str, Any]],
    metrics: Callable[[], Awaitable[Scraped]],
    ready: Callable[[], tuple[bool, str]],
    settings: Settings,
    secrets: Secrets,
    card: Callable[[], Mapping[str, Any]],
    runtime: str,
    delivered: Callable[[str], None],
    boot_id: str,
) -> ASGIApp:
    """Build the ASGI application, the edge around it.

    Args:
        codec: what is given every request that is not the workspace's own.
        status: what ``/status`` shows to who has the bearer.
        metrics: what ``/metrics`` shows to them; raises ``MetricsMissing``.
        ready: whether messages are accepted, else why not.
        runtime: what it is called where the platform asks for its transcript.
        delivered: told of each turn whose end was written to a caller who was there.
        boot_id: of this life, by which it is told from another on the same address.
    """
    routes = [
        Route(edge.CARD, _card_endpoint(card), methods=["GET"]),
        Route(edge.HEALTH, _health_endpoint(boot_id), methods=["GET"]),
        Route(edge.READY, _ready_endpoint(ready), methods=["GET"]),
        Route(edge.STATUS, _status_endpoint(status), methods=["GET"]),
        Route(edge.METRICS, _metrics_endpoint(metrics), methods=["GET"]),
        Route(edge.TRANSCRIPT, _transcript_endpoint(runtime), methods=["GET"]),
        Route(edge.AUTH_STATUS, _auth_status_endpoint(settings, secrets), methods=["GET"]),
        Route(f"{edge.INTERNAL}{{rest:path}}", _not_here, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        Route(edge.SIGNAL, _signal_endpoint(drainer, settings.workspace_id), methods=["POST"]),
    ]
    routed = Starlette(routes=routes)
    routed.router.redirect_slashes = False
    routed.router.default = codec
    return edge.Edge(
        routed,
        settings=settings,
        secrets=secrets,
        delivered=delivered,
    )


Endpoint = Callable[[Request], Any]


def _card_endpoint(card: Callable[[], Mapping[str, Any]]) -> Endpoint:
    since = formatdate(usegmt=True)

    async def endpoint(request: Request) -> Response:
        body = json.dumps(card(), ensure_ascii=False).encode()
        headers = {
            "etag": etag(body),
            "cache-control": f"public, max-age={_CARD_MAX_AGE}",
            "last-modified": since,
        }
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return endpoint


def _health_endpoint(boot_id: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return JSONResponse({"status": "ok", "boot_id": boot_id})

    return endpoint


def _ready_endpoint(ready: Callable[[], tuple[bool, str]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        is_ready, why = ready()
        if is_ready:
            return JSONResponse({"status": why})
        return JSONResponse({"error": why}, status_code=503)

    return endpoint


def _status_endpoint(status: Callable[[], Mapping[str, Any]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(dict(status()))

    return endpoint


def _metrics_endpoint(metrics: Callable[[], Awaitable[Scraped]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        try:
            scraped = await metrics()
        except MetricsMissing as error:
            return JSONResponse({"error": str(error)}, status_code=501)
        return Response(scraped.body, headers={"content-type": scraped.media_type})

    return endpoint


def _transcript_endpoint(runtime: str) -> Endpoint:
    """What the platform's page of a transcript takes for "this runtime shows none"."""
    none = {"supported": False, "lines": [], "cursor": 0, "more": False, "source": None}

    async def endpoint(request: Request) -> Response:
        return JSONResponse({"runtime": runtime, **none})

    return endpoint


def _auth_status_endpoint(settings: Settings, secrets: Secrets) -> Endpoint:
    """What the platform asks before it has bearers required; that it is answered at all says most."""

    async def endpoint(request: Request) -> Response:
        present = secrets.inbound.read() is not None
        return JSONResponse(
            {
                "require_auth": settings.require_auth or secrets.required,
                "inbound_secret_present": present,
                "ready_to_enforce": present,
                "runtime_version": __version__,
            }
        )

    return endpoint


async def _not_here(request: Request) -> Response:
    return JSONResponse({"error": "this runtime does not have that"}, status_code=404)


def _signal_endpoint(drainer: Drainer, workspace_id: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        exchange: edge.Exchange = request.scope[edge.KEY]
        request_id = exchange.request_id
        try:
            signal = parse_restart_signal(exchange.body)
        except BadSignal as error:
            return JSONResponse(rpc_error(request_id, _INVALID_REQUEST, str(error)), status_code=400)
        if signal.workspace_id not in (None, workspace_id):
            why = f"this is workspace {workspace_id}"
            return JSONResponse(rpc_error(request_id, _INVALID_PARAMS, why), status_code=409)
        try:
            report = await drainer.signal(signal, signed=exchange.signed)
        except SignalTooSoon as error:
            seconds = math.ceil(error.retry_after)
            body = {"error": str(error), "retry_after": seconds}
            return JSONResponse(body, status_code=429, headers={"retry-after": str(seconds)})
        return JSONResponse(rpc_result(request_id, report.as_json()))

    return endpoint
