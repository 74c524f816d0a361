"""What workspaces report of their work, and say to people; read again by cursor.

The shapes are the existing platform's. ``id`` and ``seq`` of an entry are the same number,
which grows; whoever follows with ``since_id`` sees each entry once, in order.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .. import wire
from ..errors import UnknownWorkspace
from .front.body import parse, read, storable
from .front.identity import WORKSPACE_ID, Caller, caller_of
from .front.refusal import Refusal
from .store.contract import Activity, Store

BODY_LIMIT = 4 << 20
"""Bytes of a report."""

NOTIFY = "notify"
"""The type of what a workspace says to people."""

_MEMBERS = (
    "source_id",
    "target_id",
    "method",
    "summary",
    "request_body",
    "response_body",
    "duration_ms",
    "status",
    "error_detail",
    "metadata",
)
"""What is kept of a report, and told again."""

_MOST = 500
_LARGEST = (1 << 63) - 1


class Activities:
    """What ``/workspaces/{id}/activity`` and ``/notify`` do; JSON in, JSON out.

    Args:
        catch_up: brings into a workspace's activity what became of its delegations.
    """

    def __init__(
        self,
        store: Store,
        catch_up: Callable[[str], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._catch_up = catch_up
        self._clock = clock

    def routes(self) -> list[BaseRoute]:
        """Return what is served here."""

        async def get(request: Request) -> Response:
            return JSONResponse(
                await self.read(caller_of(request.scope), request.path_params["id"], request.query_params)
            )

        at = "/workspaces/{id}/activity"
        return [
            Route(at, get, methods=["GET"]),
            Route(at, posted(self.report), methods=["POST"]),
            Route(f"{at}/ack", posted(self.acknowledge), methods=["POST"]),
            Route("/workspaces/{id}/notify", posted(self.notify), methods=["POST"]),
        ]

    async def report(self, caller: Caller, workspace_id: str, body: object) -> dict[str, Any]:
        """Take a report: ``POST /workspaces/{id}/activity``."""
        own(caller, workspace_id)
        said = members(body)
        activity_type = words(said, "activity_type")
        source = said.get("source_id") or workspace_id
        if source != workspace_id:
            raise Refusal(403, "source_id must be the workspace's own id, or left out")
        entry = {name: said[name] for name in _MEMBERS if said.get(name) is not None}
        seq = await self._store.log(workspace_id, activity_type, entry | {"source_id": source})
        return {"status": "logged", "id": str(seq)}

    async def notify(self, caller: Caller, workspace_id: str, body: object) -> dict[str, Any]:
        """Take what a workspace says to people: ``POST /workspaces/{id}/notify``. It is read as activity."""
        own(caller, workspace_id)
        said = members(body)
        message, attachments = words(said, "message", most=None), said.get("attachments") or []
        if not isinstance(attachments, list) or not all(_attached(one) for one in attachments):
            raise Refusal(400, "attachments must be a list of objects with uri and name")
        entry = {
            "source_id": workspace_id,
            "method": NOTIFY,
            "summary": message[:200],
            "status": "ok",
            "response_body": {"message": message, "attachments": attachments},
        }
        await self._store.log(workspace_id, NOTIFY, entry)
        return {"status": "sent"}

    async def read(self, caller: Caller, workspace_id: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return activity: ``GET /workspaces/{id}/activity``.

        ``type``, ``source`` (``canvas`` or ``agent``), ``since_secs``, ``before_ts`` and ``limit`` choose;
        with ``since_id`` it is what is behind that entry, oldest first, else the latest first.
        """
        own(caller, workspace_id)
        source = query.get("source")
        if source not in (None, "", "canvas", "agent"):
            raise Refusal(400, "source must be canvas or agent")
        most = min(_count(query, "limit", 100), _MOST)
        seconds = _count(query, "since_secs", None)
        after = query.get("since_id") or None
        before = query.get("before_ts") or None
        await self._catch_up(workspace_id)
        found = await self._store.activity(
            workspace_id,
            activity_type=storable(query.get("type")) or None,
            by_agent=None if not source else source == "agent",
            since=None if seconds is None else self._clock() - seconds,
            after=None if after is None else await self._cursor(workspace_id, after),
            before=None if before is None else _moment(before),
            most=most,
        )
        return [_shown(one) for one in found]

    async def _cursor(self, workspace_id: str, after: str) -> int:
        """Return where to go on; what was forgotten meanwhile could lie behind a cursor nobody knows."""
        seq = int(after) if after.isascii() and after.isdigit() and len(after) < len(str(_LARGEST)) else 0
        entry = await self._store.activity(workspace_id, after=seq - 1, most=1) if seq else []
        if not entry or entry[0].seq != seq:
            raise Refusal(410, "since_id is unknown, or was forgotten: read without it, and go on from there")
        return seq

    async def acknowledge(self, caller: Caller, workspace_id: str, body: object) -> dict[str, Any]:
        """Note how far a workspace read: ``POST /workspaces/{id}/activity/ack``."""
        own(caller, workspace_id)
        seq = members(body).get("acked_seq")
        if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq <= _LARGEST:
            raise Refusal(400, "acked_seq must be the seq of an entry that was read")
        return {"last_acked_seq": await self._store.acknowledge(workspace_id, seq)}


def posted(verb: Callable[[Caller, str, Any], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """Make an endpoint of a verb that takes who asks, a workspace's id and a body."""

    async def post(request: Request) -> Response:
        body = await body_of(request)
        return JSONResponse(await verb(caller_of(request.scope), request.path_params["id"], body))

    return post


async def body_of(request: Request) -> Any:
    """Return a request's JSON, as it can be kept."""
    return storable(parse(await read(request.scope, request.receive, BODY_LIMIT)))


def own(caller: Caller, workspace_id: str) -> None:
    """Refuse what is neither the workspace's own to do nor the operator's."""
    if not WORKSPACE_ID.fullmatch(workspace_id):
        raise UnknownWorkspace("there is no such workspace")
    if not caller.speaks_for(workspace_id):
        raise Refusal(403, "only the workspace itself and the operator may do this")


def members(body: object) -> Mapping[str, Any]:
    """Return the members of a body that must be an object."""
    if not isinstance(body, Mapping):
        raise Refusal(400, "the body must be a JSON object")
    return body


def words(said: Mapping[str, Any], name: str, *, most: int | None = 128) -> str:
    """Return a text that must be there."""
    value = said.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Refusal(400, f"{name} must be a text that is not empty")
    if most is not None and (len(value) > most or not value.isprintable()):
        raise Refusal(400, f"{name} must be printable, at most {most} characters")
    return value


def _attached(one: object) -> bool:
    return isinstance(one, Mapping) and all(isinstance(one.get(k), str) and one[k] for k in ("uri", "name"))


def _count(query: Mapping[str, str], name: str, default: Any) -> Any:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) > 0):
        raise Refusal(400, f"{name} must be a whole number above 0")
    return int(text)


def _moment(text: str) -> float:
    try:
        # A plus that was sent unescaped arrives as a space.
        at = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise Refusal(400, "before_ts must be a time as 2026-01-31T12:00:00Z") from None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


def _shown(one: Activity) -> dict[str, Any]:
    return {
        "id": str(one.seq),
        "seq": one.seq,
        "workspace_id": one.workspace_id,
        "activity_type": one.activity_type,
        **{name: one.entry.get(name) for name in _MEMBERS},
        "created_at": wire.moment(one.created_at),
    }
