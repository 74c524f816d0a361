"""Journals of older and newer versions, and an upgrade that is killed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from workspace_adapter.sidecar.journal import Journal, Reader, salvage, schema
from workspace_adapter.turns import Notice, State

from .made import NOW, accept, answered, call, message, running, scalar, started

VERSION_1 = (Path(__file__).parent / "version_1.sql").read_text()

LARGE = 120_000
"""Rows that a slow step of an upgrade writes; enough for a WAL that grows before the commit."""

STEPS = (
    "ALTER TABLE turns ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'; UPDATE turns SET colour = message_id",
    "CREATE TABLE colours AS WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n"
    f" WHERE i < {LARGE}) SELECT i, hex(randomblob(100)) AS name FROM n",
)


def upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process a later version, which cannot do without what its steps have made."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *STEPS))
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES, "colours"))
    for name in ("SELECT_UNFINISHED", "SELECT_UNDELIVERED"):
        query = getattr(salvage, name).replace("ended_at IS", "colour IS NOT NULL AND ended_at IS", 1)
        monkeypatch.setattr(salvage, name, query)


def lay(state_dir: Path, sql: str, version: int) -> Path:
    state_dir.mkdir(exist_ok=True)
    path = state_dir / schema.FILE
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.executescript(sql)
        connection.execute(f"PRAGMA user_version = {version}")
    return path


async def test_a_journal_of_version_1_is_read_and_gone_on_from(state_dir: Path) -> None:
    lay(state_dir, VERSION_1, 1)
    with Reader.open(state_dir) as reader:
        assert len(reader.turns()) == 10
    journal = await Journal.open(state_dir, boot_id="later", now=NOW + 60)
    assert {turn.message_id: str(turn.state) for turn in journal.turns()} == {
        **{str(state): str(state) for state in State},
        "delivered": "answered",
    }
    unfinished = journal.unfinished()
    assert [turn.message_id for turn in unfinished] == ["accepted", "running", "parked", "interrupted"]
    for turn in unfinished:
        assert journal.message(turn.id) == f'{{"messageId": "{turn.message_id}"}}'.encode()
    answer = journal.turn_by_key("key-answered")
    assert answer is not None
    assert answer.answer == "the answer"
    assert [(c.started, c.unknown) for c in journal.calls("turn-running")] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert [event.body for event in journal.events("turn-running")] == [{"text": "so far"}]
    assert [child.what for child in journal.children()] == ["claude"]
    session = journal.session("session")
    assert session is not None
    assert session.handle == "handle-1"
    assert await journal.release("turn-suspended", now=NOW + 60) is not None
    for name in ("accepted", "parked", "suspended", "failed", "expired"):
        ready = journal.turn(f"turn-{name}")
        assert ready is not None
        assert (await started(journal, ready)).state is State.RUNNING
    assert (await accept(journal, message("answered"))).joined
    await journal.close()


async def test_an_upgrade_keeps_everything_and_cannot_be_undone_by_accident(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lay(state_dir, VERSION_1, 1)
    with monkeypatch.context() as later:
        upgraded(later)
        journal = await Journal.open(state_dir, boot_id="later", now=NOW)
        assert len(journal.turns()) == 10
        await running(journal, "new")
        await journal.close()
    assert scalar(path, "PRAGMA user_version") == len(schema.MIGRATIONS) + len(STEPS)
    assert scalar(path, "SELECT count(*) FROM turns WHERE colour = message_id") == 10
    assert scalar(path, "SELECT colour FROM turns WHERE message_id = 'new'") == "blue"
    assert not list(state_dir.glob("*damaged*"))


UPGRADE = """
import sys
from pathlib import Path
from tests.sidecar.journal import test_upgrade
from workspace_adapter.sidecar.journal import schema
path = Path(sys.argv[1])
connection = schema.connect(path)
connection.execute("PRAGMA journal_mode=WAL").fetchone()
connection.execute("PRAGMA cache_size=10").fetchone()
schema.migrate(connection, path, (*schema.MIGRATIONS, *test_upgrade.STEPS))
"""


async def test_an_upgrade_that_is_killed_goes_on_where_it_was(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lay(state_dir, VERSION_1, 1)
    root = Path(__file__).parents[3]
    upgrade = subprocess.Popen([sys.executable, "-c", UPGRADE, str(path)], cwd=root)
    log = path.with_name(path.name + "-wal")
    with anyio.fail_after(20):
        while not (log.exists() and log.stat().st_size > 2 << 20):
            assert upgrade.poll() is None, "the upgrade was over before it could be killed"
            await anyio.sleep(0.001)
    upgrade.kill()
    upgrade.wait()
    assert scalar(path, "PRAGMA user_version") == len(schema.MIGRATIONS) + 1
    assert scalar(path, "SELECT count(*) FROM sqlite_master WHERE name = 'colours'") == 0
    upgraded(monkeypatch)
    journal = await Journal.open(state_dir, boot_id="later", now=NOW)
    assert len(journal.unfinished()) == 4
    await journal.close()
    assert scalar(path, "SELECT count(*) FROM turns WHERE colour = message_id") == 10
    assert scalar(path, "SELECT count(*) FROM colours") == LARGE


@pytest.mark.parametrize("torn", ["turns", "sqlite_master"])
async def test_a_damaged_journal_of_an_older_version_is_saved_and_upgraded(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    for n in range(40):
        await answered(journal, f"m{n}", answer="x" * 1000)
    turn = await running(journal, "runs")
    await journal.permit(turn.id, 1, call(), now=NOW)
    await journal.close()
    path = state_dir / schema.FILE
    page = (
        1
        if torn == "sqlite_master"
        else scalar(path, "SELECT rootpage FROM sqlite_master WHERE name = 'turns'")
    )
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096 + (100 if page == 1 else 0))
        file.write(b"\xff" * 500)
    upgraded(monkeypatch)
    journal = await Journal.open(state_dir, boot_id="later", now=NOW)
    assert journal.salvaged is not None
    assert journal.salvaged["copied"]["sessions"] == 1
    assert (await running(journal, "new")).state is State.RUNNING
    await journal.close()
    assert scalar(path, "PRAGMA user_version") == len(schema.MIGRATIONS)
    assert scalar(path, "SELECT count(*) FROM colours") == LARGE
    assert len(list(state_dir.glob("*.damaged-*"))) >= 1


async def test_version_1_learns_what_the_platform_is_told_and_tells(state_dir: Path) -> None:
    lay(state_dir, VERSION_1, 1)
    journal = await Journal.open(state_dir, boot_id="later", now=NOW + 60)
    assert journal.notice("session") is None
    assert journal.untold() == []
    new = message("notice", turn_id="turn-notice")
    await journal.answer_at_once(new, answer="noted", notice="A is set", limit_bytes=1 << 40)
    accepted = await accept(journal, message("asked", canvas=True))
    turn = await journal.start(
        accepted.turn.id,
        expect=State.ACCEPTED,
        attempt=0,
        strikes=0,
        cut=None,
        notice=journal.notice("session"),
        with_message=True,
        now=NOW + 61,
    )
    await journal.finish(turn.id, attempt=1, to=State.FAILED, cause="it broke", now=NOW + 62)
    await journal.close()
    journal = await Journal.open(state_dir, boot_id="still later", now=NOW + 63)
    assert journal.notice("session") == Notice(
        text="A is set", of="turn-notice", given_to=turn.id, attempt=1, with_message=True
    )
    assert journal.untold() == [turn.id]
    await journal.notified(turn.id, 1, now=NOW + 64)
    assert journal.untold() == []
    await journal.close()


@pytest.mark.parametrize("torn", ["turns", "sqlite_master"])
async def test_a_damaged_journal_that_was_upgraded_is_saved_as_any_other(state_dir: Path, torn: str) -> None:
    """Its schema's pages and its tables' roots are where they are in one of the newest version."""
    state_dir.mkdir()
    path = state_dir / schema.FILE
    schema.build(path, journal_id="x", version=1).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)", [(f"before {n}", "x" * 500) for n in range(200)]
        )
        connection.commit()
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    for n in range(40):
        await answered(journal, f"m{n}", answer="x" * 1000)
    await journal.answer_at_once(message("n"), answer="noted", notice="A is set", limit_bytes=1 << 40)
    await journal.close()
    page = (
        1
        if torn == "sqlite_master"
        else scalar(path, "SELECT rootpage FROM sqlite_master WHERE name = 'turns'")
    )
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096 + (100 if page == 1 else 0))
        file.write(b"\xff" * 500)
    journal = await Journal.open(state_dir, boot_id="later", now=NOW)
    assert journal.salvaged is not None
    assert journal.salvaged["copied"]["meta"] >= 200
    if torn == "sqlite_master":
        assert journal.salvaged["lost"] == dict.fromkeys(schema.TABLES, 0)
        assert len(journal.turns()) == 41
    notice = journal.notice("session")
    assert notice is not None
    assert notice.text == "A is set"
    await journal.close()
