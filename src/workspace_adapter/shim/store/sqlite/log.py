"""What workspaces report, and what they gave one another to do, in SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ....errors import UnknownWorkspace
from ..contract import Activity, Delegation
from ..rows import activity_of, delegation_of
from .part import Part, moment
from .writer import Transaction


class Log(Part):
    """The verbs of activity and delegations."""

    async def log(
        self,
        workspace_id: str,
        activity_type: str,
        entry: Mapping[str, Any],
        *,
        now: float | None = None,
    ) -> int:
        at = moment(now)

        def log(transaction: Transaction) -> int:
            if not transaction.all(
                "SELECT id FROM workspaces WHERE id = ? AND status <> 'removed'", workspace_id
            ):
                raise UnknownWorkspace(f"there is no workspace {workspace_id}")
            return _add(transaction, workspace_id, activity_type, entry, at)

        return await self._writer.run(log)

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
        where, values = ["workspace_id = ?"], [workspace_id]
        asked: tuple[tuple[str, Any], ...] = (
            ("activity_type = ?", activity_type),
            ("by_agent = ?", by_agent),
            ("created_at >= ?", since),
            ("seq > ?", after),
            ("created_at < ?", before),
        )
        for condition, value in asked:
            if value is not None:
                where.append(condition)
                values.append(value)
        order = "DESC" if after is None else "ASC"
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT seq, workspace_id, activity_type, created_at, entry FROM activity"
                f" WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?",
                *values,
                most,
            )
        )
        return [activity_of(row) for row in rows]

    async def acknowledge(self, workspace_id: str, seq: int) -> int:
        row = await self._writer.run(
            lambda t: t.one(
                "INSERT INTO acknowledged VALUES (?, ?) ON CONFLICT DO UPDATE"
                " SET seq = max(seq, excluded.seq) RETURNING seq",
                workspace_id,
                seq,
            )
        )
        assert row is not None
        return int(row["seq"])

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
        at = moment(now)

        def delegate(transaction: Transaction) -> tuple[Delegation, bool]:
            made = transaction.change(
                "INSERT INTO delegations (id, source_id, target_id, task, item_id, created_at, updated_at,"
                " status) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                delegation_id,
                source_id,
                target_id,
                task,
                item_id,
                at,
                at,
                status,
            )
            row = transaction.one("SELECT * FROM delegations WHERE id = ?", delegation_id)
            assert row is not None
            return delegation_of(row), bool(made)

        return await self._writer.run(delegate)

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
        at = moment(now)
        return bool(
            await self._writer.run(
                lambda t: t.change(
                    "UPDATE delegations SET status = ?, response_preview = ?, error = ?, updated_at = ?"
                    " WHERE id = ? AND source_id = ? AND item_id IS NULL",
                    status,
                    response_preview,
                    error,
                    at,
                    delegation_id,
                    source_id,
                )
            )
        )

    async def delegations(self, source_id: str, *, most: int = 50) -> list[Delegation]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT * FROM delegations WHERE source_id = ? ORDER BY created_at DESC, id LIMIT ?",
                source_id,
                most,
            )
        )
        return [delegation_of(row) for row in rows]

    async def untold(self, source_id: str, *, most: int = 50) -> list[Delegation]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT d.* FROM delegations AS d LEFT JOIN a2a_queue AS q ON q.id = d.item_id"
                " WHERE d.source_id = ? AND d.told = 0"
                " AND (q.ended_at IS NOT NULL OR d.item_id IS NULL AND d.status IN ('completed', 'failed'))"
                " ORDER BY coalesce(q.ended_at, d.updated_at), d.id LIMIT ?",
                source_id,
                most,
            )
        )
        return [delegation_of(row) for row in rows]

    async def tell(
        self, delegation_id: str, activity_type: str, entry: Mapping[str, Any], *, now: float | None = None
    ) -> bool:
        at = moment(now)

        def tell(transaction: Transaction) -> bool:
            row = transaction.one(
                "UPDATE delegations SET told = 1 WHERE id = ? AND told = 0 RETURNING source_id", delegation_id
            )
            if row is None:
                return False
            _add(transaction, row["source_id"], activity_type, entry, at)
            return True

        return await self._writer.run(tell)


def _add(
    transaction: Transaction, workspace_id: str, activity_type: str, entry: Mapping[str, Any], at: float
) -> int:
    row = transaction.one(
        "INSERT INTO activity (workspace_id, activity_type, by_agent, created_at, entry)"
        " VALUES (?, ?, ?, ?, ?) RETURNING seq",
        workspace_id,
        activity_type,
        bool(entry.get("source_id")),
        at,
        json.dumps(dict(entry)),
    )
    assert row is not None
    return int(row["seq"])
