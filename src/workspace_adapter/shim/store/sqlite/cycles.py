"""Restarts in SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ....errors import UnknownWorkspace
from ..contract import OVER, Aim, Cycle, Step
from ..rows import cycle_of
from .part import HELD, Part, fence, moment
from .writer import Transaction


class Cycles(Part):
    """The verbs of cycles."""

    async def ask_cycle(
        self, workspace_id: str, aim: Aim, reason: str, *, now: float | None = None
    ) -> tuple[Cycle, bool]:
        at = moment(now)

        def ask(transaction: Transaction) -> tuple[Cycle, bool]:
            if not transaction.all(
                "SELECT id FROM workspaces WHERE id = ? AND status <> 'removed'", workspace_id
            ):
                raise UnknownWorkspace(f"there is no workspace {workspace_id}")
            waiting = transaction.one(
                "SELECT id, aim FROM cycles WHERE workspace_id = ? AND ended_at IS NULL AND began_at IS NULL",
                workspace_id,
            )
            if waiting is None:
                row = transaction.one(
                    "INSERT INTO cycles (workspace_id, aim, reason, asked_at) VALUES (?, ?, ?, ?)"
                    " RETURNING *",
                    workspace_id,
                    str(aim),
                    reason,
                    at,
                )
            else:
                stronger = aim.outranks(Aim(waiting["aim"]))
                row = transaction.one(
                    "UPDATE cycles SET requests = requests + 1, aim = iif(?, ?, aim),"
                    " reason = iif(?, ?, reason) WHERE id = ? RETURNING *",
                    stronger,
                    str(aim),
                    stronger,
                    reason,
                    waiting["id"],
                )
            assert row is not None
            transaction.then(self.on_cycle, workspace_id)
            return cycle_of(row), waiting is None

        return await self._writer.run(ask)

    async def claim_cycle(self, owner: str, *, now: float | None = None) -> Cycle | None:
        at = moment(now)

        def claim(transaction: Transaction) -> Cycle | None:
            row = transaction.one(
                "UPDATE cycles SET attempt = attempt + 1, owner = ?, lease_until = ?,"
                " began_at = coalesce(began_at, ?) WHERE id = (SELECT min(id) FROM cycles AS c"
                " WHERE ended_at IS NULL AND iif(began_at IS NOT NULL, lease_until <= ?, NOT EXISTS ("
                "SELECT 1 FROM cycles AS running WHERE running.workspace_id = c.workspace_id"
                " AND running.ended_at IS NULL AND running.began_at IS NOT NULL))) RETURNING *",
                owner,
                at + self._rules.lease,
                at,
                at,
            )
            return None if row is None else cycle_of(row)

        return await self._writer.run(claim)

    async def advance_cycle(
        self,
        cycle: Cycle,
        step: Step,
        *,
        boot_before: str | None = None,
        notes: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> Cycle | None:
        at = moment(now)

        def advance(transaction: Transaction) -> Cycle | None:
            held = transaction.one(f"SELECT notes FROM cycles WHERE {HELD}", *fence(cycle))
            if held is None:
                return None
            row = transaction.one(
                "UPDATE cycles SET step = ?, boot_before = coalesce(?, boot_before), notes = ?,"
                " lease_until = ?, ended_at = ? WHERE id = ? RETURNING *",
                str(step),
                boot_before,
                json.dumps(json.loads(held["notes"]) | dict(notes or {})),
                at + self._rules.lease,
                at if step in OVER else None,
                cycle.id,
            )
            assert row is not None
            if step in OVER:
                transaction.then(self.on_cycle, cycle.workspace_id)
            return cycle_of(row)

        return await self._writer.run(advance)

    async def renew_cycle(self, cycle: Cycle, *, now: float | None = None) -> bool:
        until = moment(now) + self._rules.lease
        return bool(
            await self._writer.run(
                lambda t: t.change(
                    f"UPDATE cycles SET lease_until = ? WHERE {HELD}",
                    until,
                    *fence(cycle),
                )
            )
        )

    async def release_cycle(self, cycle: Cycle) -> bool:
        def release(transaction: Transaction) -> bool:
            released = transaction.change(f"UPDATE cycles SET lease_until = 0 WHERE {HELD}", *fence(cycle))
            transaction.then(self.on_cycle, cycle.workspace_id)
            return bool(released)

        return await self._writer.run(release)

    async def cycle(self, cycle_id: int) -> Cycle | None:
        row = await self._writer.run(lambda t: t.one("SELECT * FROM cycles WHERE id = ?", cycle_id))
        return None if row is None else cycle_of(row)

    async def cycles(self, workspace_id: str, *, most: int = 50) -> list[Cycle]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT * FROM cycles WHERE workspace_id = ? ORDER BY id DESC LIMIT ?", workspace_id, most
            )
        )
        return [cycle_of(row) for row in rows]
