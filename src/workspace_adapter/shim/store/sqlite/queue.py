"""The queue in SQLite."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from .... import queueing
from ....errors import ContentConflict, QueueFull, UnknownWorkspace
from ....queueing import DROPPABLE, ENDED, REPLAYABLE, REVIVED, WAITING, State
from ..contract import REACHABLE, Answer, Counts, Enqueued, Item, Lease, Message, Settlement, Status, Stranded
from ..rows import LEASE, item_of, lease_of
from .part import LIVE, Part, among, moment
from .writer import Transaction

_FIRST = f"""
    (context_id IS NULL OR (
        NOT EXISTS (
            SELECT 1 FROM a2a_queue AS held
            WHERE held.workspace_id = q.workspace_id AND held.context_id = q.context_id
                AND held.context_id IS NOT NULL AND held.state = 'leased'
        ) AND NOT EXISTS (
            SELECT 1 FROM a2a_queue AS before
            WHERE before.workspace_id = q.workspace_id AND before.context_id = q.context_id
                AND before.context_id IS NOT NULL AND before.state IN {LIVE}
                AND (before.order_key, before.id) < (q.order_key, q.id)
        )
    ))
    AND (expires_at IS NULL OR expires_at > ?)
"""

_COUNTS = """
    SELECT 'w', status, count(*) FROM workspaces WHERE status <> 'removed' GROUP BY status
    UNION ALL SELECT 'i', 'queued', count(*) FROM a2a_queue WHERE state = 'queued' AND taken = 0
    UNION ALL SELECT 'i', 'queued', count(*) FROM a2a_queue WHERE state = 'queued' AND taken = 1
    UNION ALL SELECT 'i', 'delayed', count(*) FROM a2a_queue WHERE state = 'delayed'
    UNION ALL SELECT 'i', 'leased', count(*) FROM a2a_queue WHERE state = 'leased'
    UNION ALL SELECT 'i', 'failed', count(*) FROM a2a_queue WHERE state = 'failed'
"""
"""Each count along the index that holds those items and no others."""


class Queue(Part):
    """The verbs of the queue."""

    async def enqueue(self, message: Message, *, now: float | None = None) -> Enqueued:
        at = moment(now)
        return await self._writer.run(lambda transaction: self._enqueue(transaction, message, at))

    def _enqueue(self, transaction: Transaction, message: Message, at: float) -> Enqueued:
        workspace_id = message.workspace_id
        known = transaction.one(
            "SELECT id, state, content_hash FROM a2a_queue WHERE workspace_id = ? AND turn_key = ?",
            workspace_id,
            message.turn_key,
        )
        if known is not None:
            if known["content_hash"] != message.content_hash:
                raise ContentConflict("this messageId was sent before with other content")
            state = State(known["state"])
            if state not in REVIVED:
                if state is State.QUEUED:
                    transaction.then(self.on_due, workspace_id)
                return Enqueued(id=known["id"], state=state, joined=True)
        row = transaction.one(
            "SELECT waiting FROM vitals JOIN workspaces ON id = workspace_id"
            " WHERE id = ? AND status <> 'removed'",
            workspace_id,
        )
        if row is None:
            raise UnknownWorkspace(f"there is no workspace {workspace_id}")
        if row["waiting"] >= self._rules.depth_cap:
            raise QueueFull(row["waiting"])
        expires_at = None if message.expires_in is None else at + message.expires_in
        key = queueing.order_key(at, message.priority, self._rules.priority_weight)
        if known is not None:
            self._requeue(transaction, known["id"], key, at)
            transaction.change("UPDATE a2a_queue SET expires_at = ? WHERE id = ?", expires_at, known["id"])
            item_id: int = known["id"]
        else:
            made = transaction.connection.execute(
                "INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, caller, method,"
                " priority, headers, state, order_key, enqueued_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?)",
                (
                    workspace_id,
                    message.turn_key,
                    message.content_hash,
                    message.context_id,
                    message.caller,
                    message.method,
                    message.priority,
                    json.dumps(dict(message.headers)),
                    key,
                    at,
                    expires_at,
                ),
            )
            assert made.lastrowid is not None
            item_id = made.lastrowid
            transaction.change("INSERT INTO a2a_bodies VALUES (?, ?)", item_id, message.body)
        transaction.then(self.on_due, workspace_id)
        return Enqueued(id=item_id, state=State.QUEUED, joined=known is not None)

    @staticmethod
    def _requeue(transaction: Transaction, item_id: int, key: float, at: float) -> None:
        transaction.change(
            "UPDATE a2a_queue SET state = 'queued', order_key = ?, enqueued_at = ?, expires_at = NULL,"
            " strikes = 0, lapses = 0, taken = 0, ended_at = NULL, due_at = NULL, cursor = NULL,"
            " event_bytes = 0 WHERE id = ?",
            key,
            at,
            item_id,
        )
        transaction.change("DELETE FROM a2a_answers WHERE item = ?", item_id)
        transaction.change("DELETE FROM a2a_events WHERE item = ?", item_id)
        transaction.change("UPDATE delegations SET told = 0 WHERE item_id = ?", item_id)

    async def claim(
        self, workspace_id: str, owner: str, *, most: int = 64, now: float | None = None
    ) -> list[Lease]:
        at = moment(now)
        # A lease that a loss of power undoes is a lease of a holder that died.
        return await self._writer.run(lambda t: self._claim(t, workspace_id, owner, most, at), lasting=False)

    def _claim(
        self, transaction: Transaction, workspace_id: str, owner: str, most: int, at: float
    ) -> list[Lease]:
        workspace = transaction.one(
            f"SELECT active_tasks, max_concurrent FROM workspaces JOIN vitals ON workspace_id = id"
            f" WHERE id = ? AND status IN {among(REACHABLE)} AND NOT restarting AND hold_until <= ?"
            " AND active_tasks < ?",
            workspace_id,
            at,
            queueing.NO_ROOM,
        )
        if workspace is None:
            return []
        held = transaction.all(
            "SELECT id, order_key, lease_until FROM a2a_queue WHERE workspace_id = ? AND state = 'leased'"
            " ORDER BY order_key, id",
            workspace_id,
        )
        chosen = [row for row in held if queueing.lapsed(row["lease_until"], at)][:most]
        room = queueing.capacity(workspace["max_concurrent"], workspace["active_tasks"], len(held))
        for is_taken, limit in ((1, most), (0, min(room, most))):
            rows = transaction.all(
                f"SELECT id, order_key FROM a2a_queue AS q WHERE workspace_id = ? AND state = 'queued'"
                f" AND taken = {is_taken} AND {_FIRST} ORDER BY order_key, id LIMIT ?",
                workspace_id,
                at,
                limit,
            )
            chosen += rows
        leases = []
        for _, item_id in sorted((row["order_key"], row["id"]) for row in chosen):
            row = transaction.one(
                "UPDATE a2a_queue SET attempt = attempt + 1, lapses = lapses + (state = 'leased'),"
                " state = 'leased', lease_owner = ?, lease_until = ?, leased_at = ?, due_at = NULL"
                f" WHERE id = ? RETURNING {LEASE}, (SELECT body FROM a2a_bodies WHERE item = a2a_queue.id)",
                owner,
                at + self._rules.lease,
                at,
                item_id,
            )
            assert row is not None
            leases.append(lease_of(row))
        return leases

    async def renew(self, leases: Sequence[Lease], *, now: float | None = None) -> set[int]:
        until = moment(now) + self._rules.lease

        def renew(transaction: Transaction) -> set[int]:
            return {
                lease.id
                for lease in leases
                if transaction.change(
                    "UPDATE a2a_queue SET lease_until = ? WHERE id = ? AND state = 'leased'"
                    " AND attempt = ? AND lease_owner = ?",
                    until,
                    lease.id,
                    lease.attempt,
                    lease.owner,
                )
            }

        return await self._writer.run(renew, lasting=False)

    async def settle(self, settlements: Sequence[Settlement], *, now: float | None = None) -> list[bool]:
        at = moment(now)
        return await self._writer.run(
            lambda transaction: [self._settle(transaction, settlement, at) for settlement in settlements]
        )

    def _settle(self, transaction: Transaction, settlement: Settlement, at: float) -> bool:
        lease, verdict, answer = settlement.lease, settlement.verdict, settlement.answer
        queueing.check(str(lease.id), State.LEASED, verdict.state)
        ended = verdict.state in ENDED
        settled = transaction.change(
            "UPDATE a2a_queue SET state = ?, strikes = strikes + ?, lapses = 0, taken = max(taken, ?),"
            " expires_at = iif(?, NULL, expires_at), due_at = ?, ended_at = ?, last_error = ?"
            " WHERE id = ? AND state = 'leased' AND attempt = ? AND lease_owner = ?",
            str(verdict.state),
            verdict.strike,
            verdict.taken,
            verdict.taken,
            at + verdict.wait if verdict.state is State.DELAYED else None,
            at if ended else None,
            None if verdict.state is State.COMPLETED else verdict.because,
            lease.id,
            lease.attempt,
            lease.owner,
        )
        if not settled:
            return False
        if verdict.state is State.COMPLETED:
            transaction.change("DELETE FROM a2a_bodies WHERE item = ?", lease.id)
        if ended and answer is not None:
            transaction.change(
                "INSERT OR REPLACE INTO a2a_answers VALUES (?, ?, ?)", lease.id, answer.status, answer.body
            )
        if ended:
            transaction.then(self.on_ended, lease.id)
        if verdict.ends_batch:
            transaction.change(
                "UPDATE vitals SET hold_until = max(hold_until, ?) WHERE workspace_id = ?",
                at + verdict.wait,
                lease.workspace_id,
            )
        return True

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        at = moment(now)

        def promote(transaction: Transaction) -> int:
            rows = transaction.all(
                "UPDATE a2a_queue SET state = 'queued', due_at = NULL WHERE id IN (SELECT id FROM a2a_queue"
                " WHERE state = 'delayed' AND (due_at <= ? OR due_at > ?) LIMIT ?) RETURNING workspace_id",
                at,
                at + self._rules.longest_wait,
                most,
            )
            for row in rows:
                transaction.then(self.on_due, row["workspace_id"])
            return len(rows)

        return await self._writer.run(promote, lasting=False)

    async def expire(self, *, most: int = 500, now: float | None = None) -> int:
        at = moment(now)

        def expire(transaction: Transaction) -> int:
            rows = transaction.all(
                "UPDATE a2a_queue SET state = 'expired', ended_at = ?, last_error = 'nobody wanted it any"
                " longer: expires_in_seconds passed while it waited' WHERE id IN (SELECT id FROM a2a_queue"
                f" WHERE expires_at IS NOT NULL AND expires_at <= ? AND state IN {among(WAITING)}"
                " ORDER BY expires_at LIMIT ?) RETURNING id, workspace_id",
                at,
                at,
                most,
            )
            for row in rows:
                transaction.then(self.on_ended, row["id"])
                transaction.then(self.on_due, row["workspace_id"])
            return len(rows)

        return await self._writer.run(expire)

    async def due(self, *, now: float | None = None) -> list[str]:
        at = moment(now)
        rows = await self._writer.run(
            lambda transaction: transaction.all(
                f"""
                WITH RECURSIVE
                ready (id) AS (
                    SELECT min(workspace_id) FROM a2a_queue WHERE state = 'queued' AND taken = 0
                    UNION ALL
                    SELECT (
                        SELECT min(workspace_id) FROM a2a_queue
                        WHERE state = 'queued' AND taken = 0 AND workspace_id > ready.id
                    ) FROM ready WHERE ready.id IS NOT NULL
                ),
                again (id) AS (
                    SELECT workspace_id FROM a2a_queue WHERE state = 'queued' AND taken = 1
                    UNION
                    SELECT workspace_id FROM a2a_queue WHERE state = 'leased' AND lease_until <= ?
                )
                SELECT workspaces.id FROM workspaces JOIN vitals ON workspace_id = workspaces.id
                WHERE status IN {among(REACHABLE)} AND NOT restarting AND hold_until <= ?
                    AND active_tasks < ?
                    AND (workspaces.id IN (SELECT id FROM again) OR
                        (workspaces.id IN (SELECT id FROM ready) AND active_tasks < max_concurrent))
                ORDER BY workspaces.id
                """,
                at,
                at,
                queueing.NO_ROOM,
            )
        )
        return [row["id"] for row in rows]

    async def stranded(self, *, now: float | None = None) -> list[Stranded]:
        at = moment(now)
        rows = await self._writer.run(
            lambda transaction: transaction.all(
                f"""
                SELECT id, status, min(waiting + left_behind, ?) AS waiting, (
                    SELECT min(enqueued_at) FROM a2a_queue AS q
                    WHERE q.workspace_id = found.id AND q.state IN {LIVE}
                ) AS oldest
                FROM (
                    SELECT id, status, waiting, (
                        SELECT count(*) FROM a2a_queue AS q
                        WHERE q.workspace_id = workspaces.id AND q.state = 'leased' AND q.lease_until <= ?
                    ) AS left_behind
                    FROM workspaces JOIN vitals ON workspace_id = id WHERE status NOT IN {among(REACHABLE)}
                ) AS found
                WHERE waiting + left_behind > 0 ORDER BY id
                """,
                self._rules.depth_cap,
                at,
            )
        )
        return [
            Stranded(
                workspace_id=row["id"],
                status=Status(row["status"]),
                waiting=row["waiting"],
                oldest=row["oldest"],
            )
            for row in rows
        ]

    async def depth(self, workspace_id: str) -> int:
        row = await self._writer.run(
            lambda t: t.one("SELECT waiting FROM vitals WHERE workspace_id = ?", workspace_id)
        )
        return 0 if row is None else min(row["waiting"], self._rules.depth_cap)

    async def counts(self) -> Counts:
        workspaces: dict[Status, int] = {}
        items: dict[State, int] = {}
        for what, name, number in await self._writer.run(lambda t: t.all(_COUNTS)):
            if what == "w":
                workspaces[Status(name)] = number
            else:
                items[State(name)] = items.get(State(name), 0) + number
        return Counts(workspaces, items)

    async def item(self, item_id: int) -> Item | None:
        row = await self._writer.run(
            lambda t: t.one(
                "SELECT q.*, a.status AS answer_status, a.body AS answer FROM a2a_queue AS q"
                " LEFT JOIN a2a_answers AS a ON a.item = q.id WHERE q.id = ?",
                item_id,
            )
        )
        if row is None:
            return None
        status = row["answer_status"]
        return item_of(row, None if status is None else Answer(status=status, body=row["answer"]))

    async def ended(self, item_ids: Collection[int]) -> set[int]:
        asked = json.dumps(list(item_ids))
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT asked.value FROM json_each(?) AS asked LEFT JOIN a2a_queue AS q ON q.id = asked.value"
                f" WHERE q.id IS NULL OR q.state IN {among(ENDED)}",
                asked,
            )
        )
        return {row["value"] for row in rows}

    async def items(
        self, workspace_id: str, *, state: State | None = None, after: int = 0, most: int = 100
    ) -> list[Item]:
        wanted = None if state is None else str(state)
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT * FROM a2a_queue WHERE workspace_id = ? AND id > ? AND (? IS NULL OR state = ?)"
                " ORDER BY id LIMIT ?",
                workspace_id,
                after,
                wanted,
                wanted,
                most,
            )
        )
        return [item_of(row, None) for row in rows]

    async def dead_letters(self, *, after: int = 0, most: int = 100) -> list[Item]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT * FROM a2a_queue WHERE state = 'failed' AND id > ? ORDER BY id LIMIT ?", after, most
            )
        )
        return [item_of(row, None) for row in rows]

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        at = moment(now)

        def replay(transaction: Transaction) -> bool:
            row = transaction.one(
                f"SELECT workspace_id, priority FROM a2a_queue WHERE id = ? AND state IN {among(REPLAYABLE)}"
                " AND EXISTS (SELECT 1 FROM workspaces WHERE id = workspace_id AND status <> 'removed')",
                item_id,
            )
            if row is None:
                return False
            key = queueing.order_key(at, row["priority"], self._rules.priority_weight)
            self._requeue(transaction, item_id, key, at)
            transaction.then(self.on_due, row["workspace_id"])
            return True

        return await self._writer.run(replay)

    async def drop(self, item_id: int, because: str, *, now: float | None = None) -> bool:
        at = moment(now)

        def drop(transaction: Transaction) -> bool:
            row = transaction.one(
                "UPDATE a2a_queue SET state = 'dropped', due_at = NULL, ended_at = ?, last_error = ?"
                f" WHERE id = ? AND state IN {among(DROPPABLE)} RETURNING workspace_id",
                at,
                because,
                item_id,
            )
            if row is None:
                return False
            transaction.then(self.on_due, row["workspace_id"])
            transaction.then(self.on_ended, item_id)
            return True

        return await self._writer.run(drop)

    async def forget(self, *, most: int = 500, now: float | None = None) -> int:
        before = moment(now) - self._rules.retention

        def forget(transaction: Transaction) -> int:
            ids = [
                (row["id"],)
                for row in transaction.all(
                    "SELECT id FROM a2a_queue WHERE ended_at IS NOT NULL AND ended_at <= ?"
                    " ORDER BY ended_at LIMIT ?",
                    before,
                    most,
                )
            ]
            for table in ("a2a_bodies", "a2a_answers", "a2a_events"):
                transaction.connection.executemany(f"DELETE FROM {table} WHERE item = ?", ids)
            transaction.connection.executemany("DELETE FROM a2a_queue WHERE id = ?", ids)
            for table, old in (
                ("cycles", "ended_at <= ?"),
                ("activity", "created_at <= ?"),
                (
                    "delegations",
                    "updated_at <= ? AND NOT EXISTS (SELECT 1 FROM a2a_queue WHERE id = item_id)",
                ),
            ):
                transaction.change(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {old} LIMIT ?)",
                    before,
                    most,
                )
            return len(ids)

        return await self._writer.run(forget)
