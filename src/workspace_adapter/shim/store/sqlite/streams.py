"""What workspaces said on streams, in SQLite."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import Lease
from .part import Part
from .writer import Transaction


class Streams(Part):
    """The verbs of streams."""

    async def say(self, lease: Lease, events: Sequence[bytes], cursor: str | None) -> bool:
        def say(transaction: Transaction) -> bool:
            item = transaction.one(
                "UPDATE a2a_queue SET events = events + ?, event_bytes = event_bytes + ?,"
                " cursor = coalesce(?, cursor)"
                " WHERE id = ? AND state = 'leased' AND attempt = ? AND lease_owner = ?"
                " RETURNING events, event_bytes",
                len(events),
                sum(map(len, events)),
                cursor,
                lease.id,
                lease.attempt,
                lease.owner,
            )
            if item is None:
                return False
            first = item["events"] - len(events) + 1
            transaction.connection.executemany(
                "INSERT INTO a2a_events VALUES (?, ?, ?)",
                [(lease.id, number, event) for number, event in enumerate(events, first)],
            )
            excess = item["event_bytes"] - self._rules.stream_limit
            if excess > 0:
                self._shorten(transaction, lease.id, excess, first)
            if events:
                transaction.then(self.on_said, lease.id)
            return True

        return await self._writer.run(say)

    def _shorten(self, transaction: Transaction, item_id: int, excess: int, first: int) -> None:
        """Delete the oldest events before ``first``, as many as are too many."""
        gone = last = 0
        for row in transaction.connection.execute(
            "SELECT number, length(body) AS size FROM a2a_events WHERE item = ? AND number < ?"
            " ORDER BY number",
            (item_id, first),
        ):
            gone, last = gone + row["size"], row["number"]
            if gone >= excess:
                break
        transaction.change("DELETE FROM a2a_events WHERE item = ? AND number <= ?", item_id, last)
        transaction.change("UPDATE a2a_queue SET event_bytes = event_bytes - ? WHERE id = ?", gone, item_id)

    async def said(self, item_id: int, *, after: int = 0, most: int = 500) -> list[tuple[int, bytes]]:
        rows = await self._writer.run(
            lambda t: t.all(
                "SELECT number, body FROM a2a_events WHERE item = ? AND number > ? ORDER BY number LIMIT ?",
                item_id,
                after,
                most,
            )
        )
        return [(row["number"], row["body"]) for row in rows]
