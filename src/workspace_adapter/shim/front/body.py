"""A request's body, read once and within its limit."""

from __future__ import annotations

import math
import re
from typing import Any

import anyio
from starlette.types import Receive, Scope

from ...wire import NotJson, TooDeep, read_json
from .refusal import Refusal

PATIENCE = 120.0
"""Seconds that a body may take to come."""

LARGE = 1 << 20
"""Bytes above which a body is a large one."""


class HungUp(Exception):
    """The caller left before its request was read."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header; ``name`` is in lower case."""
    for given, value in scope["headers"]:
        if given == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def read(
    scope: Scope,
    receive: Receive,
    limit: int,
    *,
    patience: float = PATIENCE,
    large: anyio.CapacityLimiter | None = None,
) -> bytes:
    """Return the whole body.

    Args:
        large: bounds how many bodies above ``LARGE`` are read at once; the others wait, unread.

    Raises:
        Refusal: it is larger than ``limit``, or did not come in time.
        HungUp: the caller left meanwhile.
    """
    declared = header(scope, b"content-length") or ""
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise HungUp
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks, size = [body], len(body)
    place: anyio.CapacityLimiter | None = None
    try:
        with anyio.fail_after(patience) as time:
            while message.get("more_body", False):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HungUp
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise _too_large(limit)
                if size > LARGE and large is not None and place is None:
                    left, time.deadline = time.deadline - anyio.current_time(), math.inf
                    await large.acquire()
                    place, time.deadline = large, anyio.current_time() + left
    except TimeoutError:
        error = f"the body did not come within {patience:g} s"
        raise Refusal(408, error, headers={"connection": "close"}) from None
    finally:
        if place is not None:
            place.release()
    return b"".join(chunks)


def parse(body: bytes) -> Any:
    """Return the JSON value of a body.

    Raises:
        Refusal: it is none, or nested too deeply.
    """
    try:
        return read_json(body)
    except (NotJson, TooDeep) as error:
        raise Refusal(400, str(error)) from None


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(value: Any) -> Any:
    """Return JSON without what no database takes: the character NUL, and half a surrogate pair."""
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case dict():
            return {storable(key): storable(inner) for key, inner in value.items()}
        case list():
            return [storable(inner) for inner in value]
        case _:
            return value


def _too_large(limit: int) -> Refusal:
    # The connection stays: closed with bytes unread, it would be reset before the answer was read.
    return Refusal(
        413,
        f"the body is larger than {limit} bytes (SHIM_BODY_LIMIT_BYTES)",
        truncated=True,
        max_bytes=limit,
    )
