"""Workspaces and tokens in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .... import queueing
from ....errors import UnknownWorkspace
from ..contract import DORMANT, LIVES, REACHABLE, Beat, Cycle, Heard, Role, Status, Token, Workspace
from ..rows import token_of, workspace_of
from .part import DEPTH, LIVE, NOW, Part, among, holds

_WORKSPACES = "SELECT * FROM workspaces AS w JOIN vitals AS v ON v.workspace_id = w.id"

_BEAT = f"""
    WITH lazily AS MATERIALIZED (
        -- The next beat says it again: not worth a wait for the disk.
        SELECT set_config('synchronous_commit', 'off', true)
    ), beat AS (
        SELECT b.* FROM lazily, unnest($2::text[], $3::text[], $4::bigint[], $5::int[], $6::text[],
            $7::text[], $8::boolean[], $10::text[])
        AS b (workspace_id, boot_id, active_tasks, max_concurrent, status, report, whole, bearer)
    ), counted AS (
        SELECT beat.*, w.status AS was, w.secret,
            coalesce(beat.status, CASE w.status WHEN 'degraded' THEN w.status ELSE 'online' END) AS next
        FROM beat
        JOIN workspaces AS w ON w.id = beat.workspace_id AND w.boot_id IS NOT DISTINCT FROM beat.boot_id
            AND w.status NOT IN {among(DORMANT)} AND (beat.bearer IS NULL OR EXISTS (
                SELECT FROM tokens AS t WHERE t.digest = beat.bearer AND t.role = 'workspace'
                AND t.workspace_id = w.id
            ))
        JOIN vitals AS v ON v.workspace_id = beat.workspace_id
        ORDER BY v.workspace_id FOR NO KEY UPDATE OF v
    ), turned AS (
        UPDATE workspaces AS w SET status = counted.next FROM counted
        WHERE w.id = counted.workspace_id AND counted.was <> counted.next
            AND w.status NOT IN {among(DORMANT)}
    )
    UPDATE vitals AS v SET beat_at = {NOW}, active_tasks = counted.active_tasks,
        max_concurrent = coalesce(counted.max_concurrent, v.max_concurrent),
        report = CASE WHEN counted.whole THEN counted.report
            ELSE (v.report::jsonb || counted.report::jsonb)::text END,
        hold_until = CASE WHEN counted.active_tasks
            < least({queueing.NO_ROOM}, coalesce(counted.max_concurrent, v.max_concurrent))
            THEN 0 ELSE v.hold_until END
    FROM counted WHERE v.workspace_id = counted.workspace_id
    RETURNING v.workspace_id, v.max_concurrent, counted.secret,
        {DEPTH.format("v.workspace_id", "$9::int")} AS waiting
"""

_REPORTED: dict[bool | None, str | None] = {True: "degraded", False: "online", None: None}


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
        made = await self._one(
            f"""
            WITH made AS (
                INSERT INTO workspaces AS w (id, status, created_at, provisioner, spec, secret)
                VALUES ($2, 'provisioning', {NOW}, $4, $5, $6)
                ON CONFLICT (id) DO UPDATE SET status = 'provisioning', url = NULL, boot_id = NULL,
                    restarting = false, card = NULL, created_at = excluded.created_at,
                    provisioner = excluded.provisioner, spec = excluded.spec, secret = excluded.secret
                    WHERE w.status = 'removed'
                RETURNING id
            ), former AS (  -- what was sent to the former one is not what is sent to this one
                UPDATE a2a_queue AS q SET turn_key = turn_key || ' of ' || q.id FROM made
                WHERE workspace_id = made.id AND ended_at IS NOT NULL
            ), over AS (  -- nor what was asked of it
                UPDATE cycles SET step = 'failed', ended_at = {NOW}, notes = $7
                WHERE workspace_id IN (SELECT id FROM made) AND ended_at IS NULL
            )
            INSERT INTO vitals (workspace_id, max_concurrent) SELECT id, $3 FROM made
            ON CONFLICT (workspace_id) DO UPDATE SET beat_at = NULL, active_tasks = 0,
                max_concurrent = excluded.max_concurrent, hold_until = 0, report = '{{}}'
            RETURNING workspace_id
            """,
            now,
            workspace_id,
            max_concurrent,
            provisioner,
            json.dumps(spec or {}),
            secret,
            json.dumps({"because": "the workspace was made anew"}),
        )
        return made is not None

    async def workspace(self, workspace_id: str) -> Workspace | None:
        row = await self._one(f"{_WORKSPACES} WHERE w.id = $1", workspace_id)
        return None if row is None else workspace_of(row)

    async def workspaces(self, *, after: str = "", most: int = 500) -> list[Workspace]:
        found = f"{_WORKSPACES} WHERE status <> 'removed' AND w.id > $1 ORDER BY w.id LIMIT $2"
        return [workspace_of(row) for row in await self._all(found, after, most)]

    async def register(
        self,
        workspace_id: str,
        *,
        url: str | None,
        boot_id: str | None,
        card: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> bool:
        async def register(connection: Any) -> bool:
            async with connection.transaction():
                row = await connection.fetchrow(
                    "SELECT status, boot_id FROM workspaces WHERE id = $1 FOR NO KEY UPDATE", workspace_id
                )
                if row is None or row["status"] == Status.REMOVED:
                    raise UnknownWorkspace(f"there is no workspace {workspace_id}")
                if row["status"] in DORMANT:
                    return False
                new = row["boot_id"] != boot_id
                if new and boot_id is not None:
                    first = await connection.fetchval(
                        f"INSERT INTO boots VALUES ($2, $3, {NOW}) ON CONFLICT DO NOTHING RETURNING true",
                        now,
                        workspace_id,
                        boot_id,
                    )
                    if not first:
                        return False
                    await connection.execute(
                        "DELETE FROM boots WHERE workspace_id = $1 AND boot_id <> $2 AND seen_at <"
                        " (SELECT seen_at FROM boots WHERE workspace_id = $1 ORDER BY seen_at DESC"
                        " OFFSET $3 LIMIT 1)",
                        workspace_id,
                        boot_id,
                        LIVES - 1,
                    )
                await connection.execute(
                    "UPDATE workspaces SET status = 'online', url = $2, boot_id = $3,"
                    " card = coalesce($4, card) WHERE id = $1",
                    workspace_id,
                    url,
                    boot_id,
                    None if card is None else json.dumps(card),
                )
                if new:
                    await connection.execute(
                        "UPDATE a2a_queue SET state = 'queued', due_at = NULL"
                        " WHERE workspace_id = $1 AND state = 'delayed' AND taken",
                        workspace_id,
                    )
                    await connection.execute(
                        f"UPDATE vitals SET active_tasks = 0, hold_until = 0, beat_at = {NOW}"
                        " WHERE workspace_id = $2",
                        now,
                        workspace_id,
                    )
                return True

        registered = await self._run(register)
        if registered:
            self._tell(due=[workspace_id])
        return registered

    async def set_card(self, workspace_id: str, card: Mapping[str, Any]) -> bool:
        kept = await self._one(
            "UPDATE workspaces SET card = $2 WHERE id = $1 AND status <> 'removed' RETURNING true",
            workspace_id,
            json.dumps(card),
        )
        return kept is not None

    async def change_workspace(
        self,
        workspace_id: str,
        *,
        max_concurrent: int | None = None,
        provisioner: str | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> bool:
        changed = await self._one(
            "WITH changed AS (UPDATE workspaces SET spec = coalesce($2::text, spec),"
            " provisioner = coalesce($4::text, provisioner)"
            " WHERE id = $1 AND status <> 'removed' RETURNING id)"
            " UPDATE vitals SET max_concurrent = coalesce($3::int, max_concurrent)"
            " FROM changed WHERE workspace_id = changed.id RETURNING true",
            workspace_id,
            None if spec is None else json.dumps(spec),
            max_concurrent,
            provisioner,
        )
        self._tell(due=[workspace_id])
        return changed is not None

    async def set_status(
        self, workspace_id: str, status: Status, *, were: Collection[Status], of: Cycle | None = None
    ) -> bool:
        async def change(connection: Any) -> list[int] | None:
            async with connection.transaction():
                if of is not None and not await holds(connection, of):
                    return None
                changed = await connection.fetchval(
                    "UPDATE workspaces SET status = $2 WHERE id = $1 AND status = ANY ($3::text[])"
                    " RETURNING true",
                    workspace_id,
                    str(status),
                    [str(state) for state in were],
                )
                if not changed:
                    return None
                if status is not Status.REMOVED:
                    return []
                await connection.execute("DELETE FROM tokens WHERE workspace_id = $1", workspace_id)
                await connection.execute("DELETE FROM boots WHERE workspace_id = $1", workspace_id)
                dropped = await connection.fetch(
                    f"UPDATE a2a_queue SET state = 'dropped', ended_at = {NOW}, due_at = NULL,"
                    " last_error = 'the workspace was removed'"
                    f" WHERE workspace_id = $2 AND state IN {LIVE} RETURNING id",
                    None,
                    workspace_id,
                )
                await connection.execute(
                    f"UPDATE cycles SET step = 'failed', ended_at = {NOW}, notes = $3"
                    " WHERE workspace_id = $2 AND ended_at IS NULL AND began_at IS NULL",
                    None,
                    workspace_id,
                    json.dumps({"because": "the workspace was removed"}),
                )
                return [row["id"] for row in dropped]

        dropped = await self._run(change)
        if dropped is None:
            return False
        self._tell(
            due=[workspace_id] if status in REACHABLE else [],
            ended=dropped,
            cycle=[workspace_id] if status is Status.REMOVED else [],
        )
        return True

    async def set_restarting(self, workspace_id: str, restarting: bool, *, of: Cycle | None = None) -> bool:
        async def change(connection: Any) -> bool:
            async with connection.transaction():
                if of is not None and not await holds(connection, of):
                    return False
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(1463898960, hashtext($1))", workspace_id
                )
                return bool(
                    await connection.fetchval(
                        "UPDATE workspaces SET restarting = $2 WHERE id = $1 AND restarting <> $2"
                        " RETURNING true",
                        workspace_id,
                        restarting,
                    )
                )

        changed = await self._run(change)
        if changed and not restarting:
            self._tell(due=[workspace_id])
        return changed

    async def beat(self, beats: Sequence[Beat], *, now: float | None = None) -> dict[str, Heard]:
        last = list({beat.workspace_id: beat for beat in beats}.values())

        rows = await self._all(
            _BEAT,
            now,
            [beat.workspace_id for beat in last],
            [beat.boot_id for beat in last],
            [beat.active_tasks for beat in last],
            [beat.max_concurrent for beat in last],
            [_REPORTED[beat.degraded] for beat in last],
            [beat.report for beat in last],
            [beat.whole for beat in last],
            self._rules.depth_cap,
            [beat.bearer for beat in last],
        )
        return {
            row["workspace_id"]: Heard(
                min(row["waiting"], self._rules.depth_cap), row["max_concurrent"], row["secret"]
            )
            for row in rows
        }

    async def fell_silent(self, seconds: float, *, now: float | None = None) -> list[str]:
        rows = await self._all(
            f"""
            WITH silent AS (
                SELECT w.id FROM workspaces AS w JOIN vitals AS v ON v.workspace_id = w.id
                WHERE v.beat_at <= {NOW} - $2::float8 AND w.status IN {among(REACHABLE)} AND NOT w.restarting
                FOR NO KEY UPDATE SKIP LOCKED  -- one that beats just now is not silent
            )
            UPDATE workspaces AS w SET status = 'offline' FROM silent WHERE w.id = silent.id RETURNING w.id
            """,
            now,
            seconds,
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
        await self._all(
            f"INSERT INTO tokens VALUES ($2, $3, $4, $5, {NOW}) ON CONFLICT DO NOTHING",
            now,
            digest,
            str(role),
            workspace_id,
            label,
        )

    async def tokens(self, digests: Collection[str]) -> dict[str, Token]:
        rows = await self._all("SELECT * FROM tokens WHERE digest = ANY ($1::text[])", list(digests))
        return {row["digest"]: token_of(row) for row in rows}

    async def tokens_of(self, workspace_id: str | None) -> list[Token]:
        # "IS NOT DISTINCT FROM" would use no index.
        whose, values = ("IS NULL", []) if workspace_id is None else ("= $1", [workspace_id])
        rows = await self._all(
            f"SELECT * FROM tokens WHERE workspace_id {whose} ORDER BY created_at, digest", *values
        )
        return [token_of(row) for row in rows]

    async def revoke_token(self, digest: str) -> bool:
        return await self._one("DELETE FROM tokens WHERE digest = $1 RETURNING true", digest) is not None
