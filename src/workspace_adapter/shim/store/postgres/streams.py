"""What workspaces said on streams, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..contract import Lease
from .part import Part

_SAY = """
    WITH item AS (
        UPDATE a2a_queue SET events = events + cardinality($5::bytea[]),
            event_bytes = event_bytes + $6::bigint, cursor = coalesce($4, cursor), said_as = $7::bigint
        WHERE id = $1 AND state = 'leased' AND attempt = $2 AND lease_owner = $3
        RETURNING events, event_bytes
    ), kept AS (
        INSERT INTO a2a_events
        SELECT $1, item.events - cardinality($5::bytea[]) + said.number, said.body
        FROM item CROSS JOIN unnest($5::bytea[]) WITH ORDINALITY AS said (body, number)
    )
    SELECT events, event_bytes FROM item
"""

_SHORTEN = """
    WITH gone AS (
        DELETE FROM a2a_events WHERE item = $1 AND number <= coalesce((
            SELECT number FROM (
                SELECT number, sum(octet_length(body)) OVER (ORDER BY number) AS up_to
                FROM a2a_events WHERE item = $1 AND number < $2
            ) AS kept WHERE up_to >= $3::bigint ORDER BY number LIMIT 1
        ), $2 - 1) RETURNING octet_length(body) AS size
    )
    UPDATE a2a_queue SET event_bytes = event_bytes - (SELECT coalesce(sum(size), 0) FROM gone) WHERE id = $1
"""
"""Deletes the oldest events before a number, as many as are too many."""


class Streams(Part):
    """The verbs of streams."""

    _said = 0

    async def say(self, lease: Lease, events: Sequence[bytes], cursor: str | None) -> bool:
        self._said += 1
        said_as = self._said  # so that one whose answer was lost on the way is not said twice
        tried = False

        async def say(connection: Any) -> bool:
            nonlocal tried
            if tried and await connection.fetchval(
                "SELECT true FROM a2a_queue"
                " WHERE id = $1 AND attempt = $2 AND lease_owner = $3 AND said_as = $4::bigint",
                lease.id,
                lease.attempt,
                lease.owner,
                said_as,
            ):
                return True
            tried = True
            item = await connection.fetchrow(
                _SAY,
                lease.id,
                lease.attempt,
                lease.owner,
                cursor,
                list(events),
                sum(map(len, events)),
                said_as,
            )
            if item is None:
                return False
            excess = item["event_bytes"] - self._rules.stream_limit
            if excess > 0:
                first = item["events"] - len(events) + 1
                await connection.execute(_SHORTEN, lease.id, first, excess)
            return True

        kept = await self._run(say)
        if kept and events:
            self._tell(said=[lease.id])
        return kept

    async def said(self, item_id: int, *, after: int = 0, most: int = 500) -> list[tuple[int, bytes]]:
        rows = await self._all(
            "SELECT number, body FROM a2a_events WHERE item = $1 AND number > $2 ORDER BY number LIMIT $3",
            item_id,
            after,
            most,
        )
        return [(row["number"], row["body"]) for row in rows]
