from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from workspace_adapter.errors import JournalTooNew
from workspace_adapter.sidecar.journal import Journal, Reader, schema
from workspace_adapter.turns import ENDED, State

from .made import NOW, accept, answered, call, message, running


async def test_a_newer_schema_is_refused_and_left_as_it_is(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await running(journal)
    await journal.close()
    path = state_dir / "journal.db"
    newer = len(schema.MIGRATIONS) + 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    before = path.read_bytes()
    with pytest.raises(JournalTooNew, match=rf"schema {newer}, this one knows {newer - 1}.*upgrade"):
        await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    with pytest.raises(JournalTooNew):
        Reader.open(state_dir)
    assert path.read_bytes() == before
    assert not list(state_dir.glob("*damaged*"))


def test_migrations_bring_an_older_file_forward_one_version_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    steps = (
        "CREATE TABLE a (x)",
        "ALTER TABLE a ADD COLUMN y; INSERT INTO a VALUES (1, 2)",
        "CREATE TABLE b (z)",
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema.migrate(connection, path, steps[:1])
        connection.execute("INSERT INTO a VALUES (0)")
        schema.migrate(connection, path, steps)
        schema.migrate(connection, path, steps)
        assert schema.check(connection, path, steps) == 3
        assert connection.execute("SELECT * FROM a").fetchall() == [(0, None), (1, 2)]


def test_a_migration_that_fails_leaves_its_version_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    steps = ("CREATE TABLE a (x)", "CREATE TABLE b (y); CREATE TABLE a (again)")
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as connection,
        pytest.raises(sqlite3.OperationalError),
    ):
        schema.migrate(connection, path, steps)
    with closing(sqlite3.connect(path)) as connection:
        assert schema.check(connection, path) == 1
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]


async def test_the_file_is_durable_by_its_own_settings(journal: Journal, state_dir: Path) -> None:
    for connection, autocheckpoint in ((journal._files.writing, 0), (journal._files.passing, 1000)):
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (autocheckpoint,)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        journal._reading.execute("DELETE FROM turns")


async def test_ended_at_is_set_exactly_while_the_turn_has_ended(journal: Journal) -> None:
    """Indexes and queries rely on it."""
    await accept(journal, message("m1"))
    await running(journal, "m2")
    await answered(journal, "m3")
    for name, to in (("m4", State.PARKED), ("m5", State.INTERRUPTED), ("m6", State.FAILED)):
        turn = await running(journal, name)
        await journal.finish(turn.id, attempt=1, to=to, cause="", now=NOW)
    for turn in journal.turns():
        assert (turn.ended_at is not None) is (turn.state in ENDED)
    accepted = journal._reading.execute("SELECT count(*) FROM turns WHERE ended_at IS NULL").fetchone()
    assert accepted == (4,)


async def test_no_statement_walks_a_whole_table(journal: Journal) -> None:
    """Everything is found by an index, however long the journal has been kept."""
    statements: set[str] = set()
    for connection in (journal._files.writing, journal._reading):
        connection.set_trace_callback(statements.add)
    turn = await running(journal, "m1", caller="alice")
    await journal.permit(turn.id, 1, call(), now=NOW)
    await journal.ask(turn.id, 1, call("c2"), now=NOW)
    await journal.withdraw(turn.id, 1, "c2", now=NOW)
    await journal.end_call(turn.id, 1, "c1", ok=True, now=NOW)
    await journal.settle([turn.id])
    await journal.unsettle()
    await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", answer="x" * 300_000, now=NOW)
    journal.delivered(turn.id, now=NOW, forget=True)
    await journal.prune(retention=0, now=NOW + 1)
    journal.turns(states=[State.ACCEPTED], session_id="s", caller="c", before_seq=9)
    journal.turns_of_task("task")
    journal.unfinished()
    journal.counts()
    journal.message(turn.id)
    journal.events(turn.id)
    journal.session("session")
    journal.previous_in_session(turn)
    journal.notice("session")
    journal.untold()
    for connection in (journal._files.writing, journal._reading):
        connection.set_trace_callback(None)
    looked = [s for s in statements if s.split()[0] in ("SELECT", "UPDATE", "DELETE")]
    assert len(looked) > 25
    for statement in looked:
        for _, _, _, plan in journal._files.writing.execute(f"EXPLAIN QUERY PLAN {statement}"):
            few = (
                "SCAN owner",
                "SCAN (subquery",
                "SCAN CONSTANT ROW",
                "SCAN turns USING INDEX turns_unfinished",
            )
            assert plan.startswith(few) or not plan.startswith("SCAN") or "COVERING INDEX" in plan, (
                statement,
                plan,
            )
