"""What workspaces report, and what they gave one another to do, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ....errors import UnknownWorkspace
from ..contract import Activity, Delegation
from ..rows import activity_of, delegation_of
from .part import NOW, Part

# The workspace's row is locked before the number is taken: so of one workspace, numbers are committed
# in their order, and none comes late to whoever follows.
_LOG = f"""
    INSERT INTO activity (workspace_id, activity_type, entry, by_agent, created_at)
    SELECT w.id, $3, $4, $5, {NOW} FROM (
        SELECT id FROM workspaces WHERE id = $2 AND status <> 'removed' FOR NO KEY UPDATE
    ) AS w RETURNING seq
"""

_TELL = f"""
    WITH told AS (
        UPDATE delegations SET told = true WHERE id = $2 AND NOT told RETURNING source_id
    )
    INSERT INTO activity (workspace_id, activity_type, entry, by_agent, created_at)
    SELECT w.id, $3, $4, $5, {NOW} FROM (
        SELECT source.id FROM workspaces AS source JOIN told ON told.source_id = source.id
        FOR NO KEY UPDATE OF source
    ) AS w RETURNING seq
"""

_UNTOLD = """
    SELECT d.* FROM delegations AS d LEFT JOIN a2a_queue AS q ON q.id = d.item_id
    WHERE d.source_id = $1 AND NOT d.told
        AND (q.ended_at IS NOT NULL OR d.item_id IS NULL AND d.status IN ('completed', 'failed'))
    ORDER BY coalesce(q.ended_at, d.updated_at), d.id LIMIT $2
"""


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
        row = await self._one(_LOG, now, workspace_id, activity_type, *_told(entry))
        if row is None:
            raise UnknownWorkspace(f"there is no workspace {workspace_id}")
        return int(row["seq"])

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
        where, values = ["workspace_id = $1"], [workspace_id, most]
        asked: tuple[tuple[str, Any], ...] = (
            ("activity_type = ", activity_type),
            ("by_agent = ", by_agent),
            ("created_at >= ", since),
            ("seq > ", after),
            ("created_at < ", before),
        )
        for condition, value in asked:
            if value is not None:
                values.append(value)
                where.append(f"{condition} ${len(values)}")
        order = "DESC" if after is None else "ASC"
        rows = await self._all(
            "SELECT seq, workspace_id, activity_type, created_at, entry FROM activity"
            f" WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT $2",
            *values,
        )
        return [activity_of(row) for row in rows]

    async def acknowledge(self, workspace_id: str, seq: int) -> int:
        row = await self._one(
            "INSERT INTO acknowledged AS a VALUES ($1, $2) ON CONFLICT (workspace_id) DO UPDATE"
            " SET seq = greatest(a.seq, excluded.seq) RETURNING seq",
            workspace_id,
            seq,
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
        made = await self._one(
            "INSERT INTO delegations"
            " (id, source_id, target_id, task, item_id, status, created_at, updated_at)"
            f" VALUES ($2, $3, $4, $5, $6, $7, {NOW}, {NOW}) ON CONFLICT DO NOTHING RETURNING *",
            now,
            delegation_id,
            source_id,
            target_id,
            task,
            item_id,
            status,
        )
        row = made or await self._one("SELECT * FROM delegations WHERE id = $1", delegation_id)
        assert row is not None
        return delegation_of(row), made is not None

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
        row = await self._one(
            f"UPDATE delegations SET status = $4, response_preview = $5, error = $6, updated_at = {NOW}"
            " WHERE id = $2 AND source_id = $3 AND item_id IS NULL RETURNING true",
            now,
            delegation_id,
            source_id,
            status,
            response_preview,
            error,
        )
        return row is not None

    async def delegations(self, source_id: str, *, most: int = 50) -> list[Delegation]:
        rows = await self._all(
            "SELECT * FROM delegations WHERE source_id = $1 ORDER BY created_at DESC, id LIMIT $2",
            source_id,
            most,
        )
        return [delegation_of(row) for row in rows]

    async def untold(self, source_id: str, *, most: int = 50) -> list[Delegation]:
        return [delegation_of(row) for row in await self._all(_UNTOLD, source_id, most)]

    async def tell(
        self, delegation_id: str, activity_type: str, entry: Mapping[str, Any], *, now: float | None = None
    ) -> bool:
        return await self._one(_TELL, now, delegation_id, activity_type, *_told(entry)) is not None


def _told(entry: Mapping[str, Any]) -> tuple[str, bool]:
    """Return an entry as it is kept, with whether an agent is its source."""
    return json.dumps(dict(entry)), bool(entry.get("source_id"))
