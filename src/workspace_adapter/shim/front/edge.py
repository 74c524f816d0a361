"""The layer before the routes that every request passes: who asks, how often, and what a refusal looks like.

Plain ASGI. A room behind it raises; what is answered then is written here, as JSON.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import WorkspaceAdapterError
from ...wire import BadBody
from .body import HungUp, header
from .identity import KEY, Caller, Identity
from .rates import Rates
from .refusal import UNAVAILABLE, Refusal, refusal_of, write

logger = logging.getLogger(__name__)

HEALTH = "/healthz"
READY = "/readyz"
REGISTER = "/registry/register"
HEARTBEAT = "/registry/heartbeat"
UPDATE_CARD = "/registry/update-card"

_UNCOUNTED = frozenset({HEALTH, READY, HEARTBEAT})
"""For everybody, or with a bearer that is looked at behind it: workspaces beat as often as they must."""

_SMALL = 64 << 10
"""Bytes of a body that is read before its bearer is looked at: no more than a head may have."""

_WARN_EVERY = 10.0
"""Seconds between two warnings that requests are refused because the store cannot be used."""


class Edge:
    """ASGI around the routes.

    Args:
        identity: who asks; ``None`` while nobody can be looked up.
    """

    def __init__(
        self,
        routes: ASGIApp,
        *,
        identity: Identity | None,
        rates: Rates,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routes = routes
        self._identity = identity
        self._rates = rates
        self._clock = clock
        self._warned = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = False

        async def sent(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            if scope["path"] not in _UNCOUNTED or _is_large(scope):
                await self._admit(scope)
            await self._routes(scope, receive, sent)
        except HungUp:
            return
        except Refusal as refusal:
            await self._refuse(refusal, scope, sent, began)
        except (WorkspaceAdapterError, BadBody) as error:
            await self._refuse(refusal_of(error), scope, sent, began)
        except HTTPException as error:
            wrong = Refusal(error.status_code, _WRONG_METHOD, headers=error.headers)
            await self._refuse(wrong, scope, sent, began)

    async def _admit(self, scope: Scope) -> None:
        """Find out who asks, and whether it may again."""
        identity = self._identity
        if identity is None:
            return
        if identity.open:
            _check_browser(scope)
        if scope["path"] == REGISTER and not _is_large(scope):
            return  # its bearer is looked at behind it: the first one has none
        address = _address(scope)
        try:
            caller = await identity.caller(header(scope, b"authorization"), header(scope, b"x-workspace-id"))
        except Refusal:
            self._count(address)
            raise
        self._count(_name(caller) or address)
        scope[KEY] = caller

    def _count(self, who: str) -> None:
        wait = self._rates.take(who, self._clock())
        if wait > 0:
            raise Refusal(
                429,
                f"more than {self._rates.per_minute} requests a minute (SHIM_RATE_LIMIT); wait a moment",
                retry_after=wait,
                headers={"x-ratelimit-limit": str(self._rates.per_minute), "x-ratelimit-remaining": "0"},
            )

    async def _refuse(self, refusal: Refusal, scope: Scope, send: Send, began: bool) -> None:
        what = f"{scope['method']} {scope['path']}"
        logger.log(self._level(refusal), "refused %s: %s", what, refusal, extra={"status": refusal.status})
        if not began:
            await write(send, refusal.status, refusal.body, refusal.headers)

    def _level(self, refusal: Refusal) -> int:
        """Whoever asks too often must not fill the log too; a store that is away is an operator's to mend."""
        if refusal.status == 429:
            return logging.DEBUG
        if refusal.body.get("code") != UNAVAILABLE:
            return logging.INFO
        if (now := self._clock()) - self._warned < _WARN_EVERY:
            return logging.DEBUG
        self._warned = now
        return logging.WARNING


_WRONG_METHOD = "this address takes other methods: see the header Allow"


def _name(caller: Caller) -> str | None:
    """Return whose requests are counted together; no workspace is called as a role is here."""
    return caller.identity or (caller.role and f"role:{caller.role}")


def _is_large(scope: Scope) -> bool:
    """Whether a body may be larger than somebody unknown may have us keep."""
    if header(scope, b"transfer-encoding") is not None:
        return True
    length = header(scope, b"content-length") or "0"
    return not length.isdigit() or int(length) > _SMALL


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _check_browser(scope: Scope) -> None:
    """Refuse what a page of somebody else's has a browser on this machine send.

    Without an admin token, to come from this machine is all it takes to be the operator.
    """
    host, origin = header(scope, b"host"), header(scope, b"origin")
    for named in (host and f"//{host}", origin):
        if named and not _is_this_machine(named):
            raise Refusal(
                403,
                "without SHIM_ADMIN_TOKEN only requests to and from this machine are served:"
                " call 127.0.0.1, or set it",
            )


def _is_this_machine(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
