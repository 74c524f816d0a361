"""The SDK's routes around the door.

To import it takes longer than the rest of the sidecar together; nothing that a resumed turn
needs may import it.
"""

from __future__ import annotations

from a2a.server.context import ServerCallContext
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.routes.rest_routes import create_rest_routes
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import ASGIApp

from . import edge
from .door import Door


def create_codec(door: Door) -> ASGIApp:
    """Build what reads A2A calls for the door, and writes what it answers, in both dialects."""
    context = _Context()
    return Router(
        routes=[
            *create_jsonrpc_routes(door, "/", context, enable_v0_3_compat=True),
            *create_rest_routes(door, context, enable_v0_3_compat=True),
        ],
        redirect_slashes=False,
    )


class _Context(ServerCallContextBuilder):
    """Hands the exchange on to the door."""

    def build(self, request: Request) -> ServerCallContext:
        return ServerCallContext(state={"headers": dict(request.headers), edge.KEY: request.scope[edge.KEY]})
