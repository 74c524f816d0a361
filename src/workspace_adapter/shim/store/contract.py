"""What the shim keeps, and what any store of it does: workspaces and their queues, streams,
restarts, activity.

Policy is ``queueing``'s. A store only makes each change of it a compare-and-set on
(state, attempt, lease owner), so a holder that lost its lease changes nothing.

Every verb that knows a time takes ``now``, UTC epoch seconds. ``None``, as in life, is
the store's own clock, which is the database's where several replicas share one: leases
do not depend on their clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from ...errors import BadMessage
from ...queueing import State, Verdict


class Status(StrEnum):
    """What is known of a workspace, in the existing platform's words."""

    PROVISIONING = "provisioning"
    ONLINE = "online"
    DEGRADED = "degraded"
    OFFLINE = "offline"
    FAILED = "failed"
    PAUSED = "paused"
    REMOVED = "removed"


REACHABLE = frozenset({Status.ONLINE, Status.DEGRADED})
"""Something may be sent there."""

LIVES = 1000
"""Boot ids of a workspace that are remembered, the latest: one that died so long ago cannot come late."""

DORMANT = frozenset({Status.PAUSED, Status.REMOVED})
"""Only an operator ends it: no beat and no registration does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A workspace, with what it last reported. Times are UTC epoch seconds."""

    id: str
    status: Status
    url: str | None
    boot_id: str | None
    """The mark of the life that registered last; ``None`` where the workspace has none."""
    restarting: bool
    """Nothing is sent there until the restart is over."""
    card: Mapping[str, Any] | None
    created_at: float
    beat_at: float | None
    """Of its last heartbeat."""
    active_tasks: int
    max_concurrent: int
    hold_until: float
    """It was busy; unless a beat shows room, nothing is sent there before."""
    report: Mapping[str, Any]
    """The rest of its last heartbeat."""
    provisioner: str
    """Who stops and starts it; ``external``: somebody else."""
    spec: Mapping[str, Any]
    """What its provisioner was told of it."""
    secret: str
    """The bearer of every call to it. Never logged, never shown."""


class Beat(NamedTuple):
    """What one heartbeat tells the store."""

    workspace_id: str
    boot_id: str | None
    active_tasks: int
    max_concurrent: int | None = None
    """``None``: not said; what was known stays."""
    degraded: bool | None = False
    """``None``: not said; whether it is stays as it was."""
    report: str = "{}"
    """The rest, as JSON."""
    whole: bool = True
    """Otherwise members that the report does not have stay as they were."""
    bearer: str | None = None
    """The digest of the token it came with: it counts only if that is the workspace's own. ``None``: it
    was looked at already."""


class Heard(NamedTuple):
    """What the store knows of a workspace whose beat counted."""

    waiting: int
    """Items, counted up to the depth cap."""
    max_concurrent: int
    secret: str


class Role(StrEnum):
    """Whose token it is."""

    WORKSPACE = "workspace"
    CALLER = "caller"  #: sends messages, and sees what became of them
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a bearer's digest stands for. The bearer itself is nowhere."""

    digest: str
    role: Role
    workspace_id: str | None
    """Whose it is; ``None`` where it is no workspace's."""
    label: str
    """For people; of a caller also its name, which is part of its messages' identity."""
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message to be queued."""

    workspace_id: str
    turn_key: str
    content_hash: str
    body: bytes
    """The normalised envelope."""
    method: str = "message/send"
    context_id: str | None = None
    """Its session, as sent: two items of one session are never leased at once."""
    caller: str | None = None
    priority: int = 50
    headers: Mapping[str, str] = field(default_factory=dict)
    """What is sent along, as ``traceparent``."""
    expires_in: float | None = None
    """Seconds."""

    def __post_init__(self) -> None:
        """Refuse what no store can keep.

        Raises:
            BadMessage: naming the member.
        """
        for name in ("workspace_id", "turn_key", "content_hash", "method", "context_id", "caller"):
            value = getattr(self, name)
            if value is not None and (not value.isprintable() and not _storable(value)):
                raise BadMessage(f"{name} holds a character that cannot be stored")
        if not -1000 <= self.priority <= 1000:
            raise BadMessage(f"priority must be between -1000 and 1000, not {self.priority}")


def _storable(text: str) -> bool:
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """Where a message that was sent stands."""

    id: int
    state: State
    joined: bool
    """It had been sent before, and its item is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the workspace answered, as it came."""

    status: int
    body: bytes


class Lease(NamedTuple):
    """An item in a dispatcher's hands; (id, attempt, owner) fences what it writes."""

    id: int
    attempt: int
    """Leases of this item so far."""
    owner: str
    workspace_id: str
    turn_key: str
    context_id: str | None
    caller: str | None
    method: str
    strikes: int
    lapses: int
    """Holders in a row whose renewals stopped."""
    enqueued_at: float
    cursor: str | None
    """Of the last event of its stream that was kept; a stream goes on behind it."""
    taken: bool
    """The workspace may have the message already."""
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What becomes of a leased item."""

    lease: Lease
    verdict: Verdict
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A queue item as its asker and an operator see it. Times are UTC epoch seconds."""

    id: int
    workspace_id: str
    turn_key: str
    context_id: str | None
    caller: str | None
    method: str
    priority: int
    state: State
    attempt: int
    strikes: int
    lapses: int
    taken: bool
    enqueued_at: float
    leased_at: float | None
    """Of the last lease."""
    due_at: float | None
    """When a delayed item comes back to the queue."""
    expires_at: float | None
    ended_at: float | None
    last_error: str | None
    answer: Answer | None
    """Only where one item was asked for, never in a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranded:
    """Items of a workspace to which nothing can be sent."""

    workspace_id: str
    status: Status
    waiting: int
    """Counted up to the depth cap."""
    oldest: float
    """When the one that would go first was enqueued."""


class Counts(NamedTuple):
    """How much there is of what."""

    workspaces: Mapping[Status, int]
    """Those that were not removed."""
    items: Mapping[State, int]
    """Those that have not ended, and dead letters."""


class Step(StrEnum):
    """Where a cycle stands; each is written before its work begins, so another process can go on with it."""

    ASKED = "asked"
    SIGNAL = "signal"
    STOP = "stop"
    START = "start"
    WAIT = "wait"  #: for a boot id that was not seen before
    DONE = "done"
    FAILED = "failed"


OVER = frozenset({Step.DONE, Step.FAILED})
"""The cycle ended."""


class Aim(StrEnum):
    """What a cycle is for."""

    RESTART = "restart"
    REVIVE = "revive"  #: it is dead: nobody to signal, nothing to stop
    PAUSE = "pause"
    RESUME = "resume"
    REMOVE = "remove"

    def outranks(self, other: Aim) -> bool:
        """Whether asked for this, a cycle that waits with the other aim takes it instead."""
        return _RANK.get(self, 0) > _RANK.get(other, 0)


_RANK = {Aim.PAUSE: 1, Aim.REMOVE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One restart of a workspace, or what else its container is signalled, stopped or started for."""

    id: int
    workspace_id: str
    aim: Aim
    reason: str
    requests: int
    """How many asked for it."""
    step: Step
    attempt: int
    """Owners so far; (id, attempt, owner) fences what one writes."""
    owner: str | None
    boot_before: str | None
    """The life it is to end, once that is known."""
    asked_at: float
    began_at: float | None
    ended_at: float | None
    notes: Mapping[str, Any]
    """What each step came to: the acknowledgement, what was parked, why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One entry of a workspace's log, in the existing platform's words."""

    seq: int
    workspace_id: str
    activity_type: str
    created_at: float
    entry: Mapping[str, Any]
    """The members that were sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """A task that one workspace gave another; how it stands is its queue item's to say."""

    id: str
    source_id: str
    target_id: str
    task: str
    item_id: int | None
    """``None``: the source dispatched it by itself, and says how it ended."""
    created_at: float
    updated_at: float
    status: str | None
    """As the source said, where there is no item."""
    response_preview: str | None
    error: str | None


class Queue(Protocol):
    """Workspaces, tokens and the queue. Any number of tasks may use one at once.

    Every verb may raise :class:`~workspace_adapter.errors.StoreUnavailable`.
    """

    on_due: Callable[[str], None]
    """Called on the event loop with the id of a workspace that may have something to send: at every
    replica, after the commit. It may be called for nothing, and a call may be lost: sweep."""
    on_ended: Callable[[int], None]
    """Called likewise with the id of an item that ended, for whoever waits for it."""

    async def __aenter__(self) -> Self:
        """Open it, and bring its schema up to date."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close it; what waits to be written is."""

    # --- workspaces and tokens ---

    async def create_workspace(
        self,
        workspace_id: str,
        *,
        max_concurrent: int = 1,
        provisioner: str = "external",
        spec: Mapping[str, Any] | None = None,
        secret: str = "",
        now: float | None = None,
    ) -> bool:
        """Make a workspace, ``provisioning``; return whether it is new. A removed one begins anew: what
        was asked of it before is over."""

    async def workspace(self, workspace_id: str) -> Workspace | None:
        """Return what is known of a workspace."""

    async def workspaces(self, *, after: str = "", most: int = 500) -> list[Workspace]:
        """Return those that were not removed, by id, behind the id ``after``."""

    async def register(
        self,
        workspace_id: str,
        *,
        url: str | None,
        boot_id: str | None,
        card: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> bool:
        """Take a registration; return whether it counts.

        One of a life that was replaced changes nothing, nor one of a workspace that is paused. Any other
        workspace is ``online`` by it. A life that is new waits for nobody: what the one before was cut off
        from is due at once.

        Raises:
            UnknownWorkspace: there is none, or it was removed.
        """

    async def set_card(self, workspace_id: str, card: Mapping[str, Any]) -> bool:
        """Replace a workspace's agent card; return whether there is one that was not removed."""

    async def change_workspace(
        self,
        workspace_id: str,
        *,
        max_concurrent: int | None = None,
        provisioner: str | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> bool:
        """Change what an operator said of a workspace, ``None`` leaving it; return whether there is one
        that was not removed."""

    async def set_status(
        self, workspace_id: str, status: Status, *, were: Collection[Status], of: Cycle | None = None
    ) -> bool:
        """Change the status where it is one of ``were``; return whether it was.

        A workspace that is removed loses its tokens and its boot ids; its items are dropped.

        Args:
            of: the cycle it is part of; where another owner has that, or it ended, nothing is changed.
        """

    async def set_restarting(self, workspace_id: str, restarting: bool, *, of: Cycle | None = None) -> bool:
        """Begin or end the time in which nothing is leased; return whether that is a change.

        When it has returned, no claim that began before will lease anything.

        Args:
            of: as ``set_status`` has it.
        """

    async def beat(self, beats: Sequence[Beat], *, now: float | None = None) -> dict[str, Heard]:
        """Take heartbeats, the last of each workspace's counting.

        Returns:
            The workspaces whose beat counted. A beat of a life that was replaced, or of a workspace
            that is dormant, does not count.
        """

    async def fell_silent(self, seconds: float, *, now: float | None = None) -> list[str]:
        """Count what is reachable, has beaten, but not for so long, as offline; return which that is.

        Not what restarts: its cycle waits for it.
        """

    async def add_token(
        self,
        digest: str,
        *,
        role: Role,
        workspace_id: str | None = None,
        label: str = "",
        now: float | None = None,
    ) -> None:
        """Keep the digest of a token."""

    async def tokens(self, digests: Collection[str]) -> dict[str, Token]:
        """Return what digests stand for; one that is unknown, or of a removed workspace, is left out."""

    async def tokens_of(self, workspace_id: str | None) -> list[Token]:
        """Return a workspace's tokens, or those that are no workspace's, oldest first."""

    async def revoke_token(self, digest: str) -> bool:
        """Forget a token; return whether it was known."""

    # --- the queue ---

    async def enqueue(self, message: Message, *, now: float | None = None) -> Enqueued:
        """Commit a message to the queue, or join the item that it was sent as before.

        One that failed or expired is tried anew, unless the queue is full. A caller that is cancelled
        meanwhile takes nothing back.

        Raises:
            ContentConflict: it was sent before with other content.
            QueueFull: as many wait as may.
            UnknownWorkspace: there is none, or it was removed.
        """

    async def claim(
        self, workspace_id: str, owner: str, *, most: int = 64, now: float | None = None
    ) -> list[Lease]:
        """Lease what can be sent to a workspace now, the first in order first.

        That is: nothing unless it is reachable, not restarting and not held; whatever a dead holder
        left and whatever the workspace may have already, as far as nobody else of its session is
        before it; and, up to the workspace's room, what comes next.

        Args:
            owner: the boot id of the dispatcher.
            most: of each of the three.
        """

    async def renew(self, leases: Sequence[Lease], *, now: float | None = None) -> set[int]:
        """Hold leases for longer; return the ids of those that are still held."""

    async def settle(self, settlements: Sequence[Settlement], *, now: float | None = None) -> list[bool]:
        """Write what becomes of leased items.

        Return for each whether it was written; ``False``: its lease was lost, and nothing of it changed.
        """

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        """Bring delayed items whose time has come back to the queue; return how many."""

    async def expire(self, *, most: int = 500, now: float | None = None) -> int:
        """End waiting items that nobody wants any more; return how many."""

    async def due(self, *, now: float | None = None) -> list[str]:
        """Return the workspaces that a claim may find something for."""

    async def stranded(self, *, now: float | None = None) -> list[Stranded]:
        """Return what waits for workspaces to which nothing can be sent, what a dead holder left included."""

    async def depth(self, workspace_id: str) -> int:
        """Return how many items wait, counted up to the depth cap."""

    async def counts(self) -> Counts:
        """Return how many workspaces and items there are; for people and graphs, not for every request."""

    async def item(self, item_id: int) -> Item | None:
        """Return an item with its answer."""

    async def ended(self, item_ids: Collection[int]) -> set[int]:
        """Return those of these items that have ended, or are not there any more."""

    async def items(
        self, workspace_id: str, *, state: State | None = None, after: int = 0, most: int = 100
    ) -> list[Item]:
        """Return items by id, without their answers."""

    async def dead_letters(self, *, after: int = 0, most: int = 100) -> list[Item]:
        """Return what failed, of all workspaces, by id, without answers."""

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        """Send a dead letter, or an expired or dropped item, anew; return whether it was one, and its
        workspace is there."""

    async def drop(self, item_id: int, because: str, *, now: float | None = None) -> bool:
        """Take an item out that has no answer; return whether that could be."""

    async def forget(self, *, most: int = 500, now: float | None = None) -> int:
        """Delete ended items older than the retention, their streams with them; return how many.

        So go ended cycles, activity, and delegations whose item is gone: as many of each at most.
        """


class Streams(Protocol):
    """What workspaces said on streams, so that any replica can tell it, also after a restart."""

    on_said: Callable[[int], None]
    """Called as ``on_ended`` is, with the id of an item whose stream has more events."""

    async def say(self, lease: Lease, events: Sequence[bytes], cursor: str | None) -> bool:
        """Keep events of a leased item's stream, behind those it has; return ``False``: the lease was lost.

        Beyond ``Rules.stream_limit`` the oldest go. An item that is tried anew has none; its numbers go on.

        Args:
            events: the data of each, as the workspace sent it.
            cursor: of the last of them that has one; ``None`` leaves the item's as it is.
        """

    async def said(self, item_id: int, *, after: int = 0, most: int = 500) -> list[tuple[int, bytes]]:
        """Return events of an item's stream with their numbers, from 1 on, in order."""


class Cycles(Protocol):
    """Restarts, so that another process finishes what one began."""

    on_cycle: Callable[[str], None]
    """Called as ``on_due`` is, with the id of a workspace for which a cycle was asked, or one ended."""

    async def ask_cycle(
        self, workspace_id: str, aim: Aim, reason: str, *, now: float | None = None
    ) -> tuple[Cycle, bool]:
        """Ask for a cycle; return the one that will serve, with whether it is new.

        One that nobody began yet, of the same aim, serves all who ask. While one runs, one more may
        wait, so that any number of requests are two cycles at most. Asked with another aim, the one
        that waits takes the stronger: remove before pause before the rest.

        Raises:
            UnknownWorkspace: there is none, or it was removed.
        """

    async def claim_cycle(self, owner: str, *, now: float | None = None) -> Cycle | None:
        """Take a cycle that nobody works on, or whose owner's renewals stopped; the oldest first.

        Of one workspace, one cycle runs at a time. It holds for a lease, as a queue item does, and
        stands where it stood: ``ASKED``, when nobody had it before or whoever did wrote nothing.
        """

    async def advance_cycle(
        self,
        cycle: Cycle,
        step: Step,
        *,
        boot_before: str | None = None,
        notes: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> Cycle | None:
        """Write where a cycle stands, and renew it; return it, or ``None`` when another owner has it.

        ``DONE`` and ``FAILED`` end it. ``notes`` are merged with what was noted; a ``boot_before`` of
        ``None`` leaves what was known.
        """

    async def renew_cycle(self, cycle: Cycle, *, now: float | None = None) -> bool:
        """Hold a cycle for longer; return whether it is still its owner's."""

    async def release_cycle(self, cycle: Cycle) -> bool:
        """Let another owner take a cycle at once; return whether it was still its owner's."""

    async def cycle(self, cycle_id: int) -> Cycle | None:
        """Return a cycle."""

    async def cycles(self, workspace_id: str, *, most: int = 50) -> list[Cycle]:
        """Return a workspace's cycles, the latest first."""


class Log(Protocol):
    """What workspaces report, and what they gave one another to do."""

    async def log(
        self,
        workspace_id: str,
        activity_type: str,
        entry: Mapping[str, Any],
        *,
        now: float | None = None,
    ) -> int:
        """Add to a workspace's activity; return its number, which grows over all workspaces.

        Raises:
            UnknownWorkspace: there is none, or it was removed.
        """

    async def activity(
        self,
        workspace_id: str,
        *,
        activity_type: str | None = None,
        by_agent: bool | None = None,
        since: float | None = None,
        after: int | None = None,
        before: float | None = None,
        most: int = 100,
    ) -> list[Activity]:
        """Return activity: behind ``after`` oldest first, else the latest first. ``since`` and
        ``before`` are UTC epoch seconds. ``by_agent``: only what names a workspace as its source, or
        only what does not.

        What is behind the last entry that was read stays behind it: no number comes late."""

    async def acknowledge(self, workspace_id: str, seq: int) -> int:
        """Note how far a workspace read its activity; return the furthest it ever did."""

    async def delegate(
        self,
        delegation_id: str,
        *,
        source_id: str,
        target_id: str,
        task: str,
        item_id: int | None = None,
        status: str | None = None,
        now: float | None = None,
    ) -> tuple[Delegation, bool]:
        """Keep a delegation; return the one of that id, with whether it is new."""

    async def report_delegation(
        self,
        delegation_id: str,
        source_id: str,
        status: str,
        *,
        response_preview: str | None = None,
        error: str | None = None,
        now: float | None = None,
    ) -> bool:
        """Take from its source how a delegation without an item ended; return whether there is one."""

    async def delegations(self, source_id: str, *, most: int = 50) -> list[Delegation]:
        """Return the delegations of a workspace, the latest first."""

    async def untold(self, source_id: str, *, most: int = 50) -> list[Delegation]:
        """Return delegations that ended of which their source's activity says nothing yet, as they ended."""

    async def tell(
        self, delegation_id: str, activity_type: str, entry: Mapping[str, Any], *, now: float | None = None
    ) -> bool:
        """Add to the source's activity how a delegation ended, unless it was; return whether it was not.

        An item that is tried anew can be told of again.
        """


class Store(Queue, Streams, Cycles, Log, Protocol):
    """All that the shim keeps."""

    async def disown(self) -> None:
        """Let every lease lapse whose holder cannot live any more, when a life begins.

        Where one process at a time has the store open that is each of them. Replicas cannot know it of
        one another: there this does nothing, and a lease lapses by its time.
        """
