"""The operator's verbs: workspaces, tokens, the queue, restarts. Each returns what is shown as JSON."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

import anyio

from .. import wire
from ..queueing import State
from .door.teller import without_stream
from .front.body import storable
from .front.identity import CALLER_NAME, WORKSPACE_ID, Caller, Identity, mint
from .front.refusal import Refusal
from .provisioners.contract import Provisioner
from .provisioners.external import ExternalProvisioner
from .store.contract import OVER, Aim, Cycle, Item, Role, Status, Store, Token, Workspace

EXTERNAL = "external"
"""The provisioner of a workspace that somebody else stops and starts."""

_MOST = 500
"""Rows of a listing."""

_LOOK = 0.2
"""Seconds between two looks at a cycle that somebody waits for."""

_WIRE = {
    State.QUEUED: "queued",
    State.DELAYED: "queued",
    State.LEASED: "dispatched",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.EXPIRED: "dropped",
    State.DROPPED: "dropped",
}
"""The existing platform's words for where an item stands."""


class Operator:
    """What an operator may do.

    Args:
        provisioners: by name; ``external`` is always there.
        ring: told of a workspace whose queue somebody changed.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        *,
        provisioners: Mapping[str, Provisioner],
        ring: Callable[[str], None],
    ) -> None:
        self._store = store
        self._identity = identity
        self._provisioners: Mapping[str, Provisioner] = {EXTERNAL: ExternalProvisioner(), **provisioners}
        self._ring = ring

    # --- workspaces -------------------------------------------------------------------

    async def workspaces(self, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return workspaces by id, behind ``after``.

        Raises:
            Refusal: a parameter is wrong.
        """
        return [shown(workspace) for workspace in await self._page(asked)]

    async def workspace(self, workspace_id: str) -> dict[str, Any]:
        """Return one workspace, and how many messages wait for it.

        Raises:
            Refusal: there is none, or it was removed.
        """
        workspace = await self._get(workspace_id)
        return shown(workspace) | {"queue_depth": await self._store.depth(workspace_id)}

    async def create(self, body: object) -> dict[str, Any]:
        """Make a workspace and its token, which is shown this once; start it where it has a provisioner.

        Raises:
            Refusal: there is one of that id, or the body is wrong.
        """
        given = _object(body, {"id", "provisioner", "spec", "max_concurrent_tasks", "start"})
        workspace_id = given.get("id")
        if not isinstance(workspace_id, str) or not WORKSPACE_ID.fullmatch(workspace_id):
            raise Refusal(400, "id must be lower-case letters, digits and dashes, at most 128")
        provisioner = given.get("provisioner", EXTERNAL)
        if not isinstance(provisioner, str) or provisioner not in self._provisioners:
            missing = "" if "command" in self._provisioners else "; command needs SHIM_PROVISIONER_COMMAND"
            raise Refusal(400, f"provisioner must be one of {', '.join(sorted(self._provisioners))}{missing}")
        most = _concurrency(given.get("max_concurrent_tasks", 1))
        spec = _spec(given.get("spec", {}), self._provisioners[provisioner])
        secret = secrets.token_urlsafe(32)
        if not await self._store.create_workspace(
            workspace_id, max_concurrent=most, provisioner=provisioner, spec=spec, secret=secret
        ):
            raise Refusal(409, f"there is a workspace {workspace_id} already")
        token, kept = mint()
        await self._store.add_token(kept, role=Role.WORKSPACE, workspace_id=workspace_id, label="first")
        told: dict[str, Any] = {"id": workspace_id, "auth_token": token, "platform_inbound_secret": secret}
        if provisioner != EXTERNAL and given.get("start", True):
            cycle, _ = await self._store.ask_cycle(workspace_id, Aim.REVIVE, "created")
            told["cycle"] = cycle_shown(cycle)
        return told

    async def change(self, workspace_id: str, body: object) -> dict[str, Any]:
        """Change how much a workspace is sent at once, or what its next start is told; or let go of it.

        Raises:
            Refusal: there is none, or the body is wrong.
        """
        given = _object(body, {"provisioner", "spec", "max_concurrent_tasks"})
        workspace = await self._get(workspace_id)
        if given.get("provisioner", EXTERNAL) != EXTERNAL:
            raise Refusal(400, f"provisioner can only become {EXTERNAL}: what runs would run twice")
        name = given.get("provisioner", workspace.provisioner)
        most, spec = given.get("max_concurrent_tasks"), given.get("spec")
        if spec is not None:
            if name not in self._provisioners:
                raise Refusal(409, f"the shim has no provisioner {name}: set it up, or say {EXTERNAL}")
            spec = _spec(spec, self._provisioners[name])
        await self._store.change_workspace(
            workspace_id,
            max_concurrent=None if most is None else _concurrency(most),
            provisioner=name,
            spec=spec,
        )
        return await self.workspace(workspace_id)

    async def peer(self, workspace_id: str, address: str) -> dict[str, Any]:
        """Return where a workspace is reached: through the shim, which stands at ``address``.

        Raises:
            Refusal: there is none, or it was removed.
        """
        return _peer(await self._get(workspace_id), address)

    async def peers(self, workspace_id: str, address: str, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the other workspaces, by id, behind ``after``.

        Raises:
            Refusal: there is no such workspace, or it was removed.
        """
        await self._get(workspace_id)
        return [_peer(other, address) for other in await self._page(asked) if other.id != workspace_id]

    # --- cycles -----------------------------------------------------------------------

    async def ask(self, workspace_id: str, aim: Aim, reason: str) -> Cycle:
        """Ask for a restart, a pause, a resumption or a removal.

        Raises:
            Refusal: the workspace is paused, or is not.
        """
        workspace = await self._get(workspace_id)
        if aim is Aim.RESTART and workspace.status is Status.PAUSED:
            raise Refusal(409, f"the workspace is paused: POST /workspaces/{workspace_id}/resume ends that")
        if aim is Aim.RESUME and workspace.status is not Status.PAUSED:
            raise Refusal(409, "the workspace is not paused")
        cycle, _ = await self._store.ask_cycle(workspace_id, aim, reason)
        return cycle

    async def until_over(self, cycle: Cycle, seconds: float) -> Cycle:
        """Wait for the end of a cycle, so many seconds at most; return how it stands."""
        with anyio.move_on_after(seconds):
            while cycle.step not in OVER:
                await anyio.sleep(_LOOK)
                cycle = await self._store.cycle(cycle.id) or cycle
        return cycle

    async def cycles(self, workspace_id: str) -> list[dict[str, Any]]:
        """Return the restarts of a workspace, the latest first."""
        return [cycle_shown(cycle) for cycle in await self._store.cycles(workspace_id)]

    # --- tokens -----------------------------------------------------------------------

    async def add_token(self, body: object, workspace_id: str | None = None) -> dict[str, Any]:
        """Make a token, shown this once: a workspace's, a caller's or an operator's.

        Raises:
            Refusal: there is no such workspace, or the body is wrong.
        """
        if workspace_id is not None:
            await self._get(workspace_id)
            given = _object(body, {"label"})
            role, label = Role.WORKSPACE, given.get("label", "")
            if not isinstance(label, str) or len(label) > 200 or not label.isprintable():
                raise Refusal(400, "label must be printable, at most 200 characters")
        else:
            given = _object(body, {"role", "name"})
            label = given.get("name")
            if given.get("role", Role.CALLER) not in (Role.CALLER, Role.OPERATOR):
                raise Refusal(400, "role must be caller or operator (a workspace's: /workspaces/{id}/tokens)")
            role = Role(given.get("role", Role.CALLER))
            if not isinstance(label, str) or not CALLER_NAME.fullmatch(label):
                raise Refusal(400, "name must be letters, digits, dots, dashes and underscores, at most 64")
        token, kept = mint()
        await self._store.add_token(kept, role=role, workspace_id=workspace_id, label=label)
        return {"auth_token": token, "id": kept[:_SHOWN], "role": str(role), "name": label}

    async def tokens(self, workspace_id: str | None = None) -> list[dict[str, Any]]:
        """Return the tokens of a workspace, or those that are no workspace's; never what they are."""
        return [_token_shown(token) for token in await self._store.tokens_of(workspace_id)]

    async def revoke(self, token_id: str, workspace_id: str | None = None) -> None:
        """Take a token back.

        Raises:
            Refusal: there is none of that id.
        """
        for token in await self._store.tokens_of(workspace_id):
            if token.digest[:_SHOWN] == token_id and await self._store.revoke_token(token.digest):
                self._identity.forget()
                return
        raise Refusal(404, "there is no such token")

    # --- the queue --------------------------------------------------------------------

    async def items(self, workspace_id: str, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return items of a workspace's queue, the oldest first, behind ``after``.

        Raises:
            Refusal: there is no such workspace, or a parameter is wrong.
        """
        await self._get(workspace_id)
        state = asked.get("state")
        if state is not None and state not in list(State):
            raise Refusal(400, f"state must be one of {', '.join(State)}")
        items = await self._store.items(
            workspace_id,
            state=None if state is None else State(state),
            after=whole(asked, "after", 0),
            most=min(_MOST, max(1, whole(asked, "limit", 100))),
        )
        return [item_shown(item) for item in items]

    async def dead_letters(self, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return what was given up on, of all workspaces, the oldest first, behind ``after``.

        Raises:
            Refusal: a parameter is wrong.
        """
        after, most = whole(asked, "after", 0), min(_MOST, max(1, whole(asked, "limit", 100)))
        return [item_shown(item) for item in await self._store.dead_letters(after=after, most=most)]

    async def item(self, item_id: str, caller: Caller) -> dict[str, Any]:
        """Return an item, with its answer.

        Raises:
            Refusal: there is none, or it is not this caller's.
        """
        item = await self._item(item_id)
        if not caller.may_see(item):
            raise Refusal(403, "this queue item is neither from you nor for you")
        return item_shown(await without_stream(self._store, item))

    async def replay(self, item_id: str) -> dict[str, Any]:
        """Send a message anew that failed, expired or was dropped.

        Raises:
            Refusal: there is none, or it has not ended so.
        """
        item = await self._item(item_id)
        await self._get(item.workspace_id)
        if not await self._store.replay(item.id):
            raise Refusal(
                409, f"the item is {item.state}; only what failed, expired or was dropped is replayed"
            )
        self._ring(item.workspace_id)
        return item_shown(await self._item(item_id))

    async def drop(self, item_id: str, because: str) -> dict[str, Any]:
        """Take a message out that has no answer.

        Raises:
            Refusal: there is none, or it has ended.
        """
        item = await self._item(item_id)
        if not await self._store.drop(item.id, because):
            raise Refusal(409, f"the item is {item.state}: it can no longer be dropped")
        return item_shown(await self._item(item_id))

    # --- what they share --------------------------------------------------------------

    async def _page(self, asked: Mapping[str, str]) -> list[Workspace]:
        most = min(_MOST, max(1, whole(asked, "limit", _MOST)))
        after = asked.get("after", "")
        if after and not WORKSPACE_ID.fullmatch(after):
            raise Refusal(400, "after must be the id of a workspace")
        return await self._store.workspaces(after=after, most=most)

    async def _get(self, workspace_id: str) -> Workspace:
        workspace = (
            await self._store.workspace(workspace_id) if WORKSPACE_ID.fullmatch(workspace_id) else None
        )
        if workspace is None:
            raise Refusal(404, f"there is no workspace {workspace_id}")
        if workspace.status is Status.REMOVED:
            raise Refusal(410, f"the workspace {workspace_id} was removed")
        return workspace

    async def _item(self, item_id: str) -> Item:
        known = item_id.isascii() and item_id.isdigit() and len(item_id) < 19
        item = await self._store.item(int(item_id)) if known else None
        if item is None:
            raise Refusal(404, "queue item not found", retryable=True)
        return item


_SHOWN = 12
"""Characters of a digest that name its token."""


def whole(asked: Mapping[str, str], name: str, default: int) -> int:
    """Read a count from a query.

    Raises:
        Refusal: it is none.
    """
    text = asked.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Refusal(400, f"{name} must be a whole number")
    return int(text)


def _object(body: object, known: Collection[str]) -> Mapping[str, Any]:
    """Read a body whose members are all known: a misspelt one must not be a silent default."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object")
    if strange := sorted(set(body) - set(known)):
        raise Refusal(400, f"unknown member {strange[0]!r}; known are {', '.join(sorted(known))}")
    return {name: value for name, value in body.items() if value is not None}


def _concurrency(most: object) -> int:
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 1000:
        raise Refusal(400, "max_concurrent_tasks must be between 1 and 1000")
    return most


def _spec(spec: object, provisioner: Provisioner) -> Mapping[str, Any]:
    if not isinstance(spec, dict):
        raise Refusal(400, "spec must be an object")
    if storable(spec) != spec:
        raise Refusal(400, "spec must not hold NUL or half a surrogate pair")
    if problems := provisioner.problems(spec):
        raise Refusal(400, "; ".join(problems))
    return spec


def _time(at: float | None) -> str | None:
    return None if at is None else wire.moment(at)


def _said(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def shown(workspace: Workspace) -> dict[str, Any]:
    """Return a workspace as it is shown; its secret is not."""
    return {
        "id": workspace.id,
        "name": _name(workspace),
        "status": str(workspace.status),
        "restarting": workspace.restarting,
        "url": workspace.url,
        "boot_id": workspace.boot_id,
        "active_tasks": workspace.active_tasks,
        "max_concurrent_tasks": workspace.max_concurrent,
        "last_heartbeat_at": _time(workspace.beat_at),
        "created_at": _time(workspace.created_at),
        "provisioner": workspace.provisioner,
        "report": dict(workspace.report),
    }


def _name(workspace: Workspace) -> str:
    named = (workspace.card or {}).get("name")
    return named if isinstance(named, str) and named else workspace.id


def _peer(workspace: Workspace, address: str) -> dict[str, Any]:
    return {
        "id": workspace.id,
        "name": _name(workspace),
        "url": f"{address}/workspaces/{workspace.id}/a2a",
        "status": str(workspace.status),
        "agent_card": workspace.card,
    }


def item_shown(item: Item) -> dict[str, Any]:
    """Return a queue item as the existing platform shows one, in our words beside its own."""
    answer: Any = None
    if item.answer is not None and item.state in (State.COMPLETED, State.FAILED):
        try:
            answer = json.loads(item.answer.body)
        except ValueError:
            answer = item.answer.body.decode(errors="replace")
    return _said(
        {
            "queue_id": str(item.id),
            "workspace_id": item.workspace_id,
            "status": _WIRE[item.state],
            "state": str(item.state),
            "priority": item.priority,
            "attempts": item.attempt,
            "strikes": item.strikes,
            "method": item.method,
            "context_id": item.context_id,
            "last_error": item.last_error,
            "enqueued_at": _time(item.enqueued_at),
            "dispatched_at": _time(item.leased_at),
            "due_at": _time(item.due_at),
            "expires_at": _time(item.expires_at),
            "completed_at": _time(item.ended_at),
            "response_status": item.answer.status if item.answer is not None else None,
            "response_body": answer,
        }
    )


def cycle_shown(cycle: Cycle) -> dict[str, Any]:
    """Return a restart as it is shown."""
    return _said(
        {
            "id": str(cycle.id),
            "workspace_id": cycle.workspace_id,
            "aim": str(cycle.aim),
            "reason": cycle.reason,
            "requests": cycle.requests,
            "step": str(cycle.step),
            "asked_at": _time(cycle.asked_at),
            "began_at": _time(cycle.began_at),
            "ended_at": _time(cycle.ended_at),
            "notes": dict(cycle.notes),
        }
    )


def _token_shown(token: Token) -> dict[str, Any]:
    return {
        "id": token.digest[:_SHOWN],
        "role": str(token.role),
        "name": token.label,
        "created_at": _time(token.created_at),
    }
