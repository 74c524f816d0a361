from __future__ import annotations

import json
from pathlib import Path

from workspace_adapter.sidecar.journal import Journal, NewEvent, Reader, schema
from workspace_adapter.sidecar.journal.export import document
from workspace_adapter.sidecar.journal.measure import measure

from .made import NOW, answered, call, message, running, scalar

DAY = 86400.0


async def test_a_turn_is_exported_with_every_column_of_every_table(state_dir: Path, journal: Journal) -> None:
    turn = await running(journal, "m1")
    await journal.permit(turn.id, 1, call(), now=NOW)
    await journal.append(turn.id, 1, [NewEvent(kind="text", body={"text": "hä"})], now=NOW)
    with Reader.open(state_dir) as reader:
        exported = json.loads(json.dumps(document(reader, turn.id, now=NOW)))
    assert {k: exported[k] for k in ("format", "version", "schema", "exported_at")} == {
        "format": "workspace-adapter turn",
        "version": 1,
        "schema": len(schema.MIGRATIONS),
        "exported_at": NOW,
    }
    assert exported["message"] == {"messageId": "m1"}
    (event,), (one_call,) = exported["events"], exported["calls"]
    assert event["body"] == {"text": "hä"}
    for table, got in (
        ("turns", exported["turn"]),
        ("sessions", exported["session"]),
        ("calls", one_call),
        ("events", event),
    ):
        columns = scalar(
            state_dir / "journal.db", f"SELECT group_concat(name) FROM pragma_table_info('{table}')"
        )
        assert list(got) == columns.split(",")


async def test_a_large_answer_is_in_the_document(state_dir: Path, journal: Journal) -> None:
    await answered(journal, "m1", answer="x" * 300_000)
    with Reader.open(state_dir) as reader:
        exported = document(reader, "turn-m1", now=NOW)
        assert exported is not None
        assert exported["turn"]["answer"] == "x" * 300_000
        assert exported["turn"]["outcome"]["kind"] == "answered"
        assert exported["message"] is None
        assert document(reader, "nowhere", now=NOW) is None


async def test_the_size_says_what_is_due_to_go(state_dir: Path, journal: Journal) -> None:
    for name, ended in (("old", NOW), ("older", NOW - 5 * DAY), ("young", NOW + 9 * DAY)):
        await answered(journal, name, now=ended, answer="x" * 1000)
    await journal.accept(message("waits"), inbox_limit=9, limit_bytes=1 << 30)
    (state_dir / "uploads" / "a").mkdir(parents=True)
    (state_dir / "uploads" / "a" / "file").write_bytes(b"12345")
    with Reader.open(state_dir) as reader:
        found = measure(reader, limit_bytes=77, retention=5 * DAY, now=NOW + 10 * DAY + 1)
    assert found["due"] == {"turns": 2, "characters": 2000}
    assert found["rows"]["turns"] == 4
    assert found["rows"]["messages"] == 1
    assert found["uploads"] == {"files": 1, "bytes": 5}
    assert found["oldest"] == {"id": "turn-old", "state": "answered", "accepted_at": NOW}
    assert found["limit_bytes"] == 77
    assert found["log_bytes"] > 0
    assert found["counted_bytes"] == journal.size_bytes()
