"""One question over HTTP, and why there was no answer."""

from __future__ import annotations

import email.utils
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from ... import __version__

PATIENCE = 2.5
"""Seconds for each step of an answer."""

_REPLY = 1 << 16
"""Bytes of it that are read."""


class NoAnswer(Exception):
    """Nobody answered; the text says why."""

    def __init__(self, why: str, *, refused: bool, heard: bool) -> None:
        super().__init__(why)
        self.refused = refused
        """Nobody listens there."""
        self.heard = heard
        """Somebody took the connection."""


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Mapping[str, object]:
        try:
            told = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return told if isinstance(told, dict) else {}

    def error(self, *, without: str | None = None) -> str:
        """Return what it says is wrong, one line of it and no secret."""
        said = self.json().get("error")
        if not isinstance(said, str):
            return ""
        return " ".join((said.replace(without, "…") if without else said).split())[:200]

    def date(self) -> float | None:
        """Return the time it was sent at, as the sender has it."""
        try:
            return email.utils.parsedate_to_datetime(self.headers["Date"]).timestamp()
        except (TypeError, ValueError):
            return None


def get(url: str, headers: Mapping[str, str], *, patience: float = PATIENCE) -> Reply:
    """Get what lies there, from wherever the address leads, without a proxy.

    Raises:
        NoAnswer: saying at which step it failed.
    """
    sent = {"Accept": "application/json", "User-Agent": f"workspace_adapter/{__version__}", **headers}
    connection, heard = None, False
    try:
        to = urlsplit(url)
        kind = http.client.HTTPSConnection if to.scheme == "https" else http.client.HTTPConnection
        connection = kind(to.hostname or "", to.port, timeout=patience)
        connection.connect()
        heard = True
        connection.request("GET", f"{to.path}?{to.query}" if to.query else to.path, headers=sent)
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read(_REPLY))
    except (OSError, http.client.HTTPException, ValueError) as error:
        refused = isinstance(error, ConnectionRefusedError)
        raise NoAnswer(_why(error, patience), refused=refused, heard=heard) from None
    finally:
        if connection is not None:
            connection.close()


def _why(error: Exception, patience: float) -> str:
    match error:
        case socket.gaierror():
            return f"its name does not resolve ({error.strerror})"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message})"
        case ssl.SSLError():
            return f"no TLS is spoken there ({error.reason or error})"
        case TimeoutError():
            return f"no answer within {patience:g} s"
        case http.client.RemoteDisconnected() | ConnectionResetError():
            return "the connection was closed without an answer"
        case http.client.HTTPException():
            return f"what answers speaks no HTTP ({type(error).__name__})"
        case OSError():
            return str(error.strerror or error)
    return str(error)
