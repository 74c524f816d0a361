"""Workspaces and tokens in SQLite."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .... import queueing
from ....errors import UnknownWorkspace
from ..contract import DORMANT, LIVES, REACHABLE, Beat, Cycle, Heard, Role, Status, Token, Workspace
from ..rows import token_of, workspace_of
from .part import LIVE, Part, among, holds, moment
from .writer import Transaction

_WORKSPACES = "SELECT * FROM workspaces JOIN vitals ON vitals.workspace_id = workspaces.id"


_HEARD = f"""
    SELECT w.id, w.status, w.secret, v.waiting, v.max_concurrent
    FROM (VALUES {{}}) AS b
    JOIN workspaces AS w ON w.id = b.column1 AND w.boot_id IS b.column2
        AND w.status NOT IN {among(DORMANT)}
    JOIN vitals AS v ON v.workspace_id = w.id
    WHERE b.column3 IS NULL OR EXISTS (
        SELECT 1 FROM tokens AS t
        WHERE t.digest = b.column3 AND t.role = 'workspace' AND t.workspace_id = w.id
    )
"""

_BEAT = """
    UPDATE vitals SET beat_at = b.column2, active_tasks = b.column3, max_concurrent = b.column4,
        report = b.column5, hold_until = iif(b.column6, 0, hold_until)
    FROM (VALUES {}) AS b WHERE workspace_id = b.column1
"""
"""Of many at once: each statement costs the threads a change of turns, and there are thousands a second."""

_AT_ONCE = 500
"""Beats in one statement, which takes 32,766 values."""


class Workspaces(Part):
    """The verbs of workspaces and tokens."""

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
        at = moment(now)

        def create(transaction: Transaction) -> bool:
            made = transaction.change(
                "INSERT INTO workspaces (id, status, created_at, provisioner, spec, secret)"
                " VALUES (?, 'provisioning', ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET status = 'provisioning', url = NULL, boot_id = NULL,"
                " restarting = 0, card = NULL, created_at = excluded.created_at,"
                " provisioner = excluded.provisioner, spec = excluded.spec, secret = excluded.secret"
                " WHERE status = 'removed'",
                workspace_id,
                at,
                provisioner,
                json.dumps(spec or {}),
                secret,
            )
            if made:
                # What was sent to the former one is not what is sent to this one.
                transaction.change(
                    "UPDATE a2a_queue SET turn_key = turn_key || ' of ' || id"
                    " WHERE workspace_id = ? AND ended_at IS NOT NULL",
                    workspace_id,
                )
                transaction.change(
                    "INSERT INTO vitals (workspace_id, max_concurrent) VALUES (?, ?) ON CONFLICT DO UPDATE"
                    " SET beat_at = NULL, active_tasks = 0, max_concurrent = excluded.max_concurrent,"
                    " hold_until = 0, report = '{}'",
                    workspace_id,
                    max_concurrent,
                )
                transaction.change(
                    "UPDATE cycles SET step = 'failed', ended_at = ?, notes = ?"
                    " WHERE workspace_id = ? AND ended_at IS NULL",
                    at,
                    json.dumps({"because": "the workspace was made anew"}),
                    workspace_id,
                )
            return bool(made)

        return await self._writer.run(create)

    async def workspace(self, workspace_id: str) -> Workspace | None:
        row = await self._writer.run(lambda t: t.one(f"{_WORKSPACES} WHERE id = ?", workspace_id))
        return None if row is None else workspace_of(row)

    async def workspaces(self, *, after: str = "", most: int = 500) -> list[Workspace]:
        found = f"{_WORKSPACES} WHERE status <> 'removed' AND id > ? ORDER BY id LIMIT ?"
        rows = await self._writer.run(lambda t: t.all(found, after, most))
        return [workspace_of(row) for row in rows]

    async def register(
        self,
        workspace_id: str,
        *,
        url: str | None,
        boot_id: str | None,
        card: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> bool:
        at = moment(now)

        def register(transaction: Transaction) -> bool:
            row = transaction.one("SELECT status, boot_id FROM workspaces WHERE id = ?", workspace_id)
            if row is None or row["status"] == Status.REMOVED:
                raise UnknownWorkspace(f"there is no workspace {workspace_id}")
            if row["status"] in DORMANT:
                return False
            new = row["boot_id"] != boot_id
            if new and boot_id is not None:
                seen = "INSERT INTO boots VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
                if not transaction.change(seen, workspace_id, boot_id, at):
                    return False
                transaction.change(
                    "DELETE FROM boots WHERE workspace_id = ? AND boot_id <> ? AND seen_at < (SELECT seen_at"
                    " FROM boots WHERE workspace_id = ? ORDER BY seen_at DESC LIMIT 1 OFFSET ?)",
                    workspace_id,
                    boot_id,
                    workspace_id,
                    LIVES - 1,
                )
            transaction.change(
                "UPDATE workspaces SET status = 'online', url = ?, boot_id = ?, card = coalesce(?, card)"
                " WHERE id = ?",
                url,
                boot_id,
                None if card is None else json.dumps(card),
                workspace_id,
            )
            if new:
                transaction.change(
                    "UPDATE a2a_queue SET state = 'queued', due_at = NULL"
                    " WHERE workspace_id = ? AND state = 'delayed' AND taken",
                    workspace_id,
                )
                transaction.change(
                    "UPDATE vitals SET active_tasks = 0, hold_until = 0, beat_at = ? WHERE workspace_id = ?",
                    at,
                    workspace_id,
                )
            transaction.then(self.on_due, workspace_id)
            return True

        return await self._writer.run(register)

    async def set_card(self, workspace_id: str, card: Mapping[str, Any]) -> bool:
        kept = json.dumps(card)
        return bool(
            await self._writer.run(
                lambda t: t.change(
                    "UPDATE workspaces SET card = ? WHERE id = ? AND status <> 'removed'", kept, workspace_id
                )
            )
        )

    async def change_workspace(
        self,
        workspace_id: str,
        *,
        max_concurrent: int | None = None,
        provisioner: str | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> bool:
        kept = None if spec is None else json.dumps(spec)

        def change(transaction: Transaction) -> bool:
            transaction.change(
                "UPDATE vitals SET max_concurrent = coalesce(?, max_concurrent) WHERE workspace_id = ?",
                max_concurrent,
                workspace_id,
            )
            transaction.then(self.on_due, workspace_id)
            return bool(
                transaction.change(
                    "UPDATE workspaces SET spec = coalesce(?, spec), provisioner = coalesce(?, provisioner)"
                    " WHERE id = ? AND status <> 'removed'",
                    kept,
                    provisioner,
                    workspace_id,
                )
            )

        return await self._writer.run(change)

    async def set_status(
        self, workspace_id: str, status: Status, *, were: Collection[Status], of: Cycle | None = None
    ) -> bool:
        at = time.time()

        def change(transaction: Transaction) -> bool:
            if of is not None and not holds(transaction, of):
                return False
            if not transaction.change(
                f"UPDATE workspaces SET status = ? WHERE id = ? AND status IN {among(were)}",
                str(status),
                workspace_id,
            ):
                return False
            if status is Status.REMOVED:
                transaction.change("DELETE FROM tokens WHERE workspace_id = ?", workspace_id)
                transaction.change("DELETE FROM boots WHERE workspace_id = ?", workspace_id)
                dropped = transaction.all(
                    "UPDATE a2a_queue SET state = 'dropped', ended_at = ?, last_error = 'the workspace was"
                    f" removed' WHERE workspace_id = ? AND state IN {LIVE} RETURNING id",
                    at,
                    workspace_id,
                )
                transaction.change(
                    "UPDATE cycles SET step = 'failed', ended_at = ?, notes = ?"
                    " WHERE workspace_id = ? AND ended_at IS NULL AND began_at IS NULL",
                    at,
                    json.dumps({"because": "the workspace was removed"}),
                    workspace_id,
                )
                transaction.then(self.on_cycle, workspace_id)
                for row in dropped:
                    transaction.then(self.on_ended, row["id"])
            elif status in REACHABLE:
                transaction.then(self.on_due, workspace_id)
            return True

        return await self._writer.run(change)

    async def set_restarting(self, workspace_id: str, restarting: bool, *, of: Cycle | None = None) -> bool:
        def change(transaction: Transaction) -> bool:
            if of is not None and not holds(transaction, of):
                return False
            changed = transaction.change(
                "UPDATE workspaces SET restarting = ? WHERE id = ? AND restarting = ?",
                restarting,
                workspace_id,
                not restarting,
            )
            if changed and not restarting:
                transaction.then(self.on_due, workspace_id)
            return bool(changed)

        return await self._writer.run(change)

    async def beat(self, beats: Sequence[Beat], *, now: float | None = None) -> dict[str, Heard]:
        at = moment(now)
        last = {beat.workspace_id: beat for beat in beats}

        def take(transaction: Transaction) -> dict[str, Heard]:
            counted: dict[str, Heard] = {}
            everybody = list(last.values())
            for first in range(0, len(everybody), _AT_ONCE):
                counted |= some(transaction, everybody[first : first + _AT_ONCE])
            return counted

        def some(transaction: Transaction, beats: Sequence[Beat]) -> dict[str, Heard]:
            asked = [value for b in beats for value in (b.workspace_id, b.boot_id, b.bearer)]
            heard = transaction.all(_HEARD.format(_rows(len(beats), 3)), *asked)
            counted = {}
            changed: list[object] = []
            for workspace_id, status, secret, waiting, known in heard:
                beat = last[workspace_id]
                degraded = status == Status.DEGRADED if beat.degraded is None else beat.degraded
                turned = Status.DEGRADED if degraded else Status.ONLINE
                if status != turned:
                    transaction.change(
                        "UPDATE workspaces SET status = ? WHERE id = ?", str(turned), workspace_id
                    )
                most = known if beat.max_concurrent is None else beat.max_concurrent
                room = beat.active_tasks < min(queueing.NO_ROOM, most)
                report = beat.report
                if not beat.whole:
                    (before,) = transaction.all(
                        "SELECT report FROM vitals WHERE workspace_id = ?", workspace_id
                    )
                    report = json.dumps({**json.loads(before["report"]), **json.loads(report)})
                changed += (workspace_id, at, beat.active_tasks, most, report, room)
                counted[workspace_id] = Heard(min(waiting, self._rules.depth_cap), most, secret)
            if counted:
                transaction.change(_BEAT.format(_rows(len(counted), 6)), *changed)
            return counted

        return await self._writer.run(take, lasting=False)

    async def fell_silent(self, seconds: float, *, now: float | None = None) -> list[str]:
        before = moment(now) - seconds
        rows = await self._writer.run(
            lambda t: t.all(
                "UPDATE workspaces SET status = 'offline'"
                f" WHERE status IN {among(REACHABLE)} AND NOT restarting"
                " AND id IN (SELECT workspace_id FROM vitals WHERE beat_at <= ?) RETURNING id",
                before,
            )
        )
        return [row["id"] for row in rows]

    async def add_token(
        self,
        digest: str,
        *,
        role: Role,
        workspace_id: str | None = None,
        label: str = "",
        now: float | None = None,
    ) -> None:
        at = moment(now)
        await self._writer.run(
            lambda t: t.change(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                digest,
                str(role),
                workspace_id,
                label,
                at,
            )
        )

    async def tokens(self, digests: Collection[str]) -> dict[str, Token]:
        asked = json.dumps(list(digests))
        rows = await self._writer.run(
            lambda t: t.all("SELECT * FROM tokens WHERE digest IN (SELECT value FROM json_each(?))", asked)
        )
        return {row["digest"]: token_of(row) for row in rows}

    async def tokens_of(self, workspace_id: str | None) -> list[Token]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT * FROM tokens WHERE workspace_id IS ? ORDER BY created_at, digest", workspace_id
            )
        )
        return [token_of(row) for row in rows]

    async def revoke_token(self, digest: str) -> bool:
        return bool(await self._writer.run(lambda t: t.change("DELETE FROM tokens WHERE digest = ?", digest)))


def _rows(many: int, wide: int) -> str:
    """Return the places of so many rows of values."""
    return ", ".join([f"({', '.join('?' * wide)})"] * many)
