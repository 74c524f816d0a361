"""The queue in PostgreSQL: who holds what comes out of it, and what becomes of it.

Settlements that come while one is under way travel together, in the next statement. Each is safe to
repeat, so one whose connection was cut is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import anyio
import asyncpg

from .... import queueing
from ....queueing import DROPPABLE, ENDED, REPLAYABLE, WAITING, State
from ..contract import REACHABLE, Answer, Counts, Item, Lease, Settlement, Status, Stranded
from ..rows import LEASE, item_of, lease_of
from .enqueue import REQUEUE
from .gathered import Gathered
from .part import DEPTH, LIVE, NOW, Part, among

_HELD = "(SELECT 'leased' OFFSET 0)"
"""As a constant it would have the planner read all that is leased, rather than look each item up."""

_LEFT = " UNION ALL ".join(
    f"(SELECT q.id FROM a2a_queue AS q WHERE q.workspace_id = w.id AND {where} LIMIT $2)"
    for where in (
        "q.state = 'queued' AND NOT q.taken",
        "q.state = 'queued' AND q.taken",
        "q.state = 'delayed'",
        "q.state = 'leased'",
    )
)

_DROP_LEFT = f"""
    UPDATE a2a_queue SET state = 'dropped', due_at = NULL, ended_at = {NOW},
        last_error = 'the workspace was removed'
    WHERE state IN {LIVE} AND id IN (
        SELECT live.id FROM workspaces AS w CROSS JOIN LATERAL ({_LEFT}) AS live
        WHERE w.status = 'removed' LIMIT $2
    ) RETURNING id
"""
"""What was queued in the very moment in which its workspace was removed, and so was not seen."""

_SETTLE = f"""
    WITH said AS (
        SELECT s.*, coalesce(now, extract(epoch FROM statement_timestamp())::float8) AS at
        FROM unnest($1::float8[], $2::bigint[], $3::int[], $4::text[], $5::text[], $6::boolean[],
            $7::boolean[], $8::float8[], $9::text[], $10::int[], $11::bytea[]) WITH ORDINALITY
        AS s (now, id, attempt, owner, state, strike, taken, wait, because, answer_status, answer, number)
    ), settled AS (
        UPDATE a2a_queue AS q SET state = said.state, strikes = q.strikes + said.strike::int, lapses = 0,
            taken = q.taken OR said.taken,
            expires_at = CASE WHEN said.taken THEN NULL ELSE q.expires_at END,
            due_at = CASE WHEN said.state = 'delayed' THEN said.at + said.wait END,
            ended_at = CASE WHEN said.state NOT IN {among(WAITING)} THEN said.at END,
            last_error = said.because,
            body = CASE WHEN said.state = 'completed' THEN NULL ELSE q.body END,
            answer_status = said.answer_status, answer = said.answer
        FROM said WHERE q.id = said.id AND q.state = {_HELD} AND q.attempt = said.attempt
            AND q.lease_owner = said.owner
        RETURNING said.number, q.workspace_id, q.state, said.at + said.wait AS until
    ), held AS (
        UPDATE vitals AS v SET hold_until = greatest(v.hold_until, busy.until)
        FROM (SELECT workspace_id, max(until) AS until FROM settled WHERE state = 'queued'
            GROUP BY workspace_id) AS busy
        WHERE v.workspace_id = busy.workspace_id
    )
    SELECT number FROM settled
"""

_DUE = f"""
    WITH RECURSIVE ready (id) AS (
        (SELECT workspace_id FROM a2a_queue WHERE state = 'queued' AND NOT taken
        ORDER BY workspace_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT workspace_id FROM a2a_queue
            WHERE state = 'queued' AND NOT taken AND workspace_id > ready.id
            ORDER BY workspace_id LIMIT 1
        ) FROM ready WHERE ready.id IS NOT NULL
    ), due (id, fresh) AS (
        SELECT id, true FROM ready WHERE id IS NOT NULL
        UNION ALL
        SELECT workspace_id, false FROM a2a_queue WHERE state = 'queued' AND taken
        UNION ALL
        SELECT workspace_id, false FROM a2a_queue WHERE state = 'leased' AND lease_until <= {NOW}
    )
    SELECT DISTINCT due.id FROM due
    CROSS JOIN LATERAL (
        -- OFFSET 0: looked up for each, whatever the planner thinks of tables it has not analysed yet.
        SELECT FROM workspaces AS w WHERE w.id = due.id AND w.status IN {among(REACHABLE)}
            AND NOT w.restarting OFFSET 0
    ) AS reachable
    CROSS JOIN LATERAL (
        SELECT FROM vitals AS v WHERE v.workspace_id = due.id AND v.hold_until <= {NOW}
            AND v.active_tasks < {queueing.NO_ROOM}
            AND (NOT due.fresh OR v.active_tasks < v.max_concurrent) OFFSET 0
    ) AS has_room
    ORDER BY due.id
"""

_STRANDED = f"""
    SELECT w.id, w.status, found.waiting, found.oldest FROM workspaces AS w
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting, min(enqueued_at) AS oldest FROM (
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'queued'
                AND NOT q.taken ORDER BY q.order_key LIMIT $2)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'queued'
                AND q.taken ORDER BY q.order_key LIMIT $2)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'delayed'
                LIMIT $2)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'leased'
                AND q.lease_until <= {NOW} LIMIT $2)
        ) AS one
    ) AS found
    WHERE w.status NOT IN {among(REACHABLE)} AND found.waiting > 0 ORDER BY w.id
"""

_ITEM = (
    "id, workspace_id, turn_key, context_id, caller, method, priority, state, attempt, strikes, lapses,"
    " taken, enqueued_at, leased_at, due_at, expires_at, ended_at, last_error"
)

_COUNTS = """
    SELECT 'w', status, count(*) FROM workspaces WHERE status <> 'removed' GROUP BY status
    UNION ALL SELECT 'i', 'queued', count(*) FROM a2a_queue WHERE state = 'queued' AND NOT taken
    UNION ALL SELECT 'i', 'queued', count(*) FROM a2a_queue WHERE state = 'queued' AND taken
    UNION ALL SELECT 'i', 'delayed', count(*) FROM a2a_queue WHERE state = 'delayed'
    UNION ALL SELECT 'i', 'leased', count(*) FROM a2a_queue WHERE state = 'leased'
    UNION ALL SELECT 'i', 'failed', count(*) FROM a2a_queue WHERE state = 'failed'
"""
"""Each count along the index that holds those items and no others."""

_Settlements = tuple[Sequence[Settlement], float | None]
"""What one caller settles, with the time it was told."""


class Queue(Part):
    """The verbs of the queue."""

    def _open_queue(self) -> None:
        self._claims = 0
        self._settle: Gathered[_Settlements, list[bool]] = Gathered(self._send_settlements, self._tasks)

    async def claim(
        self, workspace_id: str, owner: str, *, most: int = 64, now: float | None = None
    ) -> list[Lease]:
        self._claims += 1
        # Its own mark, so that what a claim leased whose answer was lost on the way can be found.
        owner = f"{owner}/{self._claims}"
        tried = False

        async def claim(connection: Any) -> list[asyncpg.Record]:
            nonlocal tried
            if tried:
                await connection.execute(
                    "UPDATE a2a_queue SET state = 'queued', attempt = attempt + 1"
                    " WHERE workspace_id = $1 AND state = 'leased' AND lease_owner = $2",
                    workspace_id,
                    owner,
                )
            tried = True
            rows: list[asyncpg.Record] = await connection.fetch(
                f"SELECT {LEASE}, body FROM claim($2, $3, {NOW}, $4, $5, $6) ORDER BY order_key, id",
                now,
                workspace_id,
                owner,
                self._rules.lease,
                most,
                queueing.NO_ROOM,
            )
            return rows

        with anyio.CancelScope(shield=True):
            rows = await self._run(claim)
        return [lease_of(row) for row in rows]

    async def renew(self, leases: Sequence[Lease], *, now: float | None = None) -> set[int]:
        async def renew(connection: Any) -> list[asyncpg.Record]:
            async with connection.transaction():
                await connection.execute("SET LOCAL synchronous_commit = off")
                rows: list[asyncpg.Record] = await connection.fetch(
                    f"""
                    UPDATE a2a_queue AS q SET lease_until = {NOW} + $2::float8
                    FROM unnest($3::bigint[], $4::int[], $5::text[]) AS held (id, attempt, owner)
                    WHERE q.id = held.id AND q.state = {_HELD} AND q.attempt = held.attempt
                        AND q.lease_owner = held.owner
                    RETURNING q.id
                    """,
                    now,
                    self._rules.lease,
                    [lease.id for lease in leases],
                    [lease.attempt for lease in leases],
                    [lease.owner for lease in leases],
                )
                return rows

        return {row["id"] for row in await self._run(renew)}

    async def settle(self, settlements: Sequence[Settlement], *, now: float | None = None) -> list[bool]:
        for settlement in settlements:
            queueing.check(str(settlement.lease.id), State.LEASED, settlement.verdict.state)
        return await self._settle((settlements, now))

    async def _send_settlements(self, sent: list[_Settlements]) -> list[list[bool]]:
        tried = False
        moments = [now for settlements, now in sent for _ in settlements]
        leases = [settlement.lease for settlements, _ in sent for settlement in settlements]
        verdicts = [settlement.verdict for settlements, _ in sent for settlement in settlements]
        answers = [
            settlement.answer if settlement.verdict.state in ENDED else None
            for settlements, _ in sent
            for settlement in settlements
        ]

        async def settle(connection: Any) -> list[bool]:
            nonlocal tried
            before: set[tuple[int, int, str]] = set()
            if tried:  # what was written although its answer was lost on the way
                rows = await connection.fetch(
                    "SELECT id, attempt, lease_owner FROM a2a_queue WHERE id = ANY ($1::bigint[])"
                    " AND state <> 'leased'",
                    [lease.id for lease in leases],
                )
                before = {(row["id"], row["attempt"], row["lease_owner"]) for row in rows}
            tried = True
            rows = await connection.fetch(
                _SETTLE,
                moments,
                [lease.id for lease in leases],
                [lease.attempt for lease in leases],
                [lease.owner for lease in leases],
                [verdict.state for verdict in verdicts],
                [verdict.strike for verdict in verdicts],
                [verdict.taken for verdict in verdicts],
                [verdict.wait for verdict in verdicts],
                [None if v.state is State.COMPLETED else v.because for v in verdicts],
                [None if answer is None else answer.status for answer in answers],
                [None if answer is None else answer.body for answer in answers],
            )
            settled = {row["number"] for row in rows}
            return [
                number in settled or (lease.id, lease.attempt, lease.owner) in before
                for number, lease in enumerate(leases, 1)
            ]

        done = await self._run(settle)
        self._tell(
            ended=[
                lease.id
                for lease, verdict, was in zip(leases, verdicts, done, strict=True)
                if was and verdict.state in ENDED
            ]
        )
        each = iter(done)
        return [list(islice(each, len(settlements))) for settlements, _ in sent]

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            WITH due AS (
                SELECT id FROM a2a_queue WHERE state = 'delayed' AND due_at <= {NOW}
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ), ahead AS (
                SELECT id FROM a2a_queue WHERE state = 'delayed' AND due_at > {NOW} + $3::float8
                ORDER BY due_at DESC LIMIT $2 FOR UPDATE SKIP LOCKED
            )
            UPDATE a2a_queue SET state = 'queued', due_at = NULL
            WHERE id IN (SELECT id FROM due UNION ALL SELECT id FROM ahead) RETURNING workspace_id
            """,
            now,
            most,
            self._rules.longest_wait,
        )
        self._tell(due={row["workspace_id"] for row in rows})
        return len(rows)

    async def expire(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            UPDATE a2a_queue SET state = 'expired', due_at = NULL, ended_at = {NOW},
                last_error = 'nobody wanted it any longer: expires_in_seconds passed while it waited'
            WHERE id IN (
                SELECT id FROM a2a_queue
                WHERE expires_at IS NOT NULL AND expires_at <= {NOW} AND state IN {among(WAITING)}
                ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ) RETURNING id, workspace_id
            """,
            now,
            most,
        )
        self._tell(due={row["workspace_id"] for row in rows}, ended=[row["id"] for row in rows])
        return len(rows)

    async def due(self, *, now: float | None = None) -> list[str]:
        return [row["id"] for row in await self._all(_DUE, now)]

    async def stranded(self, *, now: float | None = None) -> list[Stranded]:
        return [
            Stranded(
                workspace_id=row["id"],
                status=Status(row["status"]),
                waiting=min(row["waiting"], self._rules.depth_cap),
                oldest=row["oldest"],
            )
            for row in await self._all(_STRANDED, now, self._rules.depth_cap)
        ]

    async def depth(self, workspace_id: str) -> int:
        row = await self._one(f"SELECT {DEPTH.format('$1', '$2::int')}", workspace_id, self._rules.depth_cap)
        assert row is not None
        return min(int(row[0]), self._rules.depth_cap)

    async def counts(self) -> Counts:
        workspaces: dict[Status, int] = {}
        items: dict[State, int] = {}
        for what, name, number in await self._all(_COUNTS):
            if what == "w":
                workspaces[Status(name)] = number
            else:
                items[State(name)] = items.get(State(name), 0) + number
        return Counts(workspaces, items)

    async def item(self, item_id: int) -> Item | None:
        row = await self._one(f"SELECT {_ITEM}, answer_status, answer FROM a2a_queue WHERE id = $1", item_id)
        if row is None:
            return None
        status = row["answer_status"]
        return item_of(row, None if status is None else Answer(status=status, body=row["answer"]))

    async def ended(self, item_ids: Collection[int]) -> set[int]:
        rows = await self._all(
            "SELECT asked.id FROM unnest($1::bigint[]) AS asked (id) LEFT JOIN a2a_queue AS q USING (id)"
            " WHERE q.state IS NULL OR q.state = ANY ($2::text[])",
            list(item_ids),
            [str(state) for state in ENDED],
        )
        return {row["id"] for row in rows}

    async def items(
        self, workspace_id: str, *, state: State | None = None, after: int = 0, most: int = 100
    ) -> list[Item]:
        rows = await self._all(
            f"SELECT {_ITEM} FROM a2a_queue WHERE workspace_id = $1 AND id > $2"
            " AND ($3::text IS NULL OR state = $3) ORDER BY id LIMIT $4",
            workspace_id,
            after,
            None if state is None else str(state),
            most,
        )
        return [item_of(row, None) for row in rows]

    async def dead_letters(self, *, after: int = 0, most: int = 100) -> list[Item]:
        rows = await self._all(
            f"SELECT {_ITEM} FROM a2a_queue WHERE state = 'failed' AND id > $1 ORDER BY id LIMIT $2",
            after,
            most,
        )
        return [item_of(row, None) for row in rows]

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        row = await self._one(
            REQUEUE, now, self._rules.priority_weight, None, item_id, [str(state) for state in REPLAYABLE]
        )
        if row is None:
            return False
        self._tell(due=[row["workspace_id"]])
        return True

    async def drop(self, item_id: int, because: str, *, now: float | None = None) -> bool:
        row = await self._one(
            f"UPDATE a2a_queue SET state = 'dropped', due_at = NULL, ended_at = {NOW}, last_error = $2"
            f" WHERE id = $3 AND state IN {among(DROPPABLE)} RETURNING workspace_id",
            now,
            because,
            item_id,
        )
        if row is None:
            return False
        self._tell(due=[row["workspace_id"]], ended=[item_id])
        return True

    async def forget(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            WITH gone AS (
                DELETE FROM a2a_queue WHERE id IN (
                    SELECT id FROM a2a_queue WHERE ended_at IS NOT NULL AND ended_at <= {NOW} - $2::float8
                    ORDER BY ended_at LIMIT $3 FOR UPDATE SKIP LOCKED
                ) RETURNING id
            ), emptied AS (
                DELETE FROM a2a_events WHERE item IN (SELECT id FROM gone)
            )
            SELECT id FROM gone
            """,
            now,
            self._rules.retention,
            most,
        )
        for table, key, when, old in (
            ("cycles", "id", "ended_at", "ended_at IS NOT NULL"),
            ("activity", "seq", "created_at", "true"),
            ("delegations", "id", "updated_at", _ITEM_GONE),
        ):
            await self._all(
                f"""
                DELETE FROM {table} WHERE {key} IN (
                    SELECT {key} FROM {table} WHERE {when} <= {NOW} - $2::float8 AND {old}
                    ORDER BY {when} LIMIT $3 FOR UPDATE SKIP LOCKED
                )
                """,
                now,
                self._rules.retention,
                most,
            )
        left = await self._all(_DROP_LEFT, now, most)
        self._tell(ended=[row["id"] for row in left])
        return len(rows)


_ITEM_GONE = "NOT EXISTS (SELECT FROM a2a_queue WHERE a2a_queue.id = item_id)"
