"""The HTTP client for the platform.

The standard library's: it is there anyway, reads no proxy from the environment, follows no
redirect, and lets one deadline hold for a whole exchange, however slowly the bytes come.
"""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from ... import __version__
from ...errors import PlatformError
from ..secret_file import SecretFile, Secrets, usable

REPLY_LIMIT = 1 << 20
"""Bytes of a reply that are read."""

_QUOTED = 200
"""Characters of the platform's own words that an error repeats."""

_FIRST = 6.0
"""Times as long as any other reply, the one to a registration without a token is waited for. It may
bring the token, once: a platform whose reply is lost wants to see from then on what nobody has."""

_LONGEST_WAIT = 3600.0
"""Seconds of a ``Retry-After`` that are believed."""


class PlatformClient:
    """Speaks to the platform for one workspace; threads may share it.

    Args:
        platform_url: ``PLATFORM_URL``, with or without a path.
        workspace_id: who we are.
        configs_dir: where the token and the inbound secret lie.
        org_id: the tenant, where the platform wants to be told.
        timeout: seconds for one exchange, from the connection to the last byte.
        secrets: those of ``configs_dir``, where others of this process read them too.
    """

    def __init__(
        self,
        *,
        platform_url: str,
        workspace_id: str,
        configs_dir: Path,
        org_id: str | None = None,
        timeout: float = 10.0,
        secrets: Secrets | None = None,
    ) -> None:
        url = urlsplit(platform_url)
        self._host, self._port = url.hostname or "", url.port
        self._path = url.path.rstrip("/")
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        host = f"[{self._host}]" if ":" in self._host else self._host
        at = host if self._port is None else f"{host}:{self._port}"
        self._shown = f"{url.scheme}://{at}{self._path}"
        self._workspace_id = workspace_id
        self._org_id = org_id
        self._timeout = timeout
        self._secrets = secrets or Secrets(configs_dir)
        self._lock = threading.Lock()
        self._idle: http.client.HTTPConnection | None = None

    def register(self, body: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Register the workspace; return the platform's reply.

        Raises:
            PlatformError: no 2xx, or nothing that can be read.
        """
        first = self._secrets.token.read() is None
        return self._post("/registry/register", body, timeout, patience=_FIRST if first else 1.0)

    def heartbeat(self, body: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Send one heartbeat; return the platform's reply.

        Raises:
            PlatformError: no 2xx, or nothing that can be read.
        """
        return self._post("/registry/heartbeat", body, timeout)

    def activity(self, *, activity_type: str, summary: str, **more: Any) -> dict[str, Any]:
        """Tell the platform what the agent does; return its reply.

        Raises:
            PlatformError: no 2xx, or nothing that can be read.
        """
        body = {"activity_type": activity_type, "summary": summary, **more}
        return self._post(f"/workspaces/{self._workspace_id}/activity", body, None)

    def notify(self, message: str) -> dict[str, Any]:
        """Show the user of the platform a message; return its reply.

        Raises:
            PlatformError: no 2xx, or nothing that can be read.
        """
        return self._post(f"/workspaces/{self._workspace_id}/notify", {"message": message}, None)

    def close(self) -> None:
        """Close the connection that is kept for the next exchange."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.close()

    def _post(
        self, path: str, body: Mapping[str, Any], timeout: float | None, *, patience: float = 1.0
    ) -> dict[str, Any]:
        timeout = self._timeout if timeout is None else timeout
        until = time.monotonic() + timeout
        more = (patience - 1) * timeout
        sent = json.dumps(body).encode()  # ASCII: also half a surrogate pair, which an agent may well write
        token = self._secrets.token.read()
        reply = self._exchange(path, sent, token, until, more)
        if reply.status == http.HTTPStatus.UNAUTHORIZED:
            changed = self._secrets.token.read()
            if changed is not None and changed != token:
                token = changed
                reply = self._exchange(path, sent, token, until, more)
        if not 200 <= reply.status < 300:
            raise self._refused(path, reply, token)
        told = reply.json()
        if not isinstance(told, dict):
            raise PlatformError(
                f"PLATFORM_URL={self._shown} answered {path} with {reply.status} and no JSON object: is that"
                " the platform, or a proxy before it?",
                status=reply.status,
            )
        self._keep(self._secrets.token, told.get("auth_token"))
        self._keep(self._secrets.inbound, told.get("platform_inbound_secret"))
        return told

    def _keep(self, file: SecretFile, secret: object) -> None:
        if usable(secret):
            file.keep(cast(str, secret))

    def _exchange(self, path: str, body: bytes, token: str | None, until: float, more: float) -> _Reply:
        """Send one request by a moment, and read its reply in so many seconds more."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"workspace_adapter/{__version__}",
            "X-Workspace-ID": self._workspace_id,
        }
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if self._org_id:
            headers["X-Molecule-Org-Id"] = self._org_id
        connection = self._take()
        keep = False
        try:
            connection.timeout = _left(until)
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            connection.response_class = cast(Any, partial(_Response, until=until + more))
            # Its own gives each of a host's addresses all the time there is.
            cast(Any, connection)._create_connection = partial(_connect, until=until)  # noqa: SLF001
            whole = _send(connection, self._path + path, body, headers)
            with connection.getresponse() as response:
                told = response.read(REPLY_LIMIT + 1)
                keep = whole and response.isclosed() and not response.will_close
            if len(told) > REPLY_LIMIT:
                raise _TooMuch(f"more than {REPLY_LIMIT} bytes came")
            return _Reply(response.status, response.headers.get("Retry-After"), told)
        except (OSError, ValueError, http.client.HTTPException, _TooMuch) as error:
            # A ValueError is a host name that none can be, or a path.
            keep = False
            raise PlatformError(
                f"PLATFORM_URL={self._shown} gave no answer to {path}: {_why(error)}. Check the address, and"
                " that this container can reach it"
            ) from None
        finally:
            self._put_back(connection, keep)

    def _take(self) -> http.client.HTTPConnection:
        """Return the kept connection where it still stands, else a new one."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            if not _readable(idle.sock):
                return idle
            idle.close()  # something came that nobody asked for: its end
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port)

    def _put_back(self, connection: http.client.HTTPConnection, keep: bool) -> None:
        with self._lock:
            if keep and self._idle is None:
                self._idle = connection
                return
        connection.close()

    def _refused(self, path: str, reply: _Reply, token: str | None) -> PlatformError:
        said = reply.said(without=(token, self._secrets.inbound.read()))
        text = f"PLATFORM_URL={self._shown} answered {path} with {reply.status}"
        if said:
            text += f" ({said})"
        return PlatformError(
            f"{text}. {_what_to_do(reply.status, self._secrets.token.path)}",
            status=reply.status,
            retry_after=reply.retry_after(),
        )


def _what_to_do(status: int, token: Path) -> str:
    match status:
        case 401:
            return f"{token} must hold the token it issued for WORKSPACE_ID; provisioning anew writes it"
        case 429:
            return "It limits how often one address may ask; nothing is lost"
        case status if status < 400:
            return "Redirects are not followed: set PLATFORM_URL to where it leads"
        case status if status < 500:
            return "Check WORKSPACE_ID, WORKSPACE_ORG_ID, WORKSPACE_URL and what it knows of this workspace"
    return "The platform's own log says why"


class _TooMuch(Exception):
    """The reply is larger than any of the platform's."""


class _Reply:
    """What came back."""

    def __init__(self, status: int, retry_after: str | None, body: bytes) -> None:
        self.status = status
        self._retry_after = retry_after
        self._body = body

    def json(self) -> object:
        try:
            return json.loads(self._body)
        except (ValueError, RecursionError):
            return None

    def said(self, *, without: Iterable[str | None]) -> str:
        """Return the platform's own words, one line of them and no secret."""
        told = self.json()
        error = told.get("error") if isinstance(told, dict) else None
        text = error if isinstance(error, str) else ""
        for secret in filter(None, without):  # before it is cut: nor half of one
            text = text.replace(secret, "…")
        return _one_line(text)

    def retry_after(self) -> float | None:
        """Return the seconds the platform asks us to wait."""
        given: object = self._retry_after
        if given is None:
            told = self.json()
            given = told.get("retry_after") if isinstance(told, dict) else None
        try:
            seconds = float(cast(Any, given))
        except (TypeError, ValueError, OverflowError):
            return None
        return min(seconds, _LONGEST_WAIT) if seconds >= 0 else None


class _Response(http.client.HTTPResponse):
    """A response whose every byte must have come by one moment."""

    def __init__(self, sock: socket.socket, *args: Any, until: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Until(sock, until))


class _Until(io.RawIOBase):
    """A socket's bytes, until a moment."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._bytes = cast(io.RawIOBase, sock.makefile("rb", buffering=0))
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._until))
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        self._bytes.close()
        super().close()


def _connect(
    address: tuple[str, int], timeout: float, source_address: None = None, *, until: float
) -> socket.socket:
    """Connect to the first of a host's addresses that answers; none of them may use up the others' time."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    sock: socket.socket | None = None
    for left, (family, kind, protocol, _, at) in zip(range(len(found), 0, -1), found, strict=True):
        try:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(_left(until) / left)
            sock.connect(at)
            sock.settimeout(_left(until))
            return sock
        except OSError:
            if sock is not None:
                sock.close()
            if left == 1:
                raise
    raise OSError("its name has no address")


def _send(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> bool:
    """Send a request; return whether all was taken: some answer what is too large before they read it."""
    try:
        connection.request("POST", path, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        if connection.sock is None:
            raise
        return False
    return True


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()  # select knows no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        told = _one_line(error.verify_message)
        return f"its certificate is not trusted here ({told}): install its authority among the system's"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_QUOTED]).strip()
