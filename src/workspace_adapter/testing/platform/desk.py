"""The routes that others than the workspace call: its callers, and who restarts it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import anyio.abc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from .answers import parsed
from .delegations import Delegation, Delegations
from .envelope import SYSTEM, message_of
from .gojson import decode, encode
from .proxy import Outcome, Proxy
from .queue import Item, ItemState, Queue
from .restart import Restarts
from .times import Times

_BODY_LIMIT = 16 << 20
"""Bytes of a message that the platform takes."""

_FORGED = (SYSTEM, "webhook:", "test:", "channel:")


class Desk:
    """Who is not the workspace is served here, and not asked for a bearer.

    Args:
        answered: told of the answer to each message from the canvas.
    """

    def __init__(
        self,
        *,
        workspace_id: str,
        proxy: Proxy,
        queue: Queue,
        delegations: Delegations,
        restarts: Restarts,
        times: Times,
        answered: Callable[[str, object], None],
    ) -> None:
        self._workspace_id = workspace_id
        self._proxy = proxy
        self._queue = queue
        self._delegations = delegations
        self._restarts = restarts
        self._times = times
        self._answered = answered
        self.tasks: anyio.abc.TaskGroup
        routes = [
            ("/workspaces/{id}/a2a", self._a2a, "POST"),
            ("/workspaces/{id}/a2a/queue/{item}", self._item, "GET"),
            ("/workspaces/{id}/delegate", self._delegate, "POST"),
            ("/workspaces/{id}/delegations", self._ledger, "GET"),
            ("/workspaces/{id}/restart", self._button, "POST"),
            ("/admin/workspaces/{id}/restart", self._restart, "POST"),
        ]
        self.app = Starlette(
            routes=[Route(path, _guarded(verb), methods=[how]) for path, verb, how in routes]
        )

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for one of these routes; the rest is what workspaces call."""
        return any(route.matches(scope)[0] is Match.FULL for route in self.app.routes)

    # --- messages -------------------------------------------------------------------

    async def _a2a(self, request: Request) -> Response:
        caller = request.headers.get("x-workspace-id")
        if caller is not None and caller.startswith(_FORGED):
            return JSONResponse({"error": "forged caller"}, 403)
        if request.path_params["id"] != self._workspace_id:
            return JSONResponse({"error": "workspace not found"}, 404)
        raw = await request.body()
        if len(raw) > _BODY_LIMIT:
            told = {"error": "request body too large", "truncated": True, "max_bytes": _BODY_LIMIT}
            return JSONResponse(told, 413)
        if not isinstance(body := decode(raw), dict):
            return JSONResponse({"error": "invalid request body"}, 400)
        encode(body)  # here what is nested too deeply is still the caller's error
        if caller is not None:
            return _response(await self._detached(self._send(body, caller)))
        with anyio.move_on_after(self._times.canvas):
            return _response(await self._detached(self._send(body, None)))
        return JSONResponse({"status": "queued", "delivery_mode": "push-async", "method": body.get("method")})

    async def _send(self, body: Mapping[str, Any], caller: str | None) -> Outcome:
        outcome = await self._proxy.send(body, caller=caller)
        if caller is None and outcome.error is None and b'"queue_id"' not in outcome.body:
            self._answered(str(message_of(body).get("messageId")), parsed(outcome.body))
        return outcome

    async def _detached(self, work: Awaitable[Outcome]) -> Outcome:
        """Await what goes on when the caller hangs up."""
        done = anyio.Event()
        outcomes: list[Outcome] = []

        async def run() -> None:
            outcomes.append(await work)
            done.set()

        self.tasks.start_soon(run)
        await done.wait()
        return outcomes[0]

    async def _item(self, request: Request) -> Response:
        for item in self._queue.items:
            if item.id == request.path_params["item"]:
                return JSONResponse(self._shown(item))
        return JSONResponse({"error": "queue item not found", "retryable": True}, 404)

    def _shown(self, item: Item) -> dict[str, Any]:
        shown = {
            "queue_id": item.id,
            "workspace_id": self._workspace_id,
            "status": item.state,
            "priority": item.priority,
            "attempts": item.attempts,
        }
        if item.last_error is not None:
            shown["last_error"] = item.last_error
        if item.state is ItemState.COMPLETED:
            shown["response_body"] = item.response
        return shown

    # --- delegations ----------------------------------------------------------------

    async def _delegate(self, request: Request) -> Response:
        body, source = json.loads(await request.body()), request.path_params["id"]
        target, task = body.get("target_id"), body.get("task")
        if target == source:
            return JSONResponse({"error": "self-delegation"}, 400)
        if target != self._workspace_id or not isinstance(task, str):
            return JSONResponse({"error": "tool call failed"}, 403)
        delegation, known = self._delegations.begin(source, target, task, body.get("idempotency_key"))
        told = {"delegation_id": delegation.id, "status": "delegated", "target_id": target}
        if known:
            return JSONResponse({**told, "idempotent_hit": True})
        self.tasks.start_soon(self._delegations.run, delegation)
        return JSONResponse(told, 202)

    async def _ledger(self, request: Request) -> Response:
        of = [one for one in self._delegations.all.values() if one.source == request.path_params["id"]]
        return JSONResponse([_shown(one) for one in reversed(of[-50:])])

    # --- restarts -------------------------------------------------------------------

    async def _button(self, request: Request) -> Response:
        self._restarts.by_button()
        return JSONResponse({"status": "restarting"})

    async def _restart(self, request: Request) -> Response:
        self._restarts.by_id()
        return JSONResponse({"status": "restarting"}, 202)


def _shown(delegation: Delegation) -> dict[str, Any]:
    return {
        "delegation_id": delegation.id,
        "source_id": delegation.source,
        "target_id": delegation.target,
        "status": delegation.state,
        "response_preview": delegation.answer,
        "error": delegation.error,
    }


def _response(outcome: Outcome) -> Response:
    return Response(outcome.body, outcome.status, dict(outcome.headers), "application/json")


def _guarded(
    verb: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await verb(request)
        except (ValueError, AttributeError, RecursionError):
            return JSONResponse({"error": "invalid request body"}, 400)

    return endpoint
