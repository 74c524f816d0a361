"""The store in one SQLite file: no set-up, one process. WAL, ``synchronous=FULL``, group commit.

``workspaces``
    One row a workspace: status, URL, the boot id that registered last, whether it restarts.
``boots``
    The boot ids a workspace ever had: the one that is not current was replaced.
``vitals``
    What a workspace last reported, apart from its row because it changes all the time.
``tokens``
    Digests of bearers.
``a2a_queue``
    One row a message, narrow; its body is in ``a2a_bodies`` until the item has its answer,
    which is in ``a2a_answers``: so no change of state rewrites megabytes. ``waiting`` is the
    depth: ``vitals.waiting`` is kept by triggers, so no enqueue counts.

Times are UTC epoch seconds, bodies bytes, ``card``, ``report`` and ``headers`` JSON.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ... import queueing
from ...errors import ContentConflict, QueueFull, StoreTooNew, UnknownWorkspace
from ...queueing import DROPPABLE, ENDED, REPLAYABLE, REVIVED, WAITING, Rules, State
from .contract import (
    DORMANT,
    REACHABLE,
    Answer,
    Beat,
    Enqueued,
    Item,
    Lease,
    Message,
    Role,
    Settlement,
    Status,
    Stranded,
    Token,
    Workspace,
)
from .writer import Transaction, Writer

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE workspaces (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        url TEXT,
        boot_id TEXT,
        restarting INTEGER NOT NULL DEFAULT 0,
        card TEXT,
        created_at REAL NOT NULL,
        provisioner TEXT NOT NULL,
        spec TEXT NOT NULL,
        secret TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE boots (
        workspace_id TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        seen_at REAL NOT NULL,
        PRIMARY KEY (workspace_id, boot_id)
    ) WITHOUT ROWID;
    CREATE TABLE vitals (
        workspace_id TEXT PRIMARY KEY,
        beat_at REAL,
        active_tasks INTEGER NOT NULL DEFAULT 0,
        max_concurrent INTEGER NOT NULL,
        hold_until REAL NOT NULL DEFAULT 0,
        waiting INTEGER NOT NULL DEFAULT 0,
        report TEXT NOT NULL DEFAULT '{}'
    ) WITHOUT ROWID;
    CREATE TABLE tokens (
        digest TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        workspace_id TEXT,
        label TEXT NOT NULL,
        created_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE a2a_queue (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        workspace_id TEXT NOT NULL,
        turn_key TEXT NOT NULL,
        content_hash TEXT NOT NULL,
        context_id TEXT,
        caller TEXT,
        method TEXT NOT NULL,
        priority INTEGER NOT NULL,
        headers TEXT NOT NULL,
        state TEXT NOT NULL,
        order_key REAL NOT NULL,
        enqueued_at REAL NOT NULL,
        expires_at REAL,
        due_at REAL,
        attempt INTEGER NOT NULL DEFAULT 0,
        strikes INTEGER NOT NULL DEFAULT 0,
        lapses INTEGER NOT NULL DEFAULT 0,
        taken INTEGER NOT NULL DEFAULT 0,
        lease_owner TEXT,
        lease_until REAL,
        leased_at REAL,
        ended_at REAL,
        last_error TEXT,
        cursor TEXT
    );
    CREATE UNIQUE INDEX a2a_queue_message ON a2a_queue (workspace_id, turn_key);
    CREATE INDEX a2a_queue_ready ON a2a_queue (workspace_id, order_key, id)
        WHERE state = 'queued' AND taken = 0;
    CREATE INDEX a2a_queue_taken ON a2a_queue (workspace_id, order_key, id)
        WHERE state = 'queued' AND taken = 1;
    CREATE INDEX a2a_queue_delayed ON a2a_queue (due_at) WHERE state = 'delayed';
    CREATE INDEX a2a_queue_session ON a2a_queue (workspace_id, context_id, order_key, id)
        WHERE context_id IS NOT NULL AND state IN ('queued', 'delayed', 'leased');
    CREATE UNIQUE INDEX a2a_queue_one_of_a_session ON a2a_queue (workspace_id, context_id)
        WHERE context_id IS NOT NULL AND state = 'leased';
    CREATE INDEX a2a_queue_leased ON a2a_queue (workspace_id) WHERE state = 'leased';
    CREATE INDEX a2a_queue_expires ON a2a_queue (expires_at)
        WHERE expires_at IS NOT NULL AND state IN ('queued', 'delayed');
    CREATE INDEX a2a_queue_ended ON a2a_queue (ended_at) WHERE ended_at IS NOT NULL;
    CREATE TABLE a2a_bodies (item INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE a2a_answers (item INTEGER PRIMARY KEY, status INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TRIGGER a2a_queue_in AFTER INSERT ON a2a_queue BEGIN
        UPDATE vitals SET waiting = waiting + 1 WHERE workspace_id = new.workspace_id;
    END;
    CREATE TRIGGER a2a_queue_moved AFTER UPDATE OF state ON a2a_queue
    WHEN (old.state IN ('queued', 'delayed')) IS NOT (new.state IN ('queued', 'delayed')) BEGIN
        UPDATE vitals SET waiting = waiting + iif(new.state IN ('queued', 'delayed'), 1, -1)
        WHERE workspace_id = new.workspace_id;
    END;
    """,
)
"""Forward only; the position of the last one is ``user_version``."""

_LIVE = "('queued', 'delayed', 'leased')"


def _among(states: Collection[State | Status]) -> str:
    """Write constants of ours for an ``IN``."""
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"


_FIRST = f"""
    (context_id IS NULL OR (
        NOT EXISTS (
            SELECT 1 FROM a2a_queue AS held
            WHERE held.workspace_id = q.workspace_id AND held.context_id = q.context_id
                AND held.context_id IS NOT NULL AND held.state = 'leased'
        ) AND NOT EXISTS (
            SELECT 1 FROM a2a_queue AS before
            WHERE before.workspace_id = q.workspace_id AND before.context_id = q.context_id
                AND before.context_id IS NOT NULL AND before.state IN {_LIVE}
                AND (before.order_key, before.id) < (q.order_key, q.id)
        )
    ))
    AND (expires_at IS NULL OR expires_at > ?)
"""
"""Of a queued item ``q``: nothing of its session is leased or comes before it, and it is still wanted."""

_WORKSPACES = "SELECT * FROM workspaces JOIN vitals ON vitals.workspace_id = workspaces.id"


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date.

    Raises:
        StoreTooNew: a newer version wrote it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"the store has schema {version} and this version knows {len(MIGRATIONS)}:"
            " upgrade workspace-adapter"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN; {MIGRATIONS[number]}; PRAGMA user_version={number + 1}; COMMIT")


class SqliteStore:
    """What the shim keeps, in one file that one process has open."""

    def __init__(self, path: Path, rules: Rules) -> None:
        self._path = path
        self._rules = rules
        self.on_due: Callable[[str], None] = _nobody
        self.on_ended: Callable[[int], None] = _nobody

    async def __aenter__(self) -> Self:
        self._writer = Writer(
            self._path,
            prepare=migrate,
            on_due=lambda workspace_id: self.on_due(workspace_id),
            on_ended=lambda item_id: self.on_ended(item_id),
        )
        await self._writer.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._writer.close()

    # --- workspaces and tokens --------------------------------------------------------

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
        at = _at(now)

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
                transaction.change(
                    "INSERT INTO vitals (workspace_id, max_concurrent) VALUES (?, ?) ON CONFLICT DO UPDATE"
                    " SET beat_at = NULL, active_tasks = 0, max_concurrent = excluded.max_concurrent,"
                    " hold_until = 0, report = '{}'",
                    workspace_id,
                    max_concurrent,
                )
            return bool(made)

        return await self._writer.run(create)

    async def workspace(self, workspace_id: str) -> Workspace | None:
        row = await self._writer.run(lambda t: t.one(f"{_WORKSPACES} WHERE id = ?", workspace_id))
        return None if row is None else _workspace(row)

    async def workspaces(self) -> list[Workspace]:
        rows = await self._writer.run(lambda t: t.all(f"{_WORKSPACES} WHERE status <> 'removed' ORDER BY id"))
        return [_workspace(row) for row in rows]

    async def register(
        self,
        workspace_id: str,
        *,
        url: str | None,
        boot_id: str | None,
        card: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> bool:
        at = _at(now)

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
                "UPDATE workspaces SET status = 'online', url = ?, boot_id = ?, card = coalesce(?, card)"
                " WHERE id = ?",
                url,
                boot_id,
                None if card is None else json.dumps(card),
                workspace_id,
            )
            if new:
                transaction.change(
                    "UPDATE vitals SET active_tasks = 0, hold_until = 0, beat_at = ? WHERE workspace_id = ?",
                    at,
                    workspace_id,
                )
            transaction.due.append(workspace_id)
            return True

        return await self._writer.run(register)

    async def set_status(self, workspace_id: str, status: Status, *, were: Collection[Status]) -> bool:
        at = time.time()

        def change(transaction: Transaction) -> bool:
            if not transaction.change(
                f"UPDATE workspaces SET status = ? WHERE id = ? AND status IN {_among(were)}",
                str(status),
                workspace_id,
            ):
                return False
            if status is Status.REMOVED:
                transaction.change("DELETE FROM tokens WHERE workspace_id = ?", workspace_id)
                transaction.change("DELETE FROM boots WHERE workspace_id = ?", workspace_id)
                dropped = transaction.all(
                    "UPDATE a2a_queue SET state = 'dropped', ended_at = ?, last_error = 'the workspace was"
                    f" removed' WHERE workspace_id = ? AND state IN {_LIVE} RETURNING id",
                    at,
                    workspace_id,
                )
                transaction.ended += [row["id"] for row in dropped]
            elif status in REACHABLE:
                transaction.due.append(workspace_id)
            return True

        return await self._writer.run(change)

    async def set_restarting(self, workspace_id: str, restarting: bool) -> bool:
        def change(transaction: Transaction) -> bool:
            changed = transaction.change(
                "UPDATE workspaces SET restarting = ? WHERE id = ? AND restarting = ?",
                restarting,
                workspace_id,
                not restarting,
            )
            if changed and not restarting:
                transaction.due.append(workspace_id)
            return bool(changed)

        return await self._writer.run(change)

    async def beat(self, beats: Sequence[Beat], *, now: float | None = None) -> dict[str, bool]:
        at = _at(now)
        last = {beat.workspace_id: beat for beat in beats}

        def take(transaction: Transaction) -> dict[str, bool]:
            counted = {}
            for beat in last.values():
                status = Status.DEGRADED if beat.degraded else Status.ONLINE
                row = transaction.one(
                    "SELECT status FROM workspaces WHERE id = ? AND boot_id IS ? AND status NOT IN"
                    f" {_among(DORMANT)}",
                    beat.workspace_id,
                    beat.boot_id,
                )
                if row is None:
                    continue
                if row["status"] != status:
                    transaction.change(
                        "UPDATE workspaces SET status = ? WHERE id = ?", str(status), beat.workspace_id
                    )
                vitals = transaction.one(
                    "UPDATE vitals SET beat_at = ?, active_tasks = ?, max_concurrent = coalesce(?,"
                    " max_concurrent), report = ?, hold_until = CASE WHEN ? < min(?, coalesce(?,"
                    " max_concurrent)) THEN 0 ELSE hold_until END WHERE workspace_id = ?"
                    " RETURNING waiting > 0 AS waiting",
                    at,
                    beat.active_tasks,
                    beat.max_concurrent,
                    json.dumps(beat.report),
                    beat.active_tasks,
                    queueing.NO_ROOM,
                    beat.max_concurrent,
                    beat.workspace_id,
                )
                counted[beat.workspace_id] = vitals is not None and bool(vitals["waiting"])
            return counted

        return await self._writer.run(take)

    async def add_token(
        self,
        digest: str,
        *,
        role: Role,
        workspace_id: str | None = None,
        label: str = "",
        now: float | None = None,
    ) -> None:
        at = _at(now)
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
        return {row["digest"]: _token(row) for row in rows}

    async def tokens_of(self, workspace_id: str | None) -> list[Token]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT * FROM tokens WHERE workspace_id IS ? ORDER BY created_at, digest", workspace_id
            )
        )
        return [_token(row) for row in rows]

    async def revoke_token(self, digest: str) -> bool:
        return bool(await self._writer.run(lambda t: t.change("DELETE FROM tokens WHERE digest = ?", digest)))

    # --- the queue --------------------------------------------------------------------

    async def enqueue(self, message: Message, *, now: float | None = None) -> Enqueued:
        at = _at(now)
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
                    transaction.due.append(workspace_id)
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
        transaction.due.append(workspace_id)
        return Enqueued(id=item_id, state=State.QUEUED, joined=known is not None)

    @staticmethod
    def _requeue(transaction: Transaction, item_id: int, key: float, at: float) -> None:
        transaction.change(
            "UPDATE a2a_queue SET state = 'queued', order_key = ?, enqueued_at = ?, expires_at = NULL,"
            " strikes = 0, lapses = 0, taken = 0, ended_at = NULL, due_at = NULL WHERE id = ?",
            key,
            at,
            item_id,
        )
        transaction.change("DELETE FROM a2a_answers WHERE item = ?", item_id)

    async def claim(
        self, workspace_id: str, owner: str, *, most: int = 64, now: float | None = None
    ) -> list[Lease]:
        at = _at(now)
        return await self._writer.run(lambda t: self._claim(t, workspace_id, owner, most, at))

    def _claim(
        self, transaction: Transaction, workspace_id: str, owner: str, most: int, at: float
    ) -> list[Lease]:
        workspace = transaction.one(
            f"SELECT active_tasks, max_concurrent FROM workspaces JOIN vitals ON workspace_id = id"
            f" WHERE id = ? AND status IN {_among(REACHABLE)} AND NOT restarting AND hold_until <= ?"
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
                " WHERE id = ? RETURNING *, (SELECT body FROM a2a_bodies WHERE item = a2a_queue.id) AS body",
                owner,
                at + self._rules.lease,
                at,
                item_id,
            )
            assert row is not None
            leases.append(_lease(row))
        return leases

    async def renew(self, leases: Sequence[Lease], *, now: float | None = None) -> set[int]:
        until = _at(now) + self._rules.lease

        def renew(transaction: Transaction) -> set[int]:
            return {
                lease.id
                for lease in leases
                if transaction.change(
                    "UPDATE a2a_queue SET lease_until = max(lease_until, ?) WHERE id = ? AND state = 'leased'"
                    " AND attempt = ? AND lease_owner = ?",
                    until,
                    lease.id,
                    lease.attempt,
                    lease.owner,
                )
            }

        return await self._writer.run(renew)

    async def settle(self, settlement: Settlement, *, now: float | None = None) -> bool:
        at = _at(now)
        return await self._writer.run(lambda transaction: self._settle(transaction, settlement, at))

    @staticmethod
    def _settle(transaction: Transaction, settlement: Settlement, at: float) -> bool:
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
            transaction.ended.append(lease.id)
        if verdict.ends_batch:
            transaction.change(
                "UPDATE vitals SET hold_until = max(hold_until, ?) WHERE workspace_id = ?",
                at + verdict.wait,
                lease.workspace_id,
            )
        return True

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        at = _at(now)

        def promote(transaction: Transaction) -> int:
            rows = transaction.all(
                "UPDATE a2a_queue SET state = 'queued', due_at = NULL WHERE id IN (SELECT id FROM a2a_queue"
                " WHERE state = 'delayed' AND due_at <= ? ORDER BY due_at LIMIT ?) RETURNING workspace_id",
                at,
                most,
            )
            transaction.due += [row["workspace_id"] for row in rows]
            return len(rows)

        return await self._writer.run(promote)

    async def expire(self, *, most: int = 500, now: float | None = None) -> int:
        at = _at(now)

        def expire(transaction: Transaction) -> int:
            rows = transaction.all(
                "UPDATE a2a_queue SET state = 'expired', ended_at = ?, last_error = 'nobody wanted it any"
                " longer: expires_in_seconds passed while it waited' WHERE id IN (SELECT id FROM a2a_queue"
                f" WHERE expires_at IS NOT NULL AND expires_at <= ? AND state IN {_among(WAITING)}"
                " ORDER BY expires_at LIMIT ?) RETURNING id, workspace_id",
                at,
                at,
                most,
            )
            transaction.ended += [row["id"] for row in rows]
            transaction.due += [row["workspace_id"] for row in rows]
            return len(rows)

        return await self._writer.run(expire)

    async def due(self, *, now: float | None = None) -> list[str]:
        at = _at(now)
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
                WHERE status IN {_among(REACHABLE)} AND NOT restarting AND hold_until <= ?
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

    async def stranded(self) -> list[Stranded]:
        rows = await self._writer.run(
            lambda transaction: transaction.all(
                f"""
                SELECT id, status, min(waiting, ?) AS waiting, (
                    SELECT min(enqueued_at) FROM a2a_queue AS q
                    WHERE q.workspace_id = workspaces.id AND q.state IN {_among(WAITING)}
                ) AS oldest
                FROM workspaces JOIN vitals ON workspace_id = id
                WHERE status NOT IN {_among(REACHABLE)} AND waiting > 0 ORDER BY id
                """,
                self._rules.depth_cap,
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
        return _item(row, None if status is None else Answer(status=status, body=row["answer"]))

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
        return [_item(row, None) for row in rows]

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        at = _at(now)

        def replay(transaction: Transaction) -> bool:
            row = transaction.one(
                "SELECT workspace_id, priority FROM a2a_queue"
                f" WHERE id = ? AND state IN {_among(REPLAYABLE)}",
                item_id,
            )
            if row is None:
                return False
            key = queueing.order_key(at, row["priority"], self._rules.priority_weight)
            self._requeue(transaction, item_id, key, at)
            transaction.due.append(row["workspace_id"])
            return True

        return await self._writer.run(replay)

    async def drop(self, item_id: int, because: str, *, now: float | None = None) -> bool:
        at = _at(now)

        def drop(transaction: Transaction) -> bool:
            row = transaction.one(
                "UPDATE a2a_queue SET state = 'dropped', due_at = NULL, ended_at = ?, last_error = ?"
                f" WHERE id = ? AND state IN {_among(DROPPABLE)} RETURNING workspace_id",
                at,
                because,
                item_id,
            )
            if row is None:
                return False
            transaction.due.append(row["workspace_id"])
            transaction.ended.append(item_id)
            return True

        return await self._writer.run(drop)

    async def forget(self, *, most: int = 500, now: float | None = None) -> int:
        before = _at(now) - self._rules.retention

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
            for table, column in (("a2a_bodies", "item"), ("a2a_answers", "item"), ("a2a_queue", "id")):
                transaction.connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)
            return len(ids)

        return await self._writer.run(forget)


def _nobody(_: object) -> None:
    """Nobody listens yet."""


def _at(now: float | None) -> float:
    return time.time() if now is None else now


def _workspace(row: sqlite3.Row) -> Workspace:
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


def _token(row: sqlite3.Row) -> Token:
    return Token(**(dict(row) | {"role": Role(row["role"])}))


def _lease(row: sqlite3.Row) -> Lease:
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
        headers=json.loads(row["headers"]),
        strikes=row["strikes"],
        lapses=row["lapses"],
        taken=bool(row["taken"]),
        enqueued_at=row["enqueued_at"],
        cursor=row["cursor"],
    )


def _item(row: sqlite3.Row, answer: Answer | None) -> Item:
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
