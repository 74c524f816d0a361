"""Restarts in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import asyncpg

from ....errors import UnknownWorkspace
from ..contract import OVER, Aim, Cycle, Step
from ..rows import cycle_of
from .part import NOW, Part

_ASK = f"""
    INSERT INTO cycles AS c (workspace_id, aim, reason, asked_at)
    SELECT w.id, $3, $4, {NOW} FROM (
        SELECT id FROM workspaces WHERE id = $2 AND status <> 'removed' FOR SHARE
    ) AS w
    ON CONFLICT (workspace_id) WHERE ended_at IS NULL AND began_at IS NULL DO UPDATE SET
        requests = c.requests + 1,
        aim = CASE WHEN c.aim = ANY ($5::text[]) THEN excluded.aim ELSE c.aim END,
        reason = CASE WHEN c.aim = ANY ($5::text[]) THEN excluded.reason ELSE c.reason END
    RETURNING *
"""

_CLAIM = f"""
    UPDATE cycles SET attempt = attempt + 1, owner = $2, lease_until = {NOW} + $3::float8,
        began_at = coalesce(began_at, {NOW})
    WHERE id = (
        SELECT id FROM cycles AS c WHERE ended_at IS NULL AND CASE WHEN began_at IS NOT NULL
            THEN lease_until <= {NOW}
            ELSE NOT EXISTS (
                SELECT FROM cycles AS running WHERE running.workspace_id = c.workspace_id
                AND running.ended_at IS NULL AND running.began_at IS NOT NULL
            ) END
        ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
    ) RETURNING *
"""

_ADVANCE = f"""
    UPDATE cycles SET step = $3, boot_before = coalesce($4, boot_before), notes = $5,
        lease_until = {NOW} + $6::float8, ended_at = CASE WHEN $7::boolean THEN {NOW} END
    WHERE id = $2 RETURNING *
"""


class Cycles(Part):
    """The verbs of cycles."""

    _claimed = 0

    async def ask_cycle(
        self, workspace_id: str, aim: Aim, reason: str, *, now: float | None = None
    ) -> tuple[Cycle, bool]:
        weaker = [str(other) for other in Aim if aim.outranks(other)]
        row = await self._one(_ASK, now, workspace_id, str(aim), reason, weaker)
        if row is None:
            raise UnknownWorkspace(f"there is no workspace {workspace_id}")
        self._tell(cycle=[workspace_id])
        return cycle_of(row), row["requests"] == 1

    async def claim_cycle(self, owner: str, *, now: float | None = None) -> Cycle | None:
        self._claimed += 1
        # Its own mark, so that a cycle that was taken by a claim whose answer was lost can be found.
        owner = f"{owner}/{self._claimed}"
        tried = False

        async def claim(connection: Any) -> asyncpg.Record | None:
            nonlocal tried
            row: asyncpg.Record | None = None
            if tried:
                row = await connection.fetchrow(
                    "SELECT * FROM cycles WHERE ended_at IS NULL AND owner = $1", owner
                )
            tried = True
            if row is None:
                row = await connection.fetchrow(_CLAIM, now, owner, self._rules.lease)
            return row

        row = await self._run(claim)
        return None if row is None else cycle_of(row)

    async def advance_cycle(
        self,
        cycle: Cycle,
        step: Step,
        *,
        boot_before: str | None = None,
        notes: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> Cycle | None:
        tried = False

        async def advance(connection: Any) -> asyncpg.Record | None:
            nonlocal tried
            again, tried = tried, True
            async with connection.transaction():
                held: asyncpg.Record | None = await connection.fetchrow(
                    "SELECT * FROM cycles WHERE id = $1 AND attempt = $2 AND owner = $3 FOR UPDATE",
                    cycle.id,
                    cycle.attempt,
                    cycle.owner,
                )
                if held is None:
                    return None
                if held["ended_at"] is not None:  # by this very call, or before it
                    return held if again and held["step"] == step else None
                row: asyncpg.Record | None = await connection.fetchrow(
                    _ADVANCE,
                    now,
                    cycle.id,
                    str(step),
                    boot_before,
                    json.dumps(json.loads(held["notes"]) | dict(notes or {})),
                    self._rules.lease,
                    step in OVER,
                )
                return row

        row = await self._run(advance)
        if row is None:
            return None
        if step in OVER:
            self._tell(cycle=[cycle.workspace_id])
        return cycle_of(row)

    async def renew_cycle(self, cycle: Cycle, *, now: float | None = None) -> bool:
        row = await self._one(
            f"UPDATE cycles SET lease_until = {NOW} + $2::float8"
            " WHERE id = $3 AND attempt = $4 AND owner = $5 AND ended_at IS NULL RETURNING true",
            now,
            self._rules.lease,
            cycle.id,
            cycle.attempt,
            cycle.owner,
        )
        return row is not None

    async def release_cycle(self, cycle: Cycle) -> bool:
        row = await self._one(
            "UPDATE cycles SET lease_until = 0 WHERE id = $1 AND attempt = $2 AND owner = $3"
            " AND ended_at IS NULL RETURNING true",
            cycle.id,
            cycle.attempt,
            cycle.owner,
        )
        self._tell(cycle=[cycle.workspace_id])
        return row is not None

    async def cycle(self, cycle_id: int) -> Cycle | None:
        row = await self._one("SELECT * FROM cycles WHERE id = $1", cycle_id)
        return None if row is None else cycle_of(row)

    async def cycles(self, workspace_id: str, *, most: int = 50) -> list[Cycle]:
        rows = await self._all(
            "SELECT * FROM cycles WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2", workspace_id, most
        )
        return [cycle_of(row) for row in rows]
