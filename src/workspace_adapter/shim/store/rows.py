"""What the rows of either database are, as records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from ...queueing import State
from .contract import (
    Activity,
    Aim,
    Answer,
    Cycle,
    Delegation,
    Item,
    Lease,
    Role,
    Status,
    Step,
    Token,
    Workspace,
)


class Row(Protocol):
    """A row of ``sqlite3`` or of asyncpg; the one has numbers for truth."""

    def __getitem__(self, name: str, /) -> Any: ...

    def keys(self) -> Iterable[str]: ...


LEASE = (
    "id, attempt, lease_owner, workspace_id, turn_key, context_id, caller, method, strikes, lapses,"
    " enqueued_at, cursor, taken, headers"
)
"""What a lease is read from, in the order of its fields; its body comes behind."""


def lease_of(row: Iterable[Any]) -> Lease:
    *plain, taken, headers, body = row
    return Lease._make((*plain, bool(taken), {} if headers == "{}" else json.loads(headers), body))


def item_of(row: Row, answer: Answer | None) -> Item:
    return Item(
        id=row["id"],
        workspace_id=row["workspace_id"],
        turn_key=row["turn_key"],
        context_id=row["context_id"],
        caller=row["caller"],
        method=row["method"],
        priority=row["priority"],
        state=State(row["state"]),
        attempt=row["attempt"],
        strikes=row["strikes"],
        lapses=row["lapses"],
        taken=bool(row["taken"]),
        enqueued_at=row["enqueued_at"],
        leased_at=row["leased_at"],
        due_at=row["due_at"],
        expires_at=row["expires_at"],
        ended_at=row["ended_at"],
        last_error=row["last_error"],
        answer=answer,
    )


def workspace_of(row: Row) -> Workspace:
    return Workspace(
        id=row["id"],
        status=Status(row["status"]),
        url=row["url"],
        boot_id=row["boot_id"],
        restarting=bool(row["restarting"]),
        card=None if row["card"] is None else json.loads(row["card"]),
        created_at=row["created_at"],
        beat_at=row["beat_at"],
        active_tasks=row["active_tasks"],
        max_concurrent=row["max_concurrent"],
        hold_until=row["hold_until"],
        report=json.loads(row["report"]),
        provisioner=row["provisioner"],
        spec=json.loads(row["spec"]),
        secret=row["secret"],
    )


def token_of(row: Row) -> Token:
    return Token(**(dict(row) | {"role": Role(row["role"])}))


def activity_of(row: Row) -> Activity:
    return Activity(**(dict(row) | {"entry": json.loads(row["entry"])}))


def delegation_of(row: Row) -> Delegation:
    values = dict(row)
    del values["told"]
    return Delegation(**values)


def cycle_of(row: Row) -> Cycle:
    values = dict(row)
    del values["lease_until"]
    return Cycle(
        **(values | {"aim": Aim(row["aim"]), "step": Step(row["step"]), "notes": json.loads(row["notes"])})
    )
