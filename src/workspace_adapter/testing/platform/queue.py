"""``a2a_queue``: the messages that wait on the platform, and the life of one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .envelope import message_of
from .times import Times

RESTART_CONTEXT_PRIORITY = 90
TASK_PRIORITY = 50

_ATTEMPTS = 5
"""Failed attempts after which an item is given up."""


class ItemState(StrEnum):
    """The table's own words. Nothing but its dispatch moves an item out of ``dispatched``."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    COMPLETED = "completed"
    DROPPED = "dropped"
    FAILED = "failed"


@dataclass(slots=True)
class Item:
    """One row; times are of the monotonic clock."""

    body: Mapping[str, Any]
    caller: str | None
    key: str | None
    """What makes two enqueued messages one; on the path of a boot turn there is none."""
    enqueued_at: float
    priority: int = TASK_PRIORITY
    expires_at: float | None = None
    state: ItemState = ItemState.QUEUED
    attempts: int = 0
    next_attempt_at: float | None = None
    settling_since: float | None = None
    last_error: str | None = None
    response: Any = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def message_id(self) -> str:
        """The sender's id of it."""
        return str(message_of(self.body).get("messageId"))

    @property
    def lost(self) -> bool:
        """Whether the platform believes it answered and has no answer: a flaw of its own."""
        return self.state is ItemState.COMPLETED and self.response is None

    def expired(self, now: float) -> bool:
        """Whether nobody wants it any more; its state does not say so."""
        return self.expires_at is not None and self.expires_at <= now


class CannotEnqueue(Exception):
    """The database does not take the row."""


class Queue:
    """The rows of one workspace."""

    def __init__(self, times: Times, scale: float) -> None:
        self._times = times
        self._scale = scale
        self.items: list[Item] = []

    def enqueue(
        self,
        body: Mapping[str, Any],
        *,
        caller: str | None,
        now: float,
        keyed: bool = True,
        key: str | None = None,
        priority: int = TASK_PRIORITY,
        ttl: float | None = None,
    ) -> Item:
        """Insert a row, or return the active one of the same key.

        Args:
            keyed: whether the messageId is the key, where no other is given.
            ttl: seconds; by default what the envelope asks for.

        Raises:
            CannotEnqueue: the body holds what the column's type cannot.
        """
        if _holds_nul(body):
            raise CannotEnqueue("jsonb has no NUL character")
        if key is None and keyed:
            key = message_of(body).get("messageId")
        if ttl is None:
            ttl = _asked_ttl(body, self._scale)
        active = [item for item in self.items if key and item.key == key and item.state in _ACTIVE]
        for item in active:
            if item.state is ItemState.QUEUED and item.expired(now):
                item.state, item.last_error = ItemState.DROPPED, "superseded"
            else:
                return item
        expires_at = now + ttl if ttl is not None else None
        made = Item(dict(body), caller, key, now, priority, expires_at)
        self.items.append(made)
        return made

    def depth(self) -> int:
        """Count what is queued, expired or not."""
        return sum(item.state is ItemState.QUEUED for item in self.items)

    def due(self, now: float) -> list[Item]:
        """Return what the sweeper sees: it looks at no item's time."""
        return [item for item in self.items if item.state is ItemState.QUEUED and not item.expired(now)]

    def claim(self, now: float) -> Item | None:
        """Take the next one: by priority, then by age."""
        ready = [
            item for item in self.due(now) if item.next_attempt_at is None or item.next_attempt_at <= now
        ]
        if not ready:
            return None
        item = min(ready, key=lambda one: (-one.priority, one.enqueued_at))
        item.state = ItemState.DISPATCHED
        item.attempts += 1
        return item

    def complete(self, item: Item, response: Any) -> None:
        """Keep the answer; ``None`` is what a message is lost with."""
        item.state, item.response = ItemState.COMPLETED, response

    def retry_later(self, item: Item, error: str, now: float) -> bool:
        """Put it back without a charge; return ``False`` when it has settled for too long and is dropped."""
        item.settling_since = item.settling_since if item.settling_since is not None else now
        item.last_error = error
        if now - item.settling_since >= self._times.settling:
            item.state = ItemState.DROPPED
            return False
        item.state = ItemState.QUEUED
        item.attempts -= 1
        item.next_attempt_at = now + self._times.transient_retry
        return True

    def fail(self, item: Item, error: str) -> None:
        """Charge the attempt; the next one may come at once, which is a flaw."""
        item.last_error = error
        item.state = ItemState.FAILED if item.attempts >= _ATTEMPTS else ItemState.QUEUED


_ACTIVE = frozenset({ItemState.QUEUED, ItemState.DISPATCHED})


def _asked_ttl(body: Mapping[str, Any], scale: float) -> float | None:
    params = body.get("params")
    seconds = params.get("expires_in_seconds") if isinstance(params, dict) else None
    if isinstance(seconds, int | float) and seconds == int(seconds) > 0:
        return seconds * scale
    return None


def _holds_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_holds_nul(key) or _holds_nul(inner) for key, inner in value.items())
        case list():
            return any(_holds_nul(item) for item in value)
    return False
