"""The routes a workspace calls: each request is held against the contract, then answered."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .contract import Call, call_of, judge
from .faults import Fault, Faults, How, send_answer, until_gone
from .row import Row, Status
from .times import Times
from .tokens import Tokens

_KEPT = 20_000
"""Requests remembered."""
_LOAD = 2.0
"""Seconds by which a busy machine may delay a beat, and a registration that was on its way."""
_STALE = 3
"""Refusals in a row for one bearer after which its sender has not looked into the file again."""


@dataclass(slots=True)
class Received:
    """One request of a workspace."""

    at: float
    """On the monotonic clock."""
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    """``None`` without one, or when it is no JSON."""
    status: int | None = None
    """What was answered; ``None`` while nothing was, and when a fault took the request."""
    fault: How | None = None


class Registry:
    """The platform's ear for one workspace.

    Args:
        rate_limit: requests allowed in ``times.rate_window``.
        org_id: demanded in ``X-Molecule-Org-Id`` where the platform demands it; ``None`` for none.
        reset: resets the connection of a client.
        on_beat: told of every heartbeat that was taken.
    """

    def __init__(
        self,
        *,
        workspace_id: str,
        row: Row,
        tokens: Tokens,
        faults: Faults,
        times: Times,
        rate_limit: int,
        org_id: str | None,
        reset: Callable[[object], None],
        on_beat: Callable[[], None],
    ) -> None:
        self._workspace_id = workspace_id
        self._row = row
        self._tokens = tokens
        self._faults = faults
        self._times = times
        self._rate_limit = rate_limit
        self._org_id = org_id
        self._reset = reset
        self._on_beat = on_beat
        self._lately: deque[float] = deque(maxlen=rate_limit)
        self._refused: tuple[str | None, int] = None, 0
        self._beat_at: float | None = None
        self.received: deque[Received] = deque(maxlen=_KEPT)
        self.violations: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or fail as told."""
        request = Request(scope, receive)
        raw = await request.body()
        entry = Received(
            time.monotonic(), request.method, request.url.path, dict(request.headers), _parsed(raw)
        )
        self.received.append(entry)
        call = call_of(entry.method, entry.path, self._workspace_id)
        fault = self._faults.take(entry.path)
        if fault is not None:
            entry.fault = fault.how
            self.excuse()
            if await self._fail(fault, request, receive, send):
                return
        response = self._answer(call, entry)
        entry.status = response.status_code
        if entry.status >= 300:
            self.excuse()
        if fault is not None:
            await anyio.sleep(fault.seconds)
        await response(scope, receive, send)

    def excuse(self) -> None:
        """Hold no gap before the next beat against the workspace: it may be the platform's doing."""
        self._beat_at = None

    async def _fail(self, fault: Fault, request: Request, receive: Receive, send: Send) -> bool:
        """Play a fault; return whether that was all."""
        match fault.how:
            case How.LATE:
                return False
            case How.SILENCE:
                await until_gone(receive)
            case How.RESET | How.REFUSED:
                self._reset(request.scope["client"])
                await until_gone(receive)
            case How.CUT:
                await send_answer(fault, send)
                self._reset(request.scope["client"])
                await until_gone(receive)
            case How.ANSWER:
                await send_answer(fault, send)
        return True

    # --- one request ----------------------------------------------------------------

    def _answer(self, call: Call | None, entry: Received) -> Response:
        if call is None:
            self._complain(entry, _no_such_route(entry.path))
            return _error(404, "404 page not found")
        if (refusal := self._too_fast(entry) or self._wrong_org(call, entry)) is not None:
            return refusal
        found = judge(call, entry.body)
        if call.members and not entry.headers.get("content-type", "").startswith("application/json"):
            found.careless.append("Content-Type is not application/json")
        for sentence in (*found.refused, *found.careless):
            self._complain(entry, sentence)
        if found.refused:
            return _error(400, f"invalid request body: {found.refused[0]}")
        if (refusal := self._stranger(call, entry)) is not None:
            return refusal
        match call.path:
            case "/registry/register":
                return self._register(entry)
            case "/registry/heartbeat":
                return self._heartbeat(entry)
            case "/registry/update-card":
                self._row.agent_card = entry.body["agent_card"]
                return JSONResponse({"status": "updated"})
            case "/workspaces/{id}/activity" if call.method == "GET":
                return JSONResponse([])
            case "/workspaces/{id}/activity":
                if entry.body.get("source_id") not in (None, "", self._workspace_id):
                    self._complain(entry, "source_id is somebody else")
                    return _error(403, "source_id must be the workspace itself")
                self._row.active_at = entry.at
                return JSONResponse({"status": "logged"})
            case "/workspaces/{id}/notify":
                return JSONResponse({"status": "sent"})
            case "/workspaces/{id}/boot-event":
                return JSONResponse({"status": "broadcast"})
            case "/health":
                return JSONResponse({"status": "ok"})
            case _:
                status = 410 if self._row.status is Status.REMOVED else 200
                return JSONResponse({"id": self._workspace_id, "status": self._row.status}, status)

    def _register(self, entry: Received) -> Response:
        row, body = self._row, entry.body
        same_life = row.spoke(body.get("boot_id"))
        if not same_life:
            self.excuse()
        if same_life and row.draining_since is not None and entry.at - row.draining_since > _LOAD:
            self._complain(entry, "registered while it drains: it makes a URL known that is about to die")
        row.registered(body, entry.at)
        answer = {
            "status": "registered",
            "delivery_mode": row.delivery_mode,
            "platform_inbound_secret": self._tokens.inbound_secret,
        }
        if not self._tokens.any_live:
            answer["auth_token"] = self._tokens.mint()
            self._tokens.delivered = True
        return JSONResponse(answer)

    def _heartbeat(self, entry: Received) -> Response:
        row, body = self._row, entry.body
        if row.spoke(body.get("boot_id")):
            late = entry.at - self._beat_at if self._beat_at is not None else 0.0
            if late > self._times.beat * 1.3 + _LOAD:
                self._complain(entry, f"came {late:.1f} s after the one before")
            if body.get("uptime_seconds", 0) < row.uptime:
                self._complain(entry, "uptime_seconds went back within one life")
        self._beat_at = entry.at
        if (body.get("observed_generation") or 0) > row.generation:
            self._complain(entry, "observed_generation is one that was never handed out")
        row.beat(body, entry.at)
        self._on_beat()
        return JSONResponse(
            {
                "status": "ok",
                "generation": row.generation,
                "platform_inbound_secret": self._tokens.inbound_secret,
            }
        )

    # --- who, and how often ---------------------------------------------------------

    def _stranger(self, call: Call, entry: Received) -> Response | None:
        """Return the refusal of who cannot say who it is."""
        claimed = entry.headers.get("x-workspace-id")
        if claimed not in (None, self._workspace_id):
            self._complain(entry, "X-Workspace-ID is not the workspace of the bearer")
            return _error(401, "X-Workspace-ID does not match the token")
        named = entry.body.get("id", entry.body.get("workspace_id")) if isinstance(entry.body, dict) else None
        if call.path.startswith("/registry") and named != self._workspace_id:
            self._complain(entry, f"speaks for the workspace {named}")
            return _error(401, "invalid workspace auth token")
        if call.open or not self._tokens.any_live:
            return None
        bearer = entry.headers.get("authorization", "").removeprefix("Bearer ") or None
        if self._tokens.fits(bearer):
            self._refused = None, 0
            return None
        if call.path == "/registry/register":
            self._row.register_failed_at = entry.at
        if bearer is None:
            if self._tokens.delivered:
                self._complain(entry, "has no bearer, although the workspace was given a token")
            return _error(401, "missing workspace auth token")
        before, count = self._refused
        count = count + 1 if before == bearer else 1
        self._refused = bearer, count
        if count == _STALE and self._tokens.delivered:
            self._complain(entry, f"has a token that was refused {count} times, while the file has a new one")
        return _error(401, "invalid workspace auth token")

    def _wrong_org(self, call: Call, entry: Received) -> Response | None:
        if self._org_id is None or call.exempt:
            return None
        sent = entry.headers.get("x-molecule-org-id")
        if sent is None:
            self._complain(entry, "has no X-Molecule-Org-Id, which this platform demands")
            return JSONResponse(
                {"error": "missing organisation", "code": "TENANT_ORG_HEADER_REQUIRED"}, status_code=400
            )
        if sent != self._org_id:
            self._complain(entry, "has another organisation's X-Molecule-Org-Id")
            return Response(status_code=404)
        return None

    def _too_fast(self, entry: Received) -> Response | None:
        lately = self._lately
        if len(lately) == self._rate_limit and entry.at - lately[0] < self._times.rate_window:
            self._complain(entry, f"is more than request {self._rate_limit} within the rate's window")
            headers = {"X-RateLimit-Limit": str(self._rate_limit), "X-RateLimit-Remaining": "0"}
            return JSONResponse({"error": "rate limit exceeded"}, 429, headers)
        lately.append(entry.at)
        return None

    def _complain(self, entry: Received, sentence: str) -> None:
        self.violations.append(f"{entry.method} {entry.path}: {sentence}")


def _no_such_route(path: str) -> str:
    if "//" in path or (path != "/" and path.endswith("/")):
        return "a slash too many: the platform redirects that, and a redirected POST loses its body"
    return "the platform has no such route for a workspace"


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None


def _error(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status_code=status)
