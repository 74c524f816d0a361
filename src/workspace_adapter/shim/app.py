"""Routes to verbs; no decisions.

Behind it, a message, a registration and a heartbeat are plain ASGI, read once; the rest is
Starlette's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .front import edge
from .front.body import parse, read
from .front.identity import Caller, caller_of
from .front.refusal import Refusal, write
from .operator import Operator, cycle_shown, whole
from .registry import BODY_LIMIT, Registry
from .store.contract import Aim

_LONGEST_WAIT = 600
"""Seconds for which somebody may wait for a restart in one request."""

Verb = Callable[[Request], Awaitable[Response]]


def create_routes(
    *,
    registry: Registry,
    operator: Operator,
    door: ASGIApp,
    further: list[BaseRoute],
    ready: Verb,
    metrics: Verb,
) -> ASGIApp:
    """Build what stands behind the edge.

    Args:
        door: what is given each request to ``/workspaces/{id}/a2a``.
        further: routes of other rooms.
        ready: answers ``/readyz``.
        metrics: answers ``/metrics``, for the operator.
    """
    rest = Router(
        [
            Route(edge.HEALTH, health, methods=["GET"]),
            Route(edge.READY, ready, methods=["GET"]),
            Route("/metrics", for_operators(metrics), methods=["GET"]),
            *_of_operator(operator),
            *further,
        ],
        redirect_slashes=False,
        default=_nothing_here,
    )
    hot: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
        edge.HEARTBEAT: registry.heartbeat,
        edge.REGISTER: registry.register,
        edge.UPDATE_CARD: registry.update_card,
    }

    async def routes(scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        plain = hot.get(path)
        if plain is not None:
            if scope["method"] != "POST":
                raise Refusal(405, "POST only", headers={"allow": "POST"})
            await plain(scope, receive, send)
        elif path.endswith("/a2a") and path.count("/") == 3 and path.startswith("/workspaces/"):
            await door(scope, receive, send)
        else:
            scope["app"] = rest  # has a wrong method raised, not answered as text
            await rest(scope, receive, send)

    return routes


def for_operators(verb: Verb) -> Verb:
    """Refuse everybody else."""

    async def endpoint(request: Request) -> Response:
        _operators(request)
        return await verb(request)

    return endpoint


async def health(request: Request) -> Response:
    """Say that the process lives."""
    return JSONResponse({"status": "ok"})


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    await write(send, 404, {"error": "there is nothing at this address: docs/shim.md has them all"})


def _of_operator(operator: Operator) -> list[BaseRoute]:
    async def workspaces(request: Request) -> Response:
        _operators(request)
        return JSONResponse(await operator.workspaces(request.query_params))

    async def create(request: Request) -> Response:
        _operators(request)
        return JSONResponse(await operator.create(await _json(request)), 201)

    async def workspace(request: Request) -> Response:
        _speaker(request)
        return JSONResponse(await operator.workspace(_id(request)))

    async def change(request: Request) -> Response:
        _operators(request)
        return JSONResponse(await operator.change(_id(request), await _json(request)))

    async def remove(request: Request) -> Response:
        _operators(request)
        return await _cycle(request, operator, Aim.REMOVE)

    async def pause(request: Request) -> Response:
        _operators(request)
        return await _cycle(request, operator, Aim.PAUSE)

    async def resume(request: Request) -> Response:
        _operators(request)
        return await _cycle(request, operator, Aim.RESUME)

    async def restart(request: Request) -> Response:
        _speaker(request)
        return await _cycle(request, operator, Aim.RESTART)

    async def restarts(request: Request) -> Response:
        _speaker(request)
        return JSONResponse(await operator.cycles(_id(request)))

    async def tokens(request: Request) -> Response:
        _operators(request)
        return JSONResponse(await operator.tokens(request.path_params.get("id")))

    async def add_token(request: Request) -> Response:
        _operators(request)
        told = await operator.add_token(await _json(request), request.path_params.get("id"))
        return JSONResponse(told, 201)

    async def revoke(request: Request) -> Response:
        _operators(request)
        await operator.revoke(request.path_params["token"], request.path_params.get("id"))
        return JSONResponse({"status": "revoked"})

    async def discover(request: Request) -> Response:
        return JSONResponse(await operator.peer(_id(request), _own_address(request)))

    async def peers(request: Request) -> Response:
        _speaker(request)
        return JSONResponse(await operator.peers(_id(request), _own_address(request), request.query_params))

    async def items(request: Request) -> Response:
        _speaker(request)
        return JSONResponse(await operator.items(_id(request), request.query_params))

    async def dead_letters(request: Request) -> Response:
        _operators(request)
        return JSONResponse(await operator.dead_letters(request.query_params))

    async def item(request: Request) -> Response:
        return JSONResponse(await operator.item(request.path_params["item"], _caller(request)))

    async def replay(request: Request) -> Response:
        _operators(request)
        return JSONResponse(await operator.replay(request.path_params["item"]))

    async def drop(request: Request) -> Response:
        _operators(request)
        because = _text(await _json(request), "reason", "dropped by the operator")
        return JSONResponse(await operator.drop(request.path_params["item"], because))

    at = "/workspaces/{id}"
    return [
        Route("/registry/discover/{id}", discover, methods=["GET"]),
        Route("/registry/{id}/peers", peers, methods=["GET"]),
        Route("/workspaces", workspaces, methods=["GET"]),
        Route("/workspaces", create, methods=["POST"]),
        Route(at, workspace, methods=["GET"]),
        Route(at, change, methods=["PATCH"]),
        Route(at, remove, methods=["DELETE"]),
        Route(f"{at}/pause", pause, methods=["POST"]),
        Route(f"{at}/resume", resume, methods=["POST"]),
        Route(f"{at}/restart", restart, methods=["POST"]),
        Route(f"{at}/restarts", restarts, methods=["GET"]),
        Route(f"{at}/tokens", tokens, methods=["GET"]),
        Route(f"{at}/tokens", add_token, methods=["POST"]),
        Route(f"{at}/tokens/{{token}}", revoke, methods=["DELETE"]),
        Route("/tokens", tokens, methods=["GET"]),
        Route("/tokens", add_token, methods=["POST"]),
        Route("/tokens/{token}", revoke, methods=["DELETE"]),
        Route("/dead-letters", dead_letters, methods=["GET"]),
        Route(f"{at}/a2a/queue", items, methods=["GET"]),
        Route(f"{at}/a2a/queue/{{item}}", item, methods=["GET"]),
        Route(f"{at}/a2a/queue/{{item}}/replay", replay, methods=["POST"]),
        Route(f"{at}/a2a/queue/{{item}}/drop", drop, methods=["POST"]),
    ]


async def _cycle(request: Request, operator: Operator, aim: Aim) -> Response:
    """Ask for a cycle; answer at once, or with ``?wait=`` when it is over."""
    wait = min(_LONGEST_WAIT, whole(request.query_params, "wait", 0))
    reason = _text(
        await _json(request), "reason", f"asked for by {_caller(request).identity or 'the operator'}"
    )
    cycle = await operator.ask(_id(request), aim, reason)
    if wait:
        cycle = await operator.until_over(cycle, wait)
    return JSONResponse({"cycle": cycle_shown(cycle)}, 200 if cycle.ended_at is not None else 202)


def _caller(request: Request) -> Caller:
    return caller_of(request.scope)


def _id(request: Request) -> str:
    workspace_id: str = request.path_params["id"]
    return workspace_id


def _own_address(request: Request) -> str:
    """Return the address at which whoever asks reached us."""
    return str(request.base_url).rstrip("/")


def _operators(request: Request) -> None:
    if not _caller(request).operates:
        raise Refusal(403, "only the operator may do that: use the admin token")


def _speaker(request: Request) -> None:
    if not _caller(request).speaks_for(_id(request)):
        raise Refusal(403, "only the workspace itself or the operator may do that")


async def _json(request: Request) -> Any:
    """Return the body; an empty one is an empty object."""
    body = await read(request.scope, request.receive, BODY_LIMIT)
    return parse(body) if body else {}


def _text(body: Any, name: str, default: str) -> str:
    given = body.get(name) if isinstance(body, dict) else None
    if given is None:
        return default
    if not isinstance(given, str) or not given.isprintable() or len(given) > 500:
        raise Refusal(400, f"{name} must be printable text, at most 500 characters")
    return given
