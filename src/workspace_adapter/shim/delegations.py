"""Tasks that workspaces give one another: queued as any message; how one stands is its item's to say.

A delegation is written after its message is queued, so none is without its item, and a crash
between the two is mended when it is sent again with its idempotency key. What became of it is
read from the item, so a dead letter, an expired and a dropped item are told as failed, and no
answer can be stored without its delegation. It also becomes an entry of the source's activity:
when that is read, by a compare-and-set on the delegation, so once, and no crash can lose it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .. import wire
from ..errors import UnknownWorkspace
from ..queueing import State
from .activity import body_of, members, own, words
from .door import envelope
from .front.body import storable
from .front.identity import WORKSPACE_ID, Caller, caller_of
from .front.refusal import Refusal
from .store.contract import Answer, Delegation, Item, Store

ACTIVITY = "delegation"
"""The type of the entry that says how one ended; its ``method`` is ``delegate_result``."""

_PREVIEW = 4096
"""Characters of an answer or error that are told in a list."""

_STANDS = {State.QUEUED: "queued", State.DELAYED: "queued", State.LEASED: "dispatched"}
_OURS = uuid.UUID("5f6d5f0e-6b0b-4c57-9d5c-0f5e2f4f5a57")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How a delegation stands."""

    status: str
    updated_at: float
    preview: str | None = None
    error: str | None = None


class Delegations:
    """What ``/workspaces/{id}/delegate`` and ``/delegations`` do; JSON in, JSON out."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[BaseRoute]:
        """Return what is served here."""

        async def delegate(request: Request) -> Response:
            status, reply = await self.delegate(
                caller_of(request.scope),
                request.path_params["id"],
                await body_of(request),
                dict(request.headers),
            )
            return JSONResponse(reply, status)

        async def record(request: Request) -> Response:
            reply = await self.record(
                caller_of(request.scope), request.path_params["id"], await body_of(request)
            )
            return JSONResponse(reply, 202)

        async def update(request: Request) -> Response:
            reply = await self.update(
                caller_of(request.scope),
                request.path_params["id"],
                request.path_params["delegation"],
                await body_of(request),
            )
            return JSONResponse(reply)

        async def latest(request: Request) -> Response:
            return JSONResponse(await self.latest(caller_of(request.scope), request.path_params["id"]))

        at = "/workspaces/{id}/delegations"
        return [
            Route("/workspaces/{id}/delegate", delegate, methods=["POST"]),
            Route(at, latest, methods=["GET"]),
            Route(f"{at}/record", record, methods=["POST"]),
            Route(f"{at}/{{delegation}}/update", update, methods=["POST"]),
        ]

    async def delegate(
        self, caller: Caller, workspace_id: str, body: object, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        """Queue a task for another workspace: ``POST /workspaces/{id}/delegate``.

        Sent again with the same ``idempotency_key``, it is the same delegation; one that failed is tried
        anew.
        """
        own(caller, workspace_id)
        said = members(body)
        target_id, task = _target(said, workspace_id), words(said, "task", most=None)
        key = words(said, "idempotency_key", most=512) if said.get("idempotency_key") else None
        if await self._store.workspace(workspace_id) is None:
            raise UnknownWorkspace(f"there is no workspace {workspace_id}")
        delegation_id = str(uuid.uuid4())
        if key is not None:
            delegation_id = str(uuid.uuid5(_OURS, json.dumps([workspace_id, target_id, key])))
        call = envelope.read(
            _message(delegation_id, task),
            workspace_id=target_id,
            sender=envelope.Sender(identity=workspace_id, workspace_id=workspace_id),
            headers=headers,
            new_id=lambda: delegation_id,
        )
        assert call.message is not None
        with anyio.CancelScope(shield=True):  # whoever hangs up, both are written
            item = await self._store.enqueue(call.message)
            delegation, new = await self._store.delegate(
                delegation_id, source_id=workspace_id, target_id=target_id, task=task, item_id=item.id
            )
        reply: dict[str, Any] = {"delegation_id": delegation_id, "target_id": target_id}
        if new:
            return 202, reply | {"status": "delegated"}
        outcome = await self._outcome(delegation)
        return 200, reply | {"status": outcome.status, "idempotent_hit": True}

    async def record(self, caller: Caller, workspace_id: str, body: object) -> dict[str, Any]:
        """Note a task that a workspace sent by itself: ``POST /workspaces/{id}/delegations/record``."""
        own(caller, workspace_id)
        said = members(body)
        target_id, task = _target(said, workspace_id), words(said, "task", most=None)
        delegation, _ = await self._store.delegate(
            words(said, "delegation_id"),
            source_id=workspace_id,
            target_id=target_id,
            task=task,
            status="dispatched",
        )
        if (delegation.source_id, delegation.target_id) != (workspace_id, target_id):
            raise Refusal(409, "this delegation_id is another delegation's")
        return {"delegation_id": delegation.id, "status": "recorded"}

    async def update(
        self, caller: Caller, workspace_id: str, delegation_id: str, body: object
    ) -> dict[str, Any]:
        """Take from the source how one that it sent by itself ended:
        ``POST /workspaces/{id}/delegations/{delegation_id}/update``."""
        own(caller, workspace_id)
        said = members(body)
        status = said.get("status")
        if status not in ("completed", "failed"):
            raise Refusal(400, "status must be completed or failed")
        if not await self._store.report_delegation(
            storable(delegation_id),
            workspace_id,
            status,
            response_preview=_cut(said.get("response_preview")),
            error=_cut(said.get("error")),
        ):
            raise Refusal(
                404,
                "no such delegation was recorded; how one that was queued stands is read from its item",
            )
        return {"delegation_id": delegation_id, "status": status}

    async def latest(self, caller: Caller, workspace_id: str) -> list[dict[str, Any]]:
        """Return the newest 50: ``GET /workspaces/{id}/delegations``."""
        own(caller, workspace_id)
        shown = []
        for one in await self._store.delegations(workspace_id):
            outcome = await self._outcome(one)
            shown.append(
                {
                    "delegation_id": one.id,
                    "source_id": one.source_id,
                    "target_id": one.target_id,
                    "direction": "outbound",
                    "status": outcome.status,
                    "summary": one.task[:_PREVIEW],
                    "response_preview": outcome.preview or "",
                    "error": outcome.error or "",
                    "created_at": wire.moment(one.created_at),
                    "updated_at": wire.moment(outcome.updated_at),
                }
            )
        return shown

    async def catch_up(self, workspace_id: str) -> None:
        """Bring into a workspace's activity what became of its delegations."""
        for one in await self._store.untold(workspace_id):
            outcome = await self._outcome(one)
            entry = {
                "source_id": one.source_id,
                "target_id": one.target_id,
                "method": "delegate_result",
                "summary": f"Delegation {outcome.status}: {one.task[:200]}",
                "status": outcome.status,
                "error_detail": outcome.error,
                "response_body": {"delegation_id": one.id, "text": outcome.preview or ""},
                "metadata": {"delegation_id": one.id},
            }
            await self._store.tell(one.id, ACTIVITY, entry)

    async def _outcome(self, one: Delegation) -> _Outcome:
        if one.item_id is None:
            return _Outcome(
                status=one.status or "dispatched",
                updated_at=one.updated_at,
                preview=one.response_preview,
                error=one.error,
            )
        item = await self._store.item(one.item_id)
        if item is None:
            return _Outcome(status="failed", updated_at=one.updated_at, error="it is no longer kept")
        return outcome_of(item)


def outcome_of(item: Item) -> _Outcome:
    """Say how a delegation stands by its queue item."""
    at = item.ended_at or item.leased_at or item.enqueued_at
    if item.state in _STANDS:
        return _Outcome(status=_STANDS[item.state], updated_at=at, error=item.last_error)
    text, failed = (None, True) if item.answer is None else _read(item.answer)
    if item.state is State.COMPLETED and not failed:
        return _Outcome(status="completed", updated_at=at, preview=_cut(text))
    return _Outcome(
        status="failed",
        updated_at=at,
        preview=_cut(text),
        error=_cut(item.last_error or text or "the target failed and did not say why"),
    )


def _read(answer: Answer) -> tuple[str | None, bool]:
    """Return the text of an answer, and whether it tells of a failure."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return answer.body[:_PREVIEW].decode("utf-8", "replace"), True
    if not isinstance(body, Mapping):
        return None, True
    error = body.get("error")
    if error is not None:
        return str(error.get("message", error) if isinstance(error, Mapping) else error), True
    result = body.get("result")
    if not isinstance(result, Mapping):
        return None, answer.status >= 400
    status = result.get("status")
    status = status if isinstance(status, Mapping) else {}
    artifacts = result.get("artifacts")
    failed = status.get("state") in ("failed", "rejected", "canceled")
    places = [
        [result],
        artifacts if isinstance(artifacts, list) else [],
        [status.get("message")],
        [result.get("message")],
    ]
    if failed:
        places.insert(0, [status.get("message")])
    found = (text for place in places if (text := "\n".join(chain.from_iterable(map(_texts, place)))))
    return next(found, None), failed or answer.status >= 400


def _texts(holder: object) -> Iterable[str]:
    parts = holder.get("parts") if isinstance(holder, Mapping) else None
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]


def _target(said: Mapping[str, Any], workspace_id: str) -> str:
    target_id = said.get("target_id")
    if not isinstance(target_id, str) or not WORKSPACE_ID.fullmatch(target_id):
        raise Refusal(400, "target_id must be the id of a workspace")
    if target_id == workspace_id:
        raise Refusal(400, "a workspace cannot delegate to itself")
    return target_id


def _message(delegation_id: str, task: str) -> bytes:
    message = {
        "kind": "message",
        "role": "user",
        "messageId": delegation_id,
        "parts": [{"kind": "text", "text": task}],
        "metadata": {"delegation_id": delegation_id},
    }
    call = {"jsonrpc": "2.0", "id": delegation_id, "method": "message/send", "params": {"message": message}}
    return json.dumps(call).encode()


def _cut(text: object) -> str | None:
    return storable(text[:_PREVIEW]) if isinstance(text, str) else None
