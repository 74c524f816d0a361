"""What a request that is not served is answered: a status, and JSON that says what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from starlette.types import Send

from ...errors import (
    AddressRefused,
    BadMessage,
    ContentConflict,
    QueueFull,
    StoreUnavailable,
    UnknownWorkspace,
    WorkspaceAdapterError,
)
from ...wire import BadBody

UNAVAILABLE = "platform_unavailable"
"""The code of a refusal because the store cannot be used, in the existing platform's words."""

_AGAIN = 5.0
"""Seconds after which who found the store away, or a queue full, may ask again."""


class Refusal(Exception):
    """Raised anywhere behind the edge, which writes it.

    Args:
        error: for whoever asked: what is wrong, and what to do.
        retry_after: seconds, where waiting helps.
        headers: further ones.
        more: members of the body beside ``error``.
    """

    def __init__(
        self,
        status: int,
        error: str,
        /,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, object] = {"error": error, **more}
        if retry_after is not None:
            seconds = max(1, math.ceil(retry_after))
            self.headers["retry-after"] = str(seconds)
            self.body["retry_after"] = seconds


def refusal_of(error: WorkspaceAdapterError | BadBody) -> Refusal:
    """Return what is answered where a room refuses."""
    match error:
        case UnknownWorkspace():
            return Refusal(404, str(error))
        case ContentConflict():
            return Refusal(409, str(error))
        case QueueFull():
            return Refusal(429, str(error), retry_after=_AGAIN, queue_depth=error.depth)
        case StoreUnavailable():
            return Refusal(503, str(error), retry_after=_AGAIN, code=UNAVAILABLE)
        case BadMessage() | AddressRefused():
            return Refusal(400, str(error))
        case BadBody():
            return Refusal(400, f"invalid request body: {error}")
    return Refusal(500, "the shim failed; its log says how")


async def write(send: Send, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
    """Answer with JSON."""
    await write_bytes(
        send, status, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(), headers
    )


async def write_bytes(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Answer with JSON that is bytes already."""
    raw = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if headers:
        raw += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
