"""How a message comes into the queue in PostgreSQL, or joins the item that it was sent as before.

Those that come while one is under way travel together, in the next statement. Each is safe to repeat,
so one whose connection was cut is.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import asyncpg

from ....errors import ContentConflict, QueueFull, UnknownWorkspace
from ....queueing import REVIVED, State
from ..contract import Enqueued, Message, Status
from .gathered import Gathered
from .part import DEPTH, NOW, Part

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

REQUEUE = f"""
    WITH requeued AS (
        UPDATE a2a_queue SET state = 'queued', order_key = {NOW} - priority * $2::float8,
            enqueued_at = {NOW}, expires_at = {NOW} + $3::float8, strikes = 0, lapses = 0, taken = false,
            ended_at = NULL, due_at = NULL, answer_status = NULL, answer = NULL, cursor = NULL,
            event_bytes = 0
        WHERE id = $4 AND state = ANY ($5::text[]) AND EXISTS (
            SELECT FROM workspaces AS w WHERE w.id = workspace_id AND w.status <> 'removed'
        ) RETURNING id, workspace_id
    ), emptied AS (
        DELETE FROM a2a_events WHERE item IN (SELECT id FROM requeued)
    ), untold AS (
        UPDATE delegations SET told = false WHERE item_id IN (SELECT id FROM requeued)
    )
    SELECT workspace_id FROM requeued
"""


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


class Enqueue(Part):
    """The verb by which a message comes in."""

    def _open_enqueue(self) -> None:
        self._room = _Room(self._rules.depth_cap)
        self._enqueue: Gathered[tuple[Message, float | None], Enqueued] = Gathered(
            self._send_messages, self._tasks
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
            requeued = await connection.fetchrow(
                REQUEUE,
                now,
                self._rules.priority_weight,
                message.expires_in,
                item_id,
                [str(state) for state in REVIVED],
            )
            if requeued is None:  # somebody else tried it anew, or it was forgotten: look again
                return (await self._insert(connection, [(message, now)]))[0]
            state = State.QUEUED
        if state is State.QUEUED:
            self._tell(due=[message.workspace_id])
        return Enqueued(id=item_id, state=state, joined=True)


def _headers(message: Message) -> str:
    return json.dumps(dict(message.headers)) if message.headers else "{}"
