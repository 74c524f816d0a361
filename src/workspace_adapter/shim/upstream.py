"""The client that calls workspaces: a queued message, a stream of its events, whatever passes through.

Budgets are those of the existing platform's forward: ten seconds to connect, thirty minutes for
an answer, 64 MB of it (platform contract, §1.2 and §1.5). Redirects are not followed, no cookie
is kept, no proxy of the environment's is used, and each address is checked when a socket is made
for it.
"""

from __future__ import annotations

import errno
import io
import json
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio
from yarl import URL

from .. import wire
from ..errors import AddressRefused, WorkspaceUnreachable
from ..queueing import Lost, Reply
from .address import Addresses
from .store.contract import Answer, Lease, Workspace
from .streams import CONTENT_TYPE, Reading, StreamTooLarge

STREAMING = frozenset({"message/stream", "SendStreamingMessage"})
"""What is answered with a stream, in both dialects."""

Said = Callable[[Sequence[bytes], str | None], Awaitable[bool]]
"""Keeps events of a stream with the cursor of the last; ``False``: nobody wants them from us any more."""

RESTARTING = "workspace restarting…"
"""What the reader of a stream sees while it is broken off."""

_KEEP_ALIVE = 4.0
"""Seconds an idle connection is kept. uvicorn closes its own after five: the one who sends should be
first, or a message may go into a connection that is just being closed."""

_LEAST = 1000
"""Connections that one host may have however few dispatches there are: others pass through."""

_LARGE = 1 << 20
"""Bytes above which a body is handed over piece by piece."""

_NEVER_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
"""No byte was sent: no connection, no free one in time, or a URL that is none."""

_STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_BROKEN = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""Something may have been sent. A header that cannot be written is among them, though nothing was: it is the
message's own fault, and would come back for ever were it not counted against it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one call with a queued message."""

    outcome: Reply | Lost
    answer: Answer | None = None
    """The workspace's own bytes, where it sent a whole answer."""
    detail: str = ""
    """Why it came to nothing on the wire, for people."""
    starved: bool = False
    """This machine had no socket left: the workspace has no part in it."""


class Response:
    """A response that is passed through: its head is there, its body still comes."""

    def __init__(self, response: aiohttp.ClientResponse, hop: str) -> None:
        self._response = response
        self._hop = hop
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        """As the workspace sent them; a name may occur more than once in ``items()``."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, still encoded as its headers say.

        Raises:
            WorkspaceUnreachable: it broke off.
        """
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except _BROKEN as error:
            raise WorkspaceUnreachable(f"{self._hop}: {_why(error)}", sent=True) from error


class Upstream:
    """Calls workspaces; an async context manager.

    Args:
        connect_timeout: seconds until a connection must be there, a free place in the pool included.
        deadline: seconds for a whole answer, and between two signs of life of a stream.
        answer_limit: bytes an answer, or one event of a stream, may have.
        dispatches: messages that may be under way at once. One host and port, which may be a gateway to
            many workspaces, gets as many connections, and all together four times as many.
    """

    def __init__(
        self,
        addresses: Addresses,
        *,
        connect_timeout: float = 10.0,
        deadline: float = 1800.0,
        answer_limit: int = 64 << 20,
        dispatches: int = 1000,
    ) -> None:
        self._addresses = addresses
        self._connect_timeout = connect_timeout
        self._deadline = deadline
        self._patience = aiohttp.ClientTimeout(total=None, connect=connect_timeout, sock_read=deadline)
        self._answer_limit = answer_limit
        self._per_host = max(_LEAST, dispatches)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=self._addresses.connector(
                limit=4 * self._per_host, limit_per_host=self._per_host, keepalive_timeout=_KEEP_ALIVE
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, workspace: Workspace, lease: Lease, said: Said) -> Sent:
        """Send a queued message, and wait for what becomes of it. No failure of the wire is raised.

        Events of a stream are handed to ``said`` as they come, all that arrived meanwhile at once; the one
        that ends it is the answer. A stream is gone on with behind ``lease.cursor``.
        """
        streaming = lease.method in STREAMING
        headers = {
            **lease.headers,
            "Content-Type": "application/json",
            "Accept": f"{CONTENT_TYPE}, application/json" if streaming else "application/json",
            "Accept-Encoding": "identity",
            **_authority(workspace),
        }
        if lease.caller is not None:
            headers["X-Workspace-ID"] = lease.caller
        if streaming and lease.cursor is not None:
            headers["Last-Event-ID"] = lease.cursor
        with anyio.move_on_after(self._deadline) as limit:
            try:
                url = URL(self._addresses.url(workspace), encoded=True)
                async with self._session.post(
                    url, data=_payload(lease.body), headers=headers, allow_redirects=False
                ) as response:
                    if streaming and response.status == 200 and response.content_type == CONTENT_TYPE:
                        return await self._stream(response, lease, said, limit)
                    return await self._whole(response)
            except AddressRefused as refusal:
                return Sent(Lost.UNREACHED, detail=str(refusal))
            except _NEVER_REACHED as error:
                starved = getattr(error, "errno", None) in _STARVED
                return Sent(Lost.UNREACHED, detail=_why(error), starved=starved)
            except _BROKEN as error:
                return Sent(Lost.CUT, detail=_why(error))
        return Sent(Lost.LATE, detail=f"{self._deadline:g} s have passed")

    @asynccontextmanager
    async def open(
        self,
        workspace: Workspace,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None,
    ) -> AsyncIterator[Response]:
        """Pass a request through; its response's body is read as it comes.

        Args:
            path: behind the workspace's URL, with its query.
            headers: those of the request that the workspace is to see; its secret is added.

        Raises:
            WorkspaceUnreachable: there was no response.
        """
        hop = f"{method} {path} at workspace {workspace.id}"
        try:
            url = URL(self._addresses.url(workspace) + path, encoded=True)
            response = await self._session.request(
                method,
                url,
                data=_payload(body) if isinstance(body, bytes) else body,
                headers={**headers, **_authority(workspace)},
                allow_redirects=False,
                timeout=self._patience,
            )
        except AddressRefused as refusal:
            raise WorkspaceUnreachable(f"{hop}: {refusal}", sent=False) from refusal
        except _NEVER_REACHED as error:
            raise WorkspaceUnreachable(f"{hop}: {_why(error)}", sent=False) from error
        except _BROKEN as error:
            raise WorkspaceUnreachable(f"{hop}: {_why(error)}", sent=True) from error
        try:
            yield Response(response, hop)
        finally:
            response.release()  # closes the connection where something of the body was left

    async def _whole(self, response: aiohttp.ClientResponse) -> Sent:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._answer_limit:
                response.close()
                return self._too_large()
        reply = Reply(
            status=response.status,
            body=_object(body),
            retry_after=_seconds(response.headers.get("Retry-After")),
        )
        return Sent(reply, Answer(status=response.status, body=bytes(body)))

    async def _stream(
        self, response: aiohttp.ClientResponse, lease: Lease, said: Said, limit: anyio.CancelScope
    ) -> Sent:
        reading = Reading(after=lease.cursor, limit=self._answer_limit)
        detail = "the stream ended before its last event"
        try:
            async for chunk in response.content.iter_any():
                limit.deadline = anyio.current_time() + self._deadline
                kept = reading.feed(chunk)
                if kept and not await said(kept, reading.cursor):
                    return Sent(Lost.CUT, detail="its lease was lost")
                if reading.ended:
                    break
        except StreamTooLarge:
            response.close()
            return self._too_large()
        except _BROKEN as error:
            detail = _why(error)
        outcome = reading.outcome()
        if reading.answer is not None:
            return Sent(outcome, Answer(status=200, body=reading.answer))
        if (event := reading.interruption(RESTARTING, now=time.time())) is not None:
            await said([event], None)
        return Sent(outcome, detail=detail)

    def _too_large(self) -> Sent:
        """Return the answer of a workspace whose own is too large: asking again would not mend that."""
        told = wire.rpc_error(
            None,
            -32603,
            f"the workspace's answer is larger than SHIM_ANSWER_LIMIT_BYTES={self._answer_limit}",
        )
        return Sent(Reply(status=200, body=told), Answer(status=200, body=json.dumps(told).encode()))


def _authority(workspace: Workspace) -> dict[str, str]:
    return {"Authorization": f"Bearer {workspace.secret}"} if workspace.secret else {}


def _payload(body: bytes) -> bytes | io.BytesIO:
    return body if len(body) < _LARGE else io.BytesIO(body)


def _object(body: bytes | bytearray) -> Mapping[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _seconds(header: str | None) -> float | None:
    """Read a ``Retry-After``: seconds, or a date."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header.strip()):
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _why(error: BaseException) -> str:
    said = "".join(sign if sign.isprintable() else " " for sign in f"{type(error).__name__}: {error}")
    return " ".join(said.split()).removesuffix(":")[:300]
