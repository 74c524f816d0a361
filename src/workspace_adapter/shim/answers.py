"""What a caller is told of its message: the workspace's own answer, or why there is none yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Send

from .. import wire
from ..queueing import Reply, State
from .envelope import MODERN, RequestId
from .store.contract import Answer, Item, Status, Workspace
from .streams import with_request_id

_DEAD_LETTER_RETRY = 30
_STOPPING_RETRY = 1
_STORE_RETRY = 5
_FULL_RETRY = 5
_RESTART_RETRY = 5
"""Seconds after which a caller may try again."""

_NOT_YET = {
    Status.PAUSED: "workspace is paused",
    Status.PROVISIONING: "workspace is starting",
    Status.OFFLINE: "workspace is offline",
    Status.FAILED: "workspace did not start",
}


@dataclass(frozen=True, slots=True)
class Told:
    """One response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, send: Send) -> None:
        """Write it out."""
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        head += [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})


def told(
    status: int, body: Mapping[str, Any], *, retry_after: int | None = None, item_id: int | None = None
) -> Told:
    """Return a response of ours; where waiting helps, with the seconds."""
    headers = {} if item_id is None else _named(item_id)
    if retry_after is not None:
        body = {**body, "retry_after": retry_after}
        headers["retry-after"] = str(retry_after)
    return Told(status, json.dumps(body, ensure_ascii=False).encode(), headers)


def _named(item_id: int) -> dict[str, str]:
    return {"x-queue-id": str(item_id)}


# --- of an item -------------------------------------------------------------------------


def of_item(item: Item, method: str, request_id: RequestId) -> Told:
    """Return what an item that has ended came to.

    Args:
        method: of the call that asks now; the message may have been sent by another before.
    """
    known = {"queue_id": str(item.id), "status": str(item.state)}
    if item.answer is not None and (item.state is State.COMPLETED or _answers(item.answer)):
        if (item.method in MODERN) is not (method in MODERN):
            why = f"this message was sent before by {item.method}; the answer is in that dialect: ask with it"
            return in_rpc(-32602, why, request_id)
        return Told(item.answer.status, with_request_id(item.answer.body, request_id), _named(item.id))
    why = item.last_error or "nothing more is known"
    if item.state is State.EXPIRED:
        return told(504, {"error": f"the message expired: {why}", **known}, item_id=item.id)
    if item.state is State.DROPPED:
        return told(
            410, {"error": f"the message was taken out of the queue: {why}", **known}, item_id=item.id
        )
    return told(
        502,
        {
            "error": f"the message was given up: {why}. It is kept: send the same message again to try anew,"
            f" or have an operator replay queue item {item.id}",
            **known,
        },
        retry_after=_DEAD_LETTER_RETRY,
        item_id=item.id,
    )


def _answers(answer: Answer) -> bool:
    """Whether a dead letter's last answer is one; a workspace may have said that it failed."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return False
    return answer.status < 300 and isinstance(body, dict) and Reply(status=answer.status, body=body).answers


def queued(item_id: int, depth: int, workspace: Workspace | None) -> Told:
    """Return what a caller hears whose hold is over: its message waits, or is being worked on."""
    why = "workspace agent busy"
    if workspace is not None:
        why = "workspace is restarting" if workspace.restarting else _NOT_YET.get(workspace.status, why)
    body = {
        "queued": True,
        "queue_id": str(item_id),
        "queue_depth": depth,
        "message": f"{why} - request queued, will dispatch when capacity available",
    }
    return told(202, body, item_id=item_id)


def stopping(item_id: int) -> Told:
    """Return what everybody hears who waits when the shim is about to end."""
    body = {
        "error": "platform restarting; the message is kept: send it again",
        "restarting": True,
        "queued": True,
        "queue_id": str(item_id),
    }
    return told(503, body, retry_after=_STOPPING_RETRY, item_id=item_id)


# --- without one ------------------------------------------------------------------------


def in_rpc(code: int, why: str, request_id: RequestId) -> Told:
    """Return a refusal in the protocol's own words, as a workspace of ours words it."""
    body = json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": why}})
    return Told(200, body.encode())


def full(depth: int, why: str) -> Told:
    """No room in the queue: nothing was taken."""
    return told(429, {"error": why, "queue_depth": depth}, retry_after=_FULL_RETRY)


def store_unavailable() -> Told:
    """Nothing was taken, because nothing could be kept."""
    why = "the platform cannot store anything now; nothing was taken: send it again"
    return told(503, wire.busy(why, _STORE_RETRY), retry_after=_STORE_RETRY)


def no_workspace(workspace_id: str, workspace: Workspace | None) -> Told:
    """There is none of this name, or not any more."""
    if workspace is not None:
        return told(410, {"error": f"workspace {workspace_id} was removed", "status": str(workspace.status)})
    return told(404, {"error": f"there is no workspace {workspace_id}"})


def no_url(workspace: Workspace) -> Told:
    """It has not registered."""
    body = {"error": "workspace has no URL", "status": str(workspace.status)}
    return told(503, body, retry_after=_RESTART_RETRY)


def unreachable(workspace: Workspace, *, sent: bool) -> Told:
    """What is passed through did not arrive, or broke off before an answer."""
    if sent or workspace.restarting:
        why = "workspace agent restarting - retry after a short backoff"
        return told(503, {"error": why, "restarting": True, "busy": True}, retry_after=_RESTART_RETRY)
    return told(502, {"error": "failed to reach workspace agent"}, retry_after=_RESTART_RETRY)


def too_large(limit: int) -> Told:
    """The body exceeds the limit."""
    why = f"the body is larger than SHIM_BODY_LIMIT_BYTES={limit}"
    return told(413, {"error": why, "truncated": True, "max_bytes": limit})
