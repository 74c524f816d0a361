from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from workspace_adapter.errors import JournalUnavailable
from workspace_adapter.sidecar.journal import Journal, schema
from workspace_adapter.turns import State

from ...walks import disk
from .made import NOW, accept, answered, child, message, running


async def test_a_full_disk_loses_nothing_says_so_and_heals_by_itself(state_dir: Path) -> None:
    with child("fill", state_dir) as process:
        assert process.stdout is not None
        full, large, collected, healed = process.stdout.read().splitlines()
    taken, refused = full.split(" ", 1)
    assert int(taken) > 0
    assert refused.startswith(f"[False] {state_dir}/journal.db cannot be written: ")
    assert refused.endswith("Nothing was acknowledged")
    assert large.startswith(f"{state_dir}/")
    assert "cannot be written: " in large
    assert collected == f"True {taken}"
    assert healed == "[False, True]"
    journal = await Journal.open(state_dir, boot_id="next", now=NOW)
    names = {turn.message_id for turn in journal.turns(limit=10_000)}
    assert names == {"before", "after", *(f"m{n}" for n in range(1, int(taken) + 1))}
    assert journal.calls("turn-before")[0].unknown
    assert list((state_dir / "blobs").iterdir()) == []
    await journal.close()


async def test_a_disk_with_room_for_one_commit_more_is_not_healed(tmp_path: Path) -> None:
    with disk.small(tmp_path / "state") as state_dir:
        journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
        ballast = disk.fill(state_dir)
        os.truncate(ballast, ballast.stat().st_size - (128 << 10))
        await journal.probe()
        with pytest.raises(JournalUnavailable, match="No space left"):
            await journal.probe(room=True)
        ballast.unlink()
        await journal.probe(room=True)
        assert list((state_dir / "blobs").iterdir()) == []
        await journal.close()


@pytest.mark.parametrize("file", ["journal.db", "journal.db-wal"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_unlinked_or_replaced_under_us_is_noticed_before_anything_is_acknowledged(
    state_dir: Path, file: str, replaced: bool
) -> None:
    health: list[bool] = []
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW, on_health=health.append)
    await accept(journal, message("m1"))
    (state_dir / file).rename(state_dir / "elsewhere")
    if replaced:
        (state_dir / file).touch()
    what = "replaced" if replaced else "removed"
    with pytest.raises(JournalUnavailable, match=rf"{file} was {what} while in use.*would be lost"):
        await accept(journal, message("m2"))
    with pytest.raises(JournalUnavailable):
        await journal.probe()
    assert health == [False]
    (state_dir / "elsewhere").rename(state_dir / file)
    await journal.probe()
    assert health == [False, True]
    await journal.close()


async def test_a_journal_somebody_else_has_locked_is_unavailable_and_no_longer(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_PATIENCE", 0.05)
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable, match="database is locked"):
            await accept(journal, message("m1"))
        shell.execute("ROLLBACK")
    assert not (await accept(journal, message("m1"))).joined
    await journal.close()


async def test_when_a_commit_fails_all_in_it_are_told_and_nothing_of_it_stays(state_dir: Path) -> None:
    health: list[bool] = []
    heard: list[str] = []
    journal = await Journal.open(
        state_dir, boot_id="boot-1", now=NOW, on_health=health.append, on_change=heard.append
    )
    turn = await running(journal)
    journal._files.writing.set_authorizer(_no_commit)
    for ask in (
        accept(journal, message("m2")),
        accept(journal, message("m3", message=b"x" * 300_000)),
        journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", answer="y" * 300_000, now=NOW),
    ):
        with pytest.raises(JournalUnavailable, match="not authorized"):
            await ask
    journal._files.writing.set_authorizer(None)
    assert journal.turns() == [turn]
    assert heard == [turn.id]
    await answered(journal, "m4")
    assert list((state_dir / "blobs").iterdir()) == []
    assert health == [False, True]
    await journal.close()


def _no_commit(action: int, argument: str | None, *_: str | None) -> int:
    committing = action == sqlite3.SQLITE_TRANSACTION and argument == "COMMIT"
    return sqlite3.SQLITE_DENY if committing else sqlite3.SQLITE_OK


async def test_a_journal_that_cannot_be_opened_now_may_be_opened_later(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_PATIENCE", 0.05)
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await accept(journal, message("m1"))
    await journal.close()
    with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as shell:
        shell.execute("PRAGMA locking_mode=EXCLUSIVE")
        shell.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalUnavailable, match=r"journal\.db cannot be opened now: .*locked"):
            await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    again = await Journal.open(state_dir, boot_id="boot-2", now=NOW, patience=0)
    assert again.salvaged is None
    assert len(again.turns()) == 1
    await again.close()
