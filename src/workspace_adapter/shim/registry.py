"""Registrations and heartbeats: what workspaces say of themselves.

The hot path of the shim: every workspace beats at least every ten seconds. Heartbeats that
arrive while one write is under way go into the next, and their tokens are looked up in it;
each is answered when its write was committed.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from ..errors import StoreUnavailable
from ..queueing import NO_ROOM
from ..wire import WEDGED, BadBody, parse_heartbeat, parse_registration
from .body import header, parse, read, storable
from .identity import CONTAINER, WORKSPACE_ID, bearer_of, caller_of, digest, mint
from .refusal import Refusal, write, write_bytes
from .store.contract import DORMANT, Beat, Heard, Role, Status, Store, Token, Workspace

logger = logging.getLogger(__name__)

BODY_LIMIT = 1 << 20
"""Bytes of a registration or heartbeat."""

_MOST, _MOST_BYTES = 5_000, 32 << 20
"""Heartbeats that may wait for one write."""

_GAP = 0.006
"""Seconds between two writes of heartbeats, at least."""

_SICK, _WELL = 0.5, 0.1
"""The rates of errors from which on a workspace counts as degraded, and below which it does no more."""

_REPORTED = (
    "is_busy",
    "current_task",
    "error_rate",
    "sample_error",
    "uptime_seconds",
    "runtime_state",
    "runtime_metadata",
    "observed_generation",
    "state",
    "waiting",
    "version",
)
"""What of a heartbeat is kept for people to see."""

GENERATION = 0
"""The existing platform numbers what it wants of a workspace; we want nothing that a beat could bring."""


class _Batch:
    """Heartbeats that are written together, one of each workspace."""

    __slots__ = ("beats", "bytes", "done", "error", "heard")

    def __init__(self) -> None:
        self.beats: dict[str, Beat] = {}
        self.bytes = 0
        self.heard: Mapping[str, Heard] | None = None
        """``None``: they were not written."""
        self.error: StoreUnavailable | None = None
        self.done = anyio.Event()


class Registry:
    """What ``/registry`` does.

    Args:
        vet: checks a URL that a workspace registers; raises ``AddressRefused``.
        open: whether a workspace that nobody made may register, and is given a token.
        rings: told of a workspace where items wait, and that said it has room.
        registered: told of a workspace that registered.
    """

    def __init__(
        self,
        store: Store,
        *,
        vet: Callable[[Workspace, str], Awaitable[None]],
        open: bool,
        rings: Callable[[str], None],
        registered: Callable[[str], None],
    ) -> None:
        self._store = store
        self._vet = vet
        self._open = open
        self._rings = rings
        self._registered = registered
        self.heartbeats: Counter[str] = Counter(ok=0, refused=0)
        """Of this life, by what came of them."""
        self._next = _Batch()
        self._more = anyio.Event()

    # --- heartbeats -------------------------------------------------------------------

    async def run(self) -> None:
        """Write heartbeats until cancelled."""
        written = -math.inf
        while True:
            await self._more.wait()
            # Under load a write waits for company: each costs as much as a dozen heartbeats.
            await anyio.sleep(max(0.0, written + _GAP - anyio.current_time()))
            written = anyio.current_time()
            self._more = anyio.Event()
            batch, self._next = self._next, _Batch()
            try:
                batch.heard = await self._store.beat(list(batch.beats.values()))
            except StoreUnavailable as error:
                batch.error = error
            finally:
                self.heartbeats["ok"] += len(batch.heard or ())
                self.heartbeats["refused"] += len(batch.beats) - len(batch.heard or ())
                batch.done.set()

    async def heartbeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a heartbeat."""
        raw = await read(scope, receive, BODY_LIMIT)
        body = parse(raw)
        if b"\\u" in raw:
            body = storable(body)
        bearer = bearer_of(header(scope, b"authorization"))
        if bearer is None:
            raise Refusal(401, "missing workspace auth token")
        beat = beat_of(body, digest(bearer))
        batch = self._next
        # One that somebody else sent in a workspace's name must neither take its place nor hear its answer.
        while (other := batch.beats.get(beat.workspace_id)) and other.bearer != beat.bearer:
            await batch.done.wait()
            batch = self._next
        if len(batch.beats) >= _MOST or batch.bytes + len(raw) > _MOST_BYTES:
            raise Refusal(503, "too many heartbeats at once", retry_after=1)
        batch.beats[beat.workspace_id] = beat
        batch.bytes += len(raw)
        self._more.set()
        await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        if batch.heard is None:
            raise Refusal(503, "the shim is stopping; ask again in a moment", retry_after=1)
        heard = batch.heard.get(beat.workspace_id)
        if heard is None:
            await self._not_counted(beat, send)
            return
        if heard.waiting and beat.active_tasks < min(NO_ROOM, heard.max_concurrent):
            self._rings(beat.workspace_id)
        await write_bytes(send, 200, _reply(heard))

    async def _not_counted(self, beat: Beat, send: Send) -> None:
        """Say why a heartbeat changed nothing."""
        assert beat.bearer is not None
        workspace = await self._store.workspace(beat.workspace_id)
        if workspace is None and self._open:
            raise Refusal(404, "there is no such workspace here: register first")
        token = (await self._store.tokens([beat.bearer])).get(beat.bearer)
        vouched = token is not None and token.role is Role.WORKSPACE
        if workspace is None or token is None or not vouched or token.workspace_id != workspace.id:
            raise Refusal(401, "invalid workspace auth token")
        if workspace.status in DORMANT:
            told = {"status": "ok", "ignored": str(workspace.status), **_told(workspace)}
            await write(send, 200, told)
            return
        raise Refusal(
            409, "another life of this workspace has registered: this one is not heard", ignored="replaced"
        )

    # --- registrations ----------------------------------------------------------------

    async def register(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a registration."""
        body = storable(parse(await read(scope, receive, BODY_LIMIT)))
        said = parse_registration(body)
        _check_id(said.workspace_id)
        _check_boot(said.boot_id)
        if said.delivery_mode != "push":
            raise Refusal(
                400,
                "delivery_mode must be 'push': the shim calls workspaces, none may poll"
                " (WORKSPACE_DELIVERY_MODE)",
            )
        if not said.url:
            raise Refusal(400, "url is required: the address at which the workspace is called")
        bearer = bearer_of(header(scope, b"authorization"))
        workspace, token = await self._let_in(said.workspace_id, bearer, said.boot_id)
        await self._vet(workspace, said.url)
        counted = await self._store.register(
            workspace.id, url=said.url, boot_id=said.boot_id or None, card=said.agent_card
        )
        reply: dict[str, Any] = {"status": "registered", "delivery_mode": "push", **_told(workspace)}
        if token is None:
            reply["auth_token"], kept = mint()
            await self._store.add_token(kept, role=Role.WORKSPACE, workspace_id=workspace.id, label="first")
        if counted:
            logger.info("registered at %s", said.url, extra={"workspace_id": workspace.id})
            if token is not None and token.label == CONTAINER:
                await self._revoke_former(token)
            self._registered(workspace.id)
        else:
            now = await self._store.workspace(workspace.id)
            if now is None or now.status not in DORMANT:
                logger.info("a late registration changed nothing", extra={"workspace_id": workspace.id})
                raise Refusal(
                    409,
                    "another life of this workspace has registered since: this one changes nothing",
                    ignored="replaced",
                )
            reply |= {"status": "ignored", "ignored": str(now.status)}
        reply["queue_depth"] = await self._store.depth(workspace.id)
        await write(send, 200, reply)

    async def _let_in(
        self, workspace_id: str, bearer: str | None, boot_id: str
    ) -> tuple[Workspace, Token | None]:
        """Return the workspace that registers, and the token it showed; ``None``: it is to be given one."""
        workspace = await self._store.workspace(workspace_id)
        if workspace is None and self._open:
            await self._store.create_workspace(workspace_id, secret=secrets.token_urlsafe(32))
            workspace = await self._store.workspace(workspace_id)
        if workspace is None:
            raise Refusal(401, "invalid workspace auth token")
        if workspace.status is Status.REMOVED:
            raise Refusal(410, "the workspace was removed; the operator may make it anew")
        live = await self._store.tokens_of(workspace_id)
        presented = "" if bearer is None else digest(bearer)
        # All of them are looked at, as long as each.
        if shown := [token for token in live if hmac.compare_digest(presented, token.digest)]:
            return workspace, shown[0]
        # Its token was shown once, in a reply that may have been lost: it is the same life that asks again.
        unheard = bearer is None and boot_id and boot_id == workspace.boot_id
        if self._open and (not live or unheard):
            return workspace, None
        if bearer is None:
            raise Refusal(401, f"missing workspace auth token; {_HOW}")
        raise Refusal(401, f"invalid workspace auth token; {_HOW}")

    async def _revoke_former(self, token: Token) -> None:
        """Take back what earlier starts handed out: whoever registers shows which one is in use."""
        for other in await self._store.tokens_of(token.workspace_id):
            if other.label == CONTAINER and other.created_at < token.created_at:
                await self._store.revoke_token(other.digest)

    async def update_card(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a new agent card of a workspace that registered."""
        body = storable(parse(await read(scope, receive, BODY_LIMIT)))
        if not isinstance(body, dict) or not isinstance(body.get("agent_card"), dict):
            raise Refusal(400, "invalid request body: agent_card must be an object")
        workspace_id = body.get("workspace_id")
        if not isinstance(workspace_id, str) or not caller_of(scope).speaks_for(workspace_id):
            raise Refusal(401, "workspace_id is not the workspace whose token this is")
        if not await self._store.set_card(workspace_id, body["agent_card"]):
            raise Refusal(404, f"there is no workspace {workspace_id}")
        await write(send, 200, {"status": "updated"})


_HOW = "the operator makes a new one with POST /workspaces/{id}/tokens, for CONFIGS_DIR/.auth_token"


def beat_of(body: object, bearer: str | None = None) -> Beat:
    """Read a heartbeat; ``bearer`` is the digest of what it came with.

    What a beat does not say is not taken back, as the existing runtime's partial beats need.

    Raises:
        BadBody: naming the member that is wrong.
    """
    said = parse_heartbeat(body)
    given: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    _check_id(said.workspace_id)
    _check_boot(said.boot_id)
    if not 0 <= said.active_tasks < 1 << 31:
        raise BadBody("active_tasks must be a count")
    complete = given.get("runtime_state") is not None
    if said.runtime_state == WEDGED:
        degraded: bool | None = True
    elif said.capabilities["status_mgmt"]:
        degraded = False if complete else None
    elif said.error_rate >= _SICK:
        degraded = True
    else:
        degraded = False if complete and said.error_rate < _WELL and not said.runtime_state else None
    return Beat(
        workspace_id=said.workspace_id,
        boot_id=said.boot_id or None,
        active_tasks=said.active_tasks,
        degraded=degraded,
        report={name: given[name] for name in _REPORTED if given.get(name) is not None},
        whole=complete and given.get("runtime_metadata") is not None,
        bearer=bearer,
    )


def _check_id(workspace_id: str) -> None:
    if not WORKSPACE_ID.fullmatch(workspace_id):
        raise BadBody("a workspace's id is lower-case letters, digits and dashes, at most 128")


def _check_boot(boot_id: str) -> None:
    if len(boot_id) > _LONGEST_BOOT or not boot_id.isprintable():
        raise BadBody(f"boot_id must be printable, at most {_LONGEST_BOOT} characters")


_LONGEST_BOOT = 128


def _reply(heard: Heard) -> bytes:
    """The reply to a heartbeat that counted, made without going through a mapping."""
    return (
        f'{{"status":"ok","generation":{GENERATION},"queue_depth":{heard.waiting},"max_concurrent_tasks":'
        f'{heard.max_concurrent},"require_auth":true,"platform_inbound_secret":{json.dumps(heard.secret)}}}'
    ).encode()


def _told(workspace: Workspace) -> dict[str, Any]:
    """What a workspace is told of itself."""
    return {
        "generation": GENERATION,
        "max_concurrent_tasks": workspace.max_concurrent,
        "require_auth": True,
        "platform_inbound_secret": workspace.secret,
    }
