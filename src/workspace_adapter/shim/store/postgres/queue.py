"""The queue in PostgreSQL.

Enqueues and settlements that arrive while one is under way travel together, in the next
statement. Each is safe to repeat, so one whose connection was cut is.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import anyio
import asyncpg

from .... import queueing
from ....errors import ContentConflict, QueueFull, UnknownWorkspace
from ....queueing import DROPPABLE, ENDED, REPLAYABLE, REVIVED, WAITING, State
from ..contract import REACHABLE, Answer, Counts, Enqueued, Item, Lease, Message, Settlement, Status, Stranded
from .gathered import Gathered
from .part import DEPTH, NOW, Part, among

_ENQUEUE = f"""
    WITH sent AS (
        SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::int[], $9::text[], $10::float8[], $11::bytea[], $1::float8[]) WITH ORDINALITY
        AS s (workspace_id, turn_key, content_hash, context_id, caller, method, priority, headers,
            expires_in, body, now, number)
    ), open AS (
        SELECT w.id, CASE WHEN w.id = ANY ($14::text[]) THEN {DEPTH.format("w.id", "$12::int")}
            ELSE 0 END AS depth
        FROM workspaces AS w
        WHERE w.id = ANY ($2::text[]) AND w.status <> 'removed'
    ), fits AS (
        SELECT * FROM (
            SELECT sent.*, coalesce(now, extract(epoch FROM statement_timestamp())::float8) AS at,
                open.depth + row_number() OVER (PARTITION BY sent.workspace_id ORDER BY number) AS place
            FROM sent JOIN open ON open.id = sent.workspace_id
        ) AS placed WHERE place <= $12::int
    ), made AS (
    INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, caller, method, priority,
        headers, state, order_key, enqueued_at, expires_at, body)
    SELECT workspace_id, turn_key, content_hash, context_id, caller, method, priority, headers,
        'queued', at - priority * $13::float8, at, at + expires_in, body
    FROM fits ORDER BY number
    ON CONFLICT (workspace_id, turn_key) DO NOTHING RETURNING id, workspace_id, turn_key
    )
    SELECT made.*, open.depth FROM made JOIN open ON open.id = made.workspace_id
"""

_ENQUEUE_ONE = f"""
    INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, caller, method, priority,
        headers, state, order_key, enqueued_at, expires_at, body)
    SELECT w.id, $3, $4, $5, $6, $7, $8::int, $9, 'queued', {NOW} - $8::int * $12::float8, {NOW},
        {NOW} + $10::float8, $11
    FROM workspaces AS w WHERE w.id = $2 AND w.status <> 'removed'
    ON CONFLICT (workspace_id, turn_key) DO NOTHING RETURNING id
"""
"""The same for one message that there is room for: most, and less than half the work."""

_KNOWN = f"""
    SELECT asked.workspace_id, asked.turn_key, q.id, q.state, q.content_hash,
        (SELECT status FROM workspaces AS w WHERE w.id = asked.workspace_id) AS status,
        {DEPTH.format("asked.workspace_id", "$3::int")} AS depth
    FROM unnest($1::text[], $2::text[]) AS asked (workspace_id, turn_key)
    LEFT JOIN a2a_queue AS q ON q.workspace_id = asked.workspace_id AND q.turn_key = asked.turn_key
"""

_REQUEUE = f"""
    WITH requeued AS (
        UPDATE a2a_queue SET state = 'queued', order_key = {NOW} - priority * $2::float8,
            enqueued_at = {NOW}, expires_at = {NOW} + $3::float8, strikes = 0, lapses = 0, taken = false,
            ended_at = NULL, due_at = NULL, answer_status = NULL, answer = NULL, cursor = NULL,
            event_bytes = 0
        WHERE id = $4 AND state = ANY ($5::text[]) RETURNING id, workspace_id
    ), emptied AS (
        DELETE FROM a2a_events WHERE item IN (SELECT id FROM requeued)
    ), untold AS (
        UPDATE delegations SET told = false WHERE item_id IN (SELECT id FROM requeued)
    )
    SELECT workspace_id FROM requeued
"""

_HELD = "(SELECT 'leased' OFFSET 0)"
"""As a constant it would have the planner read all that is leased, rather than look each item up."""

_SETTLE = f"""
    WITH said AS (
        SELECT s.*, coalesce(now, extract(epoch FROM statement_timestamp())::float8) AS at
        FROM unnest($1::float8[], $2::bigint[], $3::int[], $4::text[], $5::text[], $6::boolean[],
            $7::boolean[], $8::float8[], $9::text[], $10::int[], $11::bytea[])
        AS s (now, id, attempt, owner, state, strike, taken, wait, because, answer_status, answer)
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
        RETURNING q.id, q.workspace_id, q.state, said.at + said.wait AS until
    ), held AS (
        UPDATE vitals AS v SET hold_until = greatest(v.hold_until, busy.until)
        FROM (SELECT workspace_id, max(until) AS until FROM settled WHERE state = 'queued'
            GROUP BY workspace_id) AS busy
        WHERE v.workspace_id = busy.workspace_id
    )
    SELECT id FROM settled
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
                AND NOT q.taken ORDER BY q.order_key LIMIT $1)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'queued'
                AND q.taken ORDER BY q.order_key LIMIT $1)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'delayed'
                LIMIT $1)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'leased'
                AND q.lease_until <= extract(epoch FROM statement_timestamp())::float8 LIMIT $1)
        ) AS one
    ) AS found
    WHERE w.status NOT IN {among(REACHABLE)} AND found.waiting > 0 ORDER BY w.id
"""

_LEASE = (
    "id, attempt, lease_owner, workspace_id, turn_key, context_id, caller, method, body, headers, strikes,"
    " lapses, taken, enqueued_at, cursor"
)

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
"""
"""Each count along the index that holds those items and no others."""


class _Room:
    """How many messages may be queued for a workspace before its depth is counted again.

    A count is as long as the queue. So one serves for an eighth of the room that it found, for
    some seconds: up to eight replicas never fill a queue beyond its cap.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._left: dict[str, tuple[int, float]] = {}

    def take(self, workspace_id: str, number: int = 1) -> bool:
        """Take room that is known; return ``False`` where the depth has to be counted."""
        left, until = self._left.get(workspace_id, _NO_ROOM)
        if left < number or time.monotonic() >= until:
            return False
        self._left[workspace_id] = (left - number, until)
        return True

    def told(self, workspace_id: str, depth: int) -> None:
        """Take a count."""
        if len(self._left) > 10_000:
            self._left.clear()
        self._left[workspace_id] = ((self._cap - depth) // 8, time.monotonic() + 5.0)


_NO_ROOM = (0, 0.0)


class Queue(Part):
    """The verbs of the queue."""

    def _open_queue(self) -> None:
        self._claims = 0
        self._room = _Room(self._rules.depth_cap)
        self._enqueue: Gathered[tuple[Message, float | None], Enqueued] = Gathered(
            self._send_messages, self._tasks
        )
        self._settle: Gathered[tuple[Settlement, float | None], bool] = Gathered(
            self._send_settlements, self._tasks
        )

    async def enqueue(self, message: Message, *, now: float | None = None) -> Enqueued:
        return await self._enqueue((message, now))

    async def _send_messages(
        self, sent: list[tuple[Message, float | None]]
    ) -> Sequence[Enqueued | Exception]:
        return await self._run(lambda connection: self._insert(connection, sent))

    async def _insert(
        self, connection: Any, sent: Sequence[tuple[Message, float | None]]
    ) -> Sequence[Enqueued | Exception]:
        results: list[Enqueued | None]
        if len(sent) == 1 and self._room.take(sent[0][0].workspace_id):
            results = [await self._insert_one(connection, *sent[0])]
        else:
            results = await self._insert_all(connection, sent)
        made = [result for result in results if result is not None]
        if len(made) == len(sent):
            return made
        others = [message for (message, _), result in zip(sent, results, strict=True) if result is None]
        known = await connection.fetch(
            _KNOWN,
            [message.workspace_id for message in others],
            [message.turn_key for message in others],
            self._rules.depth_cap,
        )
        found = {(row["workspace_id"], row["turn_key"]): row for row in known}
        return [
            result
            or await self._join(connection, message, found[message.workspace_id, message.turn_key], now)
            for (message, now), result in zip(sent, results, strict=True)
        ]

    async def _insert_one(self, connection: Any, message: Message, now: float | None) -> Enqueued | None:
        item_id: int | None = await connection.fetchval(
            _ENQUEUE_ONE,
            now,
            message.workspace_id,
            message.turn_key,
            message.content_hash,
            message.context_id,
            message.caller,
            message.method,
            message.priority,
            _headers(message),
            message.expires_in,
            message.body,
            self._rules.priority_weight,
        )
        if item_id is None:
            return None
        self._tell(due=(message.workspace_id,))
        return Enqueued(id=item_id, state=State.QUEUED, joined=False)

    async def _insert_all(
        self, connection: Any, sent: Sequence[tuple[Message, float | None]]
    ) -> list[Enqueued | None]:
        messages = [message for message, _ in sent]
        counted = [
            workspace_id
            for workspace_id, number in Counter(message.workspace_id for message in messages).items()
            if not self._room.take(workspace_id, number)
        ]
        rows = await connection.fetch(
            _ENQUEUE,
            [now for _, now in sent],
            [message.workspace_id for message in messages],
            [message.turn_key for message in messages],
            [message.content_hash for message in messages],
            [message.context_id for message in messages],
            [message.caller for message in messages],
            [message.method for message in messages],
            [message.priority for message in messages],
            [_headers(message) for message in messages],
            [message.expires_in for message in messages],
            [message.body for message in messages],
            self._rules.depth_cap,
            self._rules.priority_weight,
            counted,
        )
        made = {(row["workspace_id"], row["turn_key"]): row["id"] for row in rows}
        for workspace_id, depth in {row["workspace_id"]: row["depth"] for row in rows}.items():
            if workspace_id in counted:
                self._room.told(workspace_id, depth)
        self._tell(due={workspace_id for workspace_id, _ in made})
        results: list[Enqueued | None] = []
        for message in messages:
            item_id = made.pop((message.workspace_id, message.turn_key), None)
            results.append(
                None if item_id is None else Enqueued(id=item_id, state=State.QUEUED, joined=False)
            )
        return results

    async def _join(
        self, connection: Any, message: Message, known: asyncpg.Record, now: float | None
    ) -> Enqueued | Exception:
        full = known["depth"] >= self._rules.depth_cap
        if known["id"] is None:
            if known["status"] in (None, Status.REMOVED):
                return UnknownWorkspace(f"there is no workspace {message.workspace_id}")
            # What made it full may have gone since: then the next statement has room for it.
            return (
                QueueFull(known["depth"]) if full else (await self._insert(connection, [(message, now)]))[0]
            )
        if known["content_hash"] != message.content_hash:
            return ContentConflict("this messageId was sent before with other content")
        item_id, state = known["id"], State(known["state"])
        if state in REVIVED:
            if known["status"] in (None, Status.REMOVED):
                return UnknownWorkspace(f"there is no workspace {message.workspace_id}")
            if full:
                return QueueFull(known["depth"])
            await connection.execute(
                _REQUEUE,
                now,
                self._rules.priority_weight,
                message.expires_in,
                item_id,
                [str(state) for state in REVIVED],
            )
            state = State.QUEUED
        if state is State.QUEUED:
            self._tell(due=[message.workspace_id])
        return Enqueued(id=item_id, state=state, joined=True)

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
                f"SELECT {_LEASE} FROM claim($2, $3, {NOW}, $4, $5, $6) ORDER BY order_key, id",
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
        return [_lease(row) for row in rows]

    async def renew(self, leases: Sequence[Lease], *, now: float | None = None) -> set[int]:
        async def renew(connection: Any) -> list[asyncpg.Record]:
            async with connection.transaction():
                await connection.execute("SET LOCAL synchronous_commit = off")
                rows: list[asyncpg.Record] = await connection.fetch(
                    f"""
                    UPDATE a2a_queue AS q SET lease_until = greatest(q.lease_until, {NOW} + $2::float8)
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

    async def settle(self, settlement: Settlement, *, now: float | None = None) -> bool:
        queueing.check(str(settlement.lease.id), State.LEASED, settlement.verdict.state)
        return await self._settle((settlement, now))

    async def _send_settlements(
        self, sent: list[tuple[Settlement, float | None]]
    ) -> Sequence[bool | Exception]:
        tried = False

        async def settle(connection: Any) -> list[bool | Exception]:
            nonlocal tried
            leases = [settlement.lease for settlement, _ in sent]
            verdicts = [settlement.verdict for settlement, _ in sent]
            answers = [
                settlement.answer if settlement.verdict.state in ENDED else None for settlement, _ in sent
            ]
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
                [now for _, now in sent],
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
            settled = {row["id"] for row in rows}
            done = [
                lease.id in settled or (lease.id, lease.attempt, lease.owner) in before for lease in leases
            ]
            self._tell(
                ended=[
                    lease.id
                    for lease, verdict, was in zip(leases, verdicts, done, strict=True)
                    if was and verdict.state in ENDED
                ]
            )
            return list(done)

        return await self._run(settle)

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            UPDATE a2a_queue SET state = 'queued', due_at = NULL WHERE id IN (
                SELECT id FROM a2a_queue WHERE state = 'delayed' AND due_at <= {NOW}
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ) RETURNING workspace_id
            """,
            now,
            most,
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

    async def stranded(self) -> list[Stranded]:
        return [
            Stranded(
                workspace_id=row["id"],
                status=Status(row["status"]),
                waiting=min(row["waiting"], self._rules.depth_cap),
                oldest=row["oldest"],
            )
            for row in await self._all(_STRANDED, self._rules.depth_cap)
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
        return _item(row, None if status is None else Answer(status=status, body=row["answer"]))

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
        return [_item(row, None) for row in rows]

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        row = await self._one(
            _REQUEUE, now, self._rules.priority_weight, None, item_id, [str(state) for state in REPLAYABLE]
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
        return len(rows)


_ITEM_GONE = "NOT EXISTS (SELECT FROM a2a_queue WHERE a2a_queue.id = item_id)"


def _headers(message: Message) -> str:
    return json.dumps(dict(message.headers)) if message.headers else "{}"


def _lease(row: asyncpg.Record) -> Lease:
    return Lease(
        id=row["id"],
        attempt=row["attempt"],
        owner=row["lease_owner"],
        workspace_id=row["workspace_id"],
        turn_key=row["turn_key"],
        context_id=row["context_id"],
        caller=row["caller"],
        method=row["method"],
        body=row["body"],
        headers={} if row["headers"] == "{}" else json.loads(row["headers"]),
        strikes=row["strikes"],
        lapses=row["lapses"],
        taken=row["taken"],
        enqueued_at=row["enqueued_at"],
        cursor=row["cursor"],
    )


def _item(row: asyncpg.Record, answer: Answer | None) -> Item:
    values = dict(row)
    values.pop("answer_status", None)
    values.pop("answer", None)
    return Item(**(values | {"state": State(row["state"]), "answer": answer}))
