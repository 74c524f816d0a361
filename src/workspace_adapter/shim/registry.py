"""Registrations and heartbeats: what workspaces say of themselves.

The hot path of the shim: every workspace beats at least every ten seconds. Heartbeats that
arrive while one write is under way go into the next, and their tokens are looked up in it;
each is answered when its write was committed.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import orjson
from starlette.types import Receive, Scope, Send

from ..errors import StoreUnavailable
from ..queueing import NO_ROOM
from ..wire import MAX_DEPTH, WEDGED, BadBody, parse_heartbeat, parse_registration
from .front.body import header, parse, read, storable
from .front.identity import CONTAINER, WORKSPACE_ID, bearer_of, caller_of, digest, mint
from .front.refusal import Refusal, write, write_bytes
from .store.contract import DORMANT, Beat, Heard, Role, Status, Store, Token, Workspace

logger = logging.getLogger(__name__)

BODY_LIMIT = 1 << 20
"""Bytes of a registration or heartbeat."""

_MOST, _MOST_BYTES = 5_000, 32 << 20
"""Heartbeats that may wait for one write."""

_GAP = 0.010
"""Seconds between two writes of heartbeats."""

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


Answer = Callable[[bytes | None], None]
"""Told the reply to a heartbeat; ``None``: it has to go the long way."""


class _Batch:
    """Heartbeats that are written together, one of each workspace."""

    __slots__ = ("answers", "beats", "bytes", "done", "error", "heard")

    def __init__(self) -> None:
        self.beats: dict[str, Beat] = {}
        self.bytes = 0
        self.answers: list[tuple[Beat, Answer]] = []
        """Who is told by a call, not by ``done``."""
        self.heard: Mapping[str, Heard] | None = None
        """``None``: they were not written."""
        self.error: StoreUnavailable | None = None
        self.done = anyio.Event()

    def admits(self, beat: Beat) -> bool:
        """Whether it may go with the others, in the place of an earlier one of its workspace.

        What somebody else or another life sent in a workspace's name must neither take its place nor
        hear its answer, and what says a part only takes back nothing of what was said.
        """
        other = self.beats.get(beat.workspace_id)
        return other is None or (beat.whole and (other.bearer, other.boot_id) == (beat.bearer, beat.boot_id))

    def is_full(self, size: int) -> bool:
        """Whether so many bytes more are too many."""
        return len(self.beats) >= _MOST or self.bytes + size > _MOST_BYTES

    def add(self, beat: Beat, size: int) -> None:
        self.beats[beat.workspace_id] = beat
        self.bytes += size


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
        try:
            while True:
                await self._more.wait()
                self._more = anyio.Event()
                batch, self._next = self._next, _Batch()
                try:
                    batch.heard = await self._store.beat(list(batch.beats.values()))
                except StoreUnavailable as error:
                    batch.error = error
                finally:
                    self._tell(batch)
                # Under load a write waits for company: each costs as much as a dozen heartbeats.
                await anyio.sleep(_GAP)
        finally:
            self._tell(self._next)

    def _tell(self, batch: _Batch) -> None:
        """Have everybody who waits for a write hear what came of it."""
        batch.done.set()
        heard = batch.heard or {}
        for beat, answer in batch.answers:
            found = heard.get(beat.workspace_id)
            answer(None if found is None else self._counted(beat, found))

    def take(self, raw: bytes | bytearray, authorization: str | None, answer: Answer) -> bool:
        """Take a heartbeat with which nothing is the matter, for much less than a request costs.

        Returns whether it was taken; otherwise, and where ``answer`` is told ``None``, it goes the
        long way, :meth:`heartbeat`, where it is said what is the matter.
        """
        if b"\\u" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
            return False
        try:
            bearer = bearer_of(authorization)
            beat = beat_of(orjson.loads(raw), bearer and digest(bearer), _json)
        except (Refusal, BadBody, orjson.JSONDecodeError):
            return False
        batch = self._next
        if beat.bearer is None or batch.is_full(len(raw)) or not batch.admits(beat):
            return False
        batch.add(beat, len(raw))
        batch.answers.append((beat, answer))
        self._more.set()
        return True

    async def heartbeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a heartbeat."""
        raw = await read(scope, receive, BODY_LIMIT)
        body = storable(parse(raw))
        bearer = bearer_of(header(scope, b"authorization"))
        if bearer is None:
            raise Refusal(401, "missing workspace auth token")
        beat = beat_of(body, digest(bearer))
        while not ((batch := self._next).admits(beat) or batch.done.is_set()):
            await batch.done.wait()
        if batch.is_full(len(raw)):
            raise Refusal(503, "too many heartbeats at once", retry_after=1)
        batch.add(beat, len(raw))
        self._more.set()
        await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        if batch.heard is None:
            raise Refusal(503, "the shim is stopping; ask again in a moment", retry_after=1)
        heard = batch.heard.get(beat.workspace_id)
        if heard is None:
            self.heartbeats["refused"] += 1
            await self._not_counted(beat, send)
            return
        await write_bytes(send, 200, self._counted(beat, heard))

    def _counted(self, beat: Beat, heard: Heard) -> bytes:
        """Return the reply to a heartbeat that was written."""
        self.heartbeats["ok"] += 1
        if heard.waiting and beat.active_tasks < min(NO_ROOM, heard.max_concurrent):
            self._rings(beat.workspace_id)
        return _reply(heard)

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


def beat_of(body: object, bearer: str | None = None, dumps: Callable[[object], str] = json.dumps) -> Beat:
    """Read a heartbeat.

    What a beat does not say is not taken back, as the existing runtime's partial beats need.

    Args:
        bearer: the digest of what it came with.
        dumps: writes what was read from JSON as JSON.

    Raises:
        BadBody: naming the member that is wrong.
    """
    said = parse_heartbeat(body)
    workspace_id, boot_id = said["workspace_id"], said.get("boot_id", "")
    active_tasks, error_rate = said.get("active_tasks", 0), said.get("error_rate", 0)
    _check_id(workspace_id)
    _check_boot(boot_id)
    if not 0 <= active_tasks < 1 << 31:
        raise BadBody("active_tasks must be a count")
    state, metadata = said.get("runtime_state"), said.get("runtime_metadata")
    degraded: bool | None = None
    if state == WEDGED:
        degraded = True
    elif metadata and (metadata.get("capabilities") or {}).get("status_mgmt") is True:
        degraded = None if state is None else False
    elif error_rate >= _SICK:
        degraded = True
    elif state == "" and error_rate < _WELL:
        degraded = False
    return Beat(
        workspace_id=workspace_id,
        boot_id=boot_id or None,
        active_tasks=active_tasks,
        degraded=degraded,
        report=dumps({name: said[name] for name in _REPORTED if name in said}),
        whole=state is not None and metadata is not None,
        bearer=bearer,
    )


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


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
