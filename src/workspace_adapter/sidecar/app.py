"""Routes to verbs; no decisions."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..drain import Report
from ..settings import Settings
from ..wire import BadSignal, RestartSignal, parse_restart_signal, rpc_error, rpc_result
from .door import edge
from .door.bearer import InboundSecret
from .door.card import etag
from .drainer import SignalTooSoon

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
    metrics: Callable[[str], Awaitable[Scraped]],
    ready: Callable[[], tuple[bool, str]],
    settings: Settings,
    card: Mapping[str, Any],
    delivered: Callable[[str], None],
) -> ASGIApp:
    """Build the ASGI application, the edge around it.

    Args:
        codec: what is given every request that is not the workspace's own.
        status: what ``/status`` shows to who has the bearer.
        metrics: what ``/metrics`` shows to them, in a form that an ``Accept`` header allows;
            raises ``MetricsMissing``.
        ready: whether messages are accepted, else why not.
        delivered: told of each turn whose end was written to a caller who was there.
    """
    routes = [
        Route(edge.CARD, _card_endpoint(card), methods=["GET"]),
        Route(edge.HEALTH, _healthy, methods=["GET"]),
        Route(edge.READY, _ready_endpoint(ready), methods=["GET"]),
        Route(edge.STATUS, _status_endpoint(status), methods=["GET"]),
        Route(edge.METRICS, _metrics_endpoint(metrics), methods=["GET"]),
        Route(edge.SIGNAL, _signal_endpoint(drainer, settings.workspace_id), methods=["POST"]),
    ]
    routed = Starlette(routes=routes)
    routed.router.redirect_slashes = False
    routed.router.default = codec
    return edge.Edge(
        routed,
        settings=settings,
        secret=InboundSecret(Path(settings.configs_dir)),
        delivered=delivered,
    )


Endpoint = Callable[[Request], Any]


def _card_endpoint(card: Mapping[str, Any]) -> Endpoint:
    body = json.dumps(card, ensure_ascii=False).encode()
    headers = {
        "etag": etag(body),
        "cache-control": f"public, max-age={_CARD_MAX_AGE}",
        "last-modified": formatdate(usegmt=True),
    }

    async def endpoint(request: Request) -> Response:
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return endpoint


async def _healthy(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


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


def _metrics_endpoint(metrics: Callable[[str], Awaitable[Scraped]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        try:
            scraped = await metrics(request.headers.get("accept", ""))
        except MetricsMissing as error:
            return JSONResponse({"error": str(error)}, status_code=501)
        return Response(scraped.body, headers={"content-type": scraped.media_type})

    return endpoint


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
