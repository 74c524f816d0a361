"""What a caller is told of its message: the workspace's own answer, or why there is none yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Send

from ...queueing import Reply, State
from ..front.refusal import Refusal, write_bytes
from ..store.contract import Answer, Item, Status, Workspace
from ..streams import with_request_id
from .envelope import MODERN, RequestId

QUEUE_ID = "x-queue-id"
"""The header by which each answer names its queue item."""

_DEAD_LETTER_RETRY = 30
_STOPPING_RETRY = 1
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
    """One answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, send: Send) -> None:
        """Write it out."""
        await write_bytes(send, self.status, self.body, self.headers)


def _told(status: int, item_id: int, body: Mapping[str, object], *, retry_after: int | None = None) -> Told:
    body = {**body, "queue_id": str(item_id)}
    headers = {QUEUE_ID: str(item_id)}
    if retry_after is not None:
        body["retry_after"] = retry_after
        headers["retry-after"] = str(retry_after)
    return Told(status, json.dumps(body, ensure_ascii=False).encode(), headers)


# --- of an item -------------------------------------------------------------------------


def of_item(item: Item, method: str, request_id: RequestId) -> Told:
    """Return what an item that has ended came to.

    Args:
        method: of the call that asks now; the message may have been sent by another before.
    """
    if item.answer is not None and (item.state is State.COMPLETED or _answers(item.answer)):
        if (item.method in MODERN) is not (method in MODERN):
            why = f"this message was sent before by {item.method}; the answer is in that dialect: ask with it"
            return in_rpc(-32602, why, request_id)
        body = with_request_id(item.answer.body, request_id)
        return Told(item.answer.status, body, {QUEUE_ID: str(item.id)})
    why, status = item.last_error or "nothing more is known", str(item.state)
    if item.state is State.EXPIRED:
        return _told(504, item.id, {"error": f"the message expired: {why}", "status": status})
    if item.state is State.DROPPED:
        error = f"the message was taken out of the queue: {why}"
        return _told(410, item.id, {"error": error, "status": status})
    error = (
        f"the message was given up: {why}. It is kept: send the same message again to try anew, or have an"
        f" operator replay queue item {item.id}"
    )
    return _told(502, item.id, {"error": error, "status": status}, retry_after=_DEAD_LETTER_RETRY)


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
    message = f"{why} - request queued, will dispatch when capacity available"
    return _told(202, item_id, {"queued": True, "queue_depth": depth, "message": message})


def stopping(item_id: int) -> Told:
    """Return what everybody hears who waits when the shim is about to end."""
    error = "platform restarting; the message is kept: send it again"
    body = {"error": error, "restarting": True, "queued": True}
    return _told(503, item_id, body, retry_after=_STOPPING_RETRY)


def in_rpc(code: int, why: str, request_id: RequestId) -> Told:
    """Return a refusal in the protocol's own words, as a workspace of ours words it."""
    body = json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": why}})
    return Told(200, body.encode())


# --- of what passes through -------------------------------------------------------------


def no_workspace(workspace_id: str, workspace: Workspace | None) -> Refusal:
    """There is none of this name, or not any more."""
    if workspace is not None:
        return Refusal(410, f"workspace {workspace_id} was removed", status=str(workspace.status))
    return Refusal(404, f"there is no workspace {workspace_id}")


def no_url(workspace: Workspace) -> Refusal:
    """It has not registered."""
    return Refusal(503, "workspace has no URL", retry_after=_RESTART_RETRY, status=str(workspace.status))


def unreachable(workspace: Workspace, *, sent: bool) -> Refusal:
    """It did not arrive, or broke off before an answer."""
    if sent or workspace.restarting:
        why = "workspace agent restarting - retry after a short backoff"
        return Refusal(503, why, retry_after=_RESTART_RETRY, restarting=True, busy=True)
    return Refusal(502, "failed to reach workspace agent", retry_after=_RESTART_RETRY)
