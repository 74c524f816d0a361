from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from workspace_adapter.errors import JournalTaken, JournalUnavailable
from workspace_adapter.events import SessionHandle
from workspace_adapter.sidecar.journal import Journal, NewEvent, Reader, verbs
from workspace_adapter.sidecar.journal import journal as room
from workspace_adapter.turns import State

from ...conftest import require
from .made import ANSWERED, NOW, accept, answered, call, message, running, scalar

NEEDLE = "needle"


def holding(state_dir: Path) -> list[str]:
    files = (path for path in state_dir.rglob("*") if path.is_file())
    return [path.name for path in files if NEEDLE.encode() in path.read_bytes()]


async def talk(journal: Journal, turns: int) -> None:
    """Fill a journal so that its pages split and merge: two sessions, every other turn with needles."""
    rng = random.Random(7)
    for number in range(turns):
        word = NEEDLE if number % 2 else "hay"
        name = f"{rng.getrandbits(64):x}"
        body = f'{{"text": "{word}{"m" * rng.choice([50, 900, 9000])}"}}'.encode()
        turn = await running(journal, name, session_id=word, message=body)
        for _ in range(rng.randint(1, 4)):
            text = word + "e" * rng.choice([30, 200, 800, 2500])
            await journal.append(turn.id, 1, [NewEvent(kind="text", body={"text": text})], now=NOW)
        await journal.permit(turn.id, 1, call(arguments=word), now=NOW)
        answer = word + "a" * rng.choice([30, 500, 5000])
        await journal.finish(
            turn.id, attempt=1, to=State.ANSWERED, cause="", outcome=ANSWERED, answer=answer, now=NOW
        )


async def test_a_session_goes_with_all_that_is_its_and_no_other(state_dir: Path, journal: Journal) -> None:
    await talk(journal, 100)
    assert await journal.forget(NEEDLE, through=1 << 60) == 50
    assert journal.session(NEEDLE) is None
    assert len(journal.turns(session_id="hay", limit=1000)) == 50
    file = state_dir / "journal.db"
    assert scalar(file, "SELECT count(*) FROM calls") == 50
    assert scalar(file, "SELECT count(*) FROM events WHERE turn_id NOT IN (SELECT id FROM turns)") == 0
    assert journal.has_traces
    await journal.drive_out()
    assert not journal.has_traces
    assert holding(state_dir) == []
    assert await journal.forget(NEEDLE, through=1 << 60) == 0


async def test_turns_that_came_later_or_have_not_ended_stay_in_a_session_without_a_past(
    journal: Journal,
) -> None:
    old = await answered(journal, "old")
    new = await answered(journal, "new")
    await running(journal, "now")
    await journal.bind("session", SessionHandle("h"))
    assert await journal.forget("session", through=old.seq) == 1
    assert [turn.message_id for turn in journal.turns()] == ["now", "new"]
    session = journal.session("session")
    assert session is not None
    assert session.handle is None
    assert await journal.forget("session", through=1 << 60) == 1
    assert journal.turn(new.id) is None
    assert [turn.message_id for turn in journal.turns()] == ["now"]


async def test_a_large_body_goes_unless_another_session_has_the_same(
    state_dir: Path, journal: Journal
) -> None:
    for name in ("ours", "theirs"):
        await running(journal, name, session_id=name)
        await journal.finish(
            f"turn-{name}",
            attempt=1,
            to=State.ANSWERED,
            cause="",
            outcome=ANSWERED,
            answer="x" * 300_000,
            now=NOW,
        )
    await journal.forget("ours", through=1 << 60)
    assert len(list((state_dir / "blobs").iterdir())) == 1
    await journal.forget("theirs", through=1 << 60)
    await journal.probe()  # files are dropped after the commit, before the next
    assert list((state_dir / "blobs").iterdir()) == []


async def test_what_one_life_deleted_the_next_still_knows_to_drive_out(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await talk(journal, 60)
    await journal.forget(NEEDLE, through=1 << 60)
    await journal.close()
    assert holding(state_dir) == ["journal.db"]
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.has_traces
    await journal.drive_out()
    await journal.close()
    assert holding(state_dir) == []


async def test_without_room_for_temporary_files_the_copy_is_made_beside_the_journal(
    state_dir: Path, tmp_path: Path
) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    for number in range(30):
        await answered(journal, f"m{number}", answer="x" * 200_000)
    await journal.close()
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    mounted = subprocess.run(mount, stderr=subprocess.DEVNULL, timeout=10, check=False)
    require(mounted.returncode == 0, "only who may mount has a small file system")
    files = {path.name for path in state_dir.iterdir()}
    try:
        vacuum = subprocess.run(  # SQLite looks once where its temporary files go
            [sys.executable, "-m", "workspace_adapter", "journal", "vacuum", "--full"],
            env={"WORKSPACE_STATE_DIR": str(state_dir), "SQLITE_TMPDIR": str(small)},
            timeout=20,
            check=False,
        )
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=10)
    assert vacuum.returncode == 0
    assert {path.name for path in state_dir.iterdir()} == files


async def test_messages_are_accepted_while_a_file_is_written_anew(journal: Journal, state_dir: Path) -> None:
    await talk(journal, 100)
    async with anyio.create_task_group() as both:
        both.start_soon(journal.drive_out)
        for number in range(50):
            await accept(journal, message(f"meanwhile-{number}"))
    assert len(journal.turns(limit=1000)) == 150
    with Reader.open(state_dir) as reader:
        assert len(reader.turns(limit=1000)) == 150


async def test_who_reads_all_the_while_is_named_as_what_keeps_the_log(
    journal: Journal, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LOG_PATIENCE", 0.1)
    await talk(journal, 10)
    with Reader.open(state_dir) as reader:
        with reader.snapshot():
            assert reader.turns()
            await journal.forget(NEEDLE, through=1 << 60)
            with pytest.raises(JournalUnavailable, match="somebody reads the journal"):
                await journal.drive_out()
            assert journal.has_traces
        await journal.drive_out()
    assert not journal.has_traces
    assert holding(state_dir) == []


async def test_what_is_forgotten_while_a_file_is_written_anew_is_not_taken_for_driven_out(
    journal: Journal, state_dir: Path
) -> None:
    await talk(journal, 10)
    await journal.forget("hay", through=1 << 60)
    with Reader.open(state_dir) as reader:
        async with anyio.create_task_group() as tasks:
            with reader.snapshot():
                assert reader.turns()
                tasks.start_soon(journal.drive_out)
                await anyio.lowlevel.checkpoint()
                await journal._writer.between(lambda connection: None)  # behind the first step of it
                await journal.forget(NEEDLE, through=1 << 60)
    assert journal.has_traces
    await journal.drive_out()
    assert holding(state_dir) == []


async def test_unused_pages_are_given_back_in_slices(journal: Journal, state_dir: Path) -> None:
    for number in range(30):
        await answered(journal, f"m{number}", answer="x" * 100_000)
    await journal.forget("session", through=1 << 60)
    before = journal.file_bytes()
    free = scalar(state_dir / "journal.db", "PRAGMA freelist_count")
    assert await journal._writer.run(verbs.give_back) == free - verbs.SLICE_PAGES
    assert scalar(state_dir / "journal.db", "PRAGMA freelist_count") == free - verbs.SLICE_PAGES
    await journal.vacuum()
    assert scalar(state_dir / "journal.db", "PRAGMA freelist_count") == 0
    assert journal.file_bytes() < 200_000 < 3_000_000 < before
    await accept(journal, message("next"))


async def test_a_file_that_gives_no_page_back_is_not_asked_for_ever(state_dir: Path) -> None:
    await (await Journal.open(state_dir, boot_id="boot-1", now=NOW)).close()
    with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as person:
        person.executescript("PRAGMA auto_vacuum=NONE; VACUUM")  # as who reads a dump into a new file
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    for number in range(5):
        await answered(journal, f"m{number}", answer="x" * 250_000)
    with anyio.fail_after(5):
        assert await journal.prune(retention=0, now=NOW + 1) == 5
        await journal.vacuum()
    assert scalar(state_dir / "journal.db", "PRAGMA freelist_count") > verbs.SLICE_PAGES
    await journal.close()


async def test_who_no_longer_owns_the_journal_writes_nothing_anew(journal: Journal, state_dir: Path) -> None:
    await talk(journal, 4)
    with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as other:
        other.execute("UPDATE owner SET boot_id = 'other'")
    with pytest.raises(JournalTaken):
        await journal.drive_out()


async def test_a_notice_is_forgotten_with_its_session_though_a_later_turn_stays(journal: Journal) -> None:
    noted = await journal.answer_at_once(message("n"), answer="noted", notice=NEEDLE, limit_bytes=1 << 40)
    await accept(journal, message("later"))
    await journal.forget("session", through=noted.turn.seq)
    assert journal.notice("session") is None
    assert len(journal.turns()) == 1
