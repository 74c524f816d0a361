"""What the shim keeps, and what any store of it does: workspaces, tokens, beats, a2a_queue.

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
from typing import Any, Protocol, Self

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What one heartbeat tells the store."""

    workspace_id: str
    boot_id: str | None
    active_tasks: int
    max_concurrent: int | None = None
    """``None``: not said; what was known stays."""
    degraded: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a bearer's digest stands for. The bearer itself is nowhere."""

    digest: str
    workspace_id: str | None
    """Whose it is; ``None``: an operator's."""
    label: str
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
        for name in ("turn_key", "content_hash", "method", "context_id", "caller"):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
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
    body: bytes
    headers: Mapping[str, str]
    strikes: int
    lapses: int
    """Holders in a row whose renewals stopped."""
    taken: bool
    """The workspace may have the message already."""
    enqueued_at: float


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


class Store(Protocol):
    """What the shim keeps. Any number of tasks may use one at once.

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
        self, workspace_id: str, *, max_concurrent: int = 1, now: float | None = None
    ) -> bool:
        """Make a workspace, ``provisioning``; return whether it is new. A removed one begins anew."""

    async def workspace(self, workspace_id: str) -> Workspace | None:
        """Return what is known of a workspace."""

    async def workspaces(self) -> list[Workspace]:
        """Return all that were not removed, by id."""

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
        workspace is ``online`` by it.

        Raises:
            UnknownWorkspace: there is none, or it was removed.
        """

    async def set_status(self, workspace_id: str, status: Status, *, were: Collection[Status]) -> bool:
        """Change the status where it is one of ``were``; return whether it was.

        A workspace that is removed loses its tokens and its boot ids; its items are dropped.
        """

    async def set_restarting(self, workspace_id: str, restarting: bool) -> bool:
        """Begin or end the time in which nothing is leased; return whether that is a change.

        When it has returned, no claim that began before will lease anything.
        """

    async def beat(self, beats: Sequence[Beat], *, now: float | None = None) -> dict[str, bool]:
        """Take heartbeats, the last of each workspace's counting.

        Returns:
            The workspaces whose beat counted, with whether items wait there. A beat of a life that
            was replaced, or of a workspace that is removed, does not count.
        """

    async def add_token(
        self, digest: str, *, workspace_id: str | None, label: str = "", now: float | None = None
    ) -> None:
        """Keep the digest of a token."""

    async def token(self, digest: str) -> Token | None:
        """Return what a digest stands for."""

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

    async def settle(self, settlement: Settlement, *, now: float | None = None) -> bool:
        """Write what becomes of a leased item; return ``False`` when the lease was lost: nothing changed."""

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        """Bring delayed items whose time has come back to the queue; return how many."""

    async def expire(self, *, most: int = 500, now: float | None = None) -> int:
        """End waiting items that nobody wants any more; return how many."""

    async def due(self, *, now: float | None = None) -> list[str]:
        """Return the workspaces that a claim may find something for."""

    async def stranded(self) -> list[Stranded]:
        """Return what waits for workspaces to which nothing can be sent."""

    async def depth(self, workspace_id: str) -> int:
        """Return how many items wait, counted up to the depth cap."""

    async def item(self, item_id: int) -> Item | None:
        """Return an item with its answer."""

    async def items(
        self, workspace_id: str, *, state: State | None = None, after: int = 0, most: int = 100
    ) -> list[Item]:
        """Return items by id, without their answers."""

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        """Send a dead letter, or an expired or dropped item, anew; return whether it was one."""

    async def drop(self, item_id: int, because: str, *, now: float | None = None) -> bool:
        """Take an item out that has no answer; return whether that could be."""

    async def forget(self, *, most: int = 500, now: float | None = None) -> int:
        """Delete ended items older than the retention; return how many."""
