"""Who asks: tokens minted, kept as digests and looked up; what a caller may do."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from starlette.types import Scope

from ..store.contract import Item, Role, Token
from .refusal import Refusal

KEY = "workspace_adapter.caller"
"""Where the caller is found in the ASGI scope."""

SYSTEM = ("webhook:", "system:", "test:", "channel:")
"""Callers of the existing platform's own making; nobody outside is one."""

WORKSPACE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
CALLER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

CONTAINER = "container"
"""The label of the tokens that a start hands out; each lives until a later one was registered with."""

_FRESH = 5.0
"""Seconds for which a token that was looked up is believed: as late a revocation is heard elsewhere."""

_REMEMBERED = 10_000
"""Tokens that are remembered that long at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks."""

    role: Role | None = None
    """``None``: nobody said who. There is such a caller only where no admin token is set, so it is
    somebody at this machine, and may do what the operator may."""
    workspace_id: str | None = None
    name: str | None = None

    @property
    def identity(self) -> str | None:
        """What of the caller is part of a message's identity."""
        if self.role is Role.WORKSPACE:
            return self.workspace_id
        return f"caller:{self.name}" if self.role is Role.CALLER else None

    @property
    def operates(self) -> bool:
        """Whether the operator's calls are this caller's."""
        return self.role in (None, Role.OPERATOR)

    def speaks_for(self, workspace_id: str) -> bool:
        """Whether what is said of a workspace by this caller counts as its own word."""
        return self.operates or (self.role is Role.WORKSPACE and self.workspace_id == workspace_id)

    def may_see(self, item: Item) -> bool:
        """Whether a queue item is this caller's business: it sent it, or works on it."""
        return self.speaks_for(item.workspace_id) or (
            self.identity is not None and item.caller == self.identity
        )


ANONYMOUS = Caller()


def caller_of(scope: Scope) -> Caller:
    """Return who asks, as the edge found out."""
    caller: Caller = scope[KEY]
    return caller


def mint() -> tuple[str, str]:
    """Return a new token and its digest; the token itself is kept nowhere."""
    token = secrets.token_urlsafe(32)
    return token, digest(token)


def digest(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def bearer_of(authorization: str | None) -> str | None:
    """Return the bearer of an ``Authorization`` header.

    Raises:
        Refusal: it has another scheme.
    """
    if authorization is None:
        return None
    scheme, _, bearer = authorization.partition(" ")
    if scheme.lower() != "bearer" or not bearer.strip():
        raise Refusal(401, "Authorization must be `Bearer <token>`", headers=_CHALLENGE)
    return bearer.strip()


class Identity:
    """Finds out who asks.

    Args:
        find: the store's ``tokens``.
        admin_token: of the operator; ``None``: whoever reaches us is one.
    """

    def __init__(
        self,
        find: Callable[[Collection[str]], Awaitable[Mapping[str, Token]]],
        admin_token: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._admin = None if admin_token is None else digest(admin_token)
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Token]] = OrderedDict()

    @property
    def open(self) -> bool:
        """Whether no admin token is set, so that nobody has to say who they are."""
        return self._admin is None

    async def caller(self, authorization: str | None, claimed: str | None) -> Caller:
        """Return who asks.

        Args:
            authorization: the header.
            claimed: the header ``X-Workspace-ID``.

        Raises:
            Refusal: the bearer is unknown or missing, or somebody else's.
            StoreUnavailable: it cannot be looked up.
        """
        if claimed is not None and claimed.startswith(SYSTEM):
            raise Refusal(403, "X-Workspace-ID must not be one of the platform's own callers")
        bearer = bearer_of(authorization)
        if bearer is None and not self.open:
            raise Refusal(
                401, "a bearer is required: send `Authorization: Bearer <token>`", headers=_CHALLENGE
            )
        caller = ANONYMOUS if bearer is None else await self._of(digest(bearer))
        if claimed and claimed != caller.workspace_id:
            raise Refusal(401, "X-Workspace-ID is not the workspace whose token this is", headers=_CHALLENGE)
        return caller

    async def _of(self, presented: str) -> Caller:
        if self._admin is not None and hmac.compare_digest(presented, self._admin):
            return Caller(role=Role.OPERATOR)
        token = await self._token(presented)
        if token is None:
            raise Refusal(401, "the bearer is unknown here; the operator makes tokens", headers=_CHALLENGE)
        return Caller(role=token.role, workspace_id=token.workspace_id, name=token.label or None)

    async def _token(self, presented: str) -> Token | None:
        now = self._clock()
        until, token = self._known.get(presented, (0.0, None))
        if token is not None and now < until:
            return token
        found = (await self._find([presented])).get(presented)
        if found is None:
            self._known.pop(presented, None)
            return None
        self._known[presented] = now + _FRESH, found
        self._known.move_to_end(presented)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        """A token was taken back: look all of them up anew."""
        self._known.clear()


_CHALLENGE = {"www-authenticate": "Bearer"}
