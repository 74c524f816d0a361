from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from workspace_adapter.errors import JournalDamaged, JournalUnavailable
from workspace_adapter.sidecar.journal import Journal, NewEvent, Reader, schema
from workspace_adapter.sidecar.journal.writer import Transaction
from workspace_adapter.turns import State, Turn

from .made import NOW, accept, answered, call, message, running, scalar

PAGE = 4096


async def filled(state_dir: Path) -> list[Turn]:
    """Make a journal of many pages, closed; return its turns."""
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    async with anyio.create_task_group() as tasks:
        for n in range(120):
            tasks.start_soon(_turn, journal, n)
    turns = journal.turns(limit=1000)
    await journal.child_started(1, "init")
    await journal.close()
    return turns


async def _turn(journal: Journal, n: int) -> None:
    name = f"m{n}"
    if n % 3 == 0:
        await accept(journal, message(name, session_id=f"s{n}", message=b"x" * (n * 40)))
    else:
        turn = await running(journal, name, session_id=f"s{n}", message=b"x" * (n * 40))
        await journal.permit(turn.id, 1, call(), now=NOW)
        await journal.append(
            turn.id, 1, [NewEvent(kind="text", body={"text": "y" * n * 10})] * (n % 9), now=NOW
        )
        if n % 3 == 1:
            await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", answer=name * n, now=NOW)


def lost(salvaged: dict[str, dict[str, int]], table: str) -> int:
    return salvaged["lost"][table]


async def test_a_sound_journal_is_not_salvaged(state_dir: Path) -> None:
    turns = await filled(state_dir)
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is None
    assert journal.turns(limit=1000) == turns
    await journal.close()


async def test_a_life_killed_while_it_gave_the_file_its_log_is_in_nobodys_way(state_dir: Path) -> None:
    turns = await filled(state_dir)
    path = state_dir / "journal.db"
    undone = path.with_name("journal.db-journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as killed:
        killed.execute("PRAGMA journal_mode=DELETE")
        killed.execute("PRAGMA cache_size=1")
        killed.executescript("BEGIN; UPDATE turns SET cause = 'half done'")
        halves = {half: half.read_bytes() for half in (path, undone)}
        killed.execute("ROLLBACK")
    for half, content in halves.items():
        half.write_bytes(content)
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is None
    assert journal.turns(limit=1000) == turns
    await journal.close()
    assert not undone.exists()


@pytest.mark.parametrize(
    "wreck", ["empty", "garbage", "short garbage", "one byte", "zeroes", "another database"]
)
async def test_a_file_with_nothing_to_save_moves_aside_and_an_empty_journal_takes_its_place(
    state_dir: Path, wreck: str
) -> None:
    await filled(state_dir)
    path = state_dir / "journal.db"
    size = path.stat().st_size
    content = {
        "empty": b"",
        "garbage": random.Random(1).randbytes(size),
        "short garbage": b"this is no journal",
        "one byte": b"S",
        "zeroes": bytes(size),
    }
    if wreck == "another database":
        path.unlink()
        shutil.copyfile(_other_database(state_dir.parent), path)
    else:
        path.write_bytes(content[wreck])
    damaged = path.read_bytes()
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    salvaged = journal.salvaged
    assert salvaged is not None
    assert salvaged["why"]
    assert (state_dir / salvaged["moved_to"]).read_bytes() == damaged
    await answered(journal, "m1")
    await journal.close()
    journal = await Journal.open(state_dir, boot_id="boot-3", now=NOW)
    assert journal.salvaged is None
    assert len(journal.turns()) == 1
    await journal.close()


def _other_database(directory: Path) -> Path:
    path = directory / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE turns (x)")
    connection.close()
    return path


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
async def test_of_a_truncated_file_everything_readable_is_kept_and_the_rest_is_counted(
    state_dir: Path, kept: float
) -> None:
    turns = await filled(state_dir)
    path = state_dir / "journal.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(size * kept))
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is not None
    found = journal.turns(limit=1000)
    assert all(turn in turns for turn in found)
    if len(found) < len(turns):
        assert lost(journal.salvaged, "turns") > 0
    assert journal.salvaged["copied"]["turns"] == len(found)
    if kept >= 0.9:
        assert len(found) > len(turns) / 2
    await answered(journal, "next")
    await journal.close()


async def test_a_damaged_page_costs_no_more_than_what_stood_on_it(state_dir: Path, tmp_path: Path) -> None:
    turns = {turn.id: turn for turn in await filled(state_dir)}
    whole = (state_dir / "journal.db").read_bytes()
    pages = len(whole) // PAGE
    salvages, late, missed = 0, 0, [0]
    for page in range(pages):
        damaged = tmp_path / f"page-{page}"
        damaged.mkdir()
        noise = random.Random(page).randbytes(PAGE)
        (damaged / "journal.db").write_bytes(whole[: page * PAGE] + noise + whole[(page + 1) * PAGE :])
        journal = await Journal.open(damaged, boot_id="boot-2", now=NOW)
        if journal.salvaged is None:
            # Not looked at during a boot: pages of what was delivered, of logs, of indexes.
            assert journal.unfinished() == [
                turn for turn in reversed(turns.values()) if turn.state in (State.ACCEPTED, State.RUNNING)
            ]
            try:
                if page % 4 == 0:
                    await _use(journal)
            except JournalDamaged:
                late += 1
                await journal.close()
                journal = await Journal.open(damaged, boot_id="boot-3", now=NOW)
                assert journal.salvaged is not None, page
        if journal.salvaged is not None:
            salvages += 1
            found = [turn for turn in journal.turns(limit=1000) if turn.id != "turn-met"]
            assert all(turns[turn.id] == turn for turn in found)
            missing = len(turns) - len(found)
            assert missing <= lost(journal.salvaged, "turns")
            missed.append(missing)
            with_message = [turn for turn in journal.unfinished() if journal.message(turn.id) is not None]
            assert len(journal.unfinished()) - len(with_message) <= lost(journal.salvaged, "messages")
            assert journal.children() or lost(journal.salvaged, "children")
            await answered(journal, "next")
        journal.check()
        await journal.close()
        assert not list(damaged.glob("*.suspect"))
    assert salvages > pages / 4
    assert late > 2
    # A leaf holds some dozen small turns. One page, the root, holds the way to all of them.
    assert sorted(missed)[-2] < 40


@pytest.mark.parametrize("removable", [True, False])
async def test_a_note_of_damage_that_cannot_be_read_means_damage_all_the_same(
    state_dir: Path, removable: bool
) -> None:
    turns = await filled(state_dir)
    note = state_dir / "journal.db.suspect"
    if removable:
        note.symlink_to(note.name)  # as another user's: its name is ours to remove, its content not to read
    else:
        note.mkdir()
    for life in (2, 3):
        journal = await Journal.open(state_dir, boot_id=f"boot-{life}", now=NOW + life)
        assert (journal.salvaged is not None) is (life == 2 or not removable)
        assert journal.turns(limit=1000) == turns
        await journal.close()


async def _use(journal: Journal) -> None:
    """Read and write whatever a workspace does."""
    for turn in journal.turns(limit=1000):
        assert journal.turn_by_key(turn.turn_key) == turn
        journal.turns_of_task(turn.task_id)
        journal.previous_in_session(turn)
        journal.session(turn.session_id)
        journal.events(turn.id)
        journal.calls(turn.id)
    journal.counts()
    await answered(journal, "met")
    journal.delivered("turn-met", now=NOW - 1)
    await journal.prune(retention=0.5, now=NOW)


async def test_damage_met_in_life_stops_all_writing_and_is_mended_by_the_next_start(state_dir: Path) -> None:
    turns = await filled(state_dir)
    path = state_dir / "journal.db"
    root = scalar(path, "SELECT rootpage FROM sqlite_master WHERE name = 'turns_by_session'")
    content = bytearray(path.read_bytes())
    content[(root - 1) * PAGE : root * PAGE] = random.Random(1).randbytes(PAGE)
    path.write_bytes(content)
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is None
    journal.check()
    with pytest.raises(
        JournalDamaged, match=r"journal\.db is damaged \(.*malformed\): the next start of the sidecar"
    ):
        journal.previous_in_session(turns[0])
    with pytest.raises(JournalDamaged):
        journal.check()
    with pytest.raises(JournalDamaged):
        await journal.probe()
    assert len(journal.turns(limit=1000)) == 120, "what can be read is"
    await journal.close()
    journal = await Journal.open(state_dir, boot_id="boot-3", now=NOW)
    assert journal.salvaged is not None
    assert "an earlier life found" in journal.salvaged["why"]
    assert sum(journal.salvaged["lost"].values()) == 0
    assert journal.turns(limit=1000) == turns
    await journal.close()
    journal = await Journal.open(state_dir, boot_id="boot-4", now=NOW)
    assert journal.salvaged is None
    await journal.close()


async def test_a_row_that_holds_what_was_never_written_does_not_end_the_writer(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    turn = await running(journal, "m1")
    await journal.append(turn.id, 1, [NewEvent(kind="text", body={"text": "x"})] * 2, now=NOW)

    def spoil(tx: Transaction) -> None:
        tx.execute("UPDATE turns SET outcome = '{'")
        tx.execute("UPDATE events SET body = '{' WHERE n = 1")

    await journal._writer.run(spoil)
    with pytest.raises(JournalDamaged, match="no outcome"):
        await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", now=NOW)
    with pytest.raises(JournalDamaged):
        await journal.probe()
    await journal.close()
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is not None
    assert lost(journal.salvaged, "events") == 1
    assert [event.n for event in journal.events(turn.id)] == [2]
    assert journal.unfinished()[0].outcome is None
    await journal.close()


async def test_damage_an_operator_meets_is_mended_by_the_next_start(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await answered(journal, "m1")
    await journal.close()
    path = state_dir / "journal.db"
    path.write_bytes(path.read_bytes().replace(b'"kind": "answered"', b'"kind"; "answered"'))
    with (
        Reader.open(state_dir) as reader,
        pytest.raises(JournalDamaged, match="the next start of the sidecar"),
    ):
        reader.turns(limit=1000)
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is not None
    assert [turn.answer for turn in journal.turns()] == ["done"]
    await journal.close()


async def test_of_half_a_small_journal_what_was_lost_is_counted(state_dir: Path) -> None:
    """Some of its tables begin past the end of what is left."""
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    before = journal.id
    for n in range(30):
        await answered(journal, f"m{n}")
    await journal.close()
    path = state_dir / "journal.db"
    with path.open("r+b") as file:
        file.truncate(16 * PAGE)
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.salvaged is not None
    assert lost(journal.salvaged, "turns") + len(journal.turns(limit=1000)) == 30
    assert journal.id == before
    await journal.close()


async def test_a_torn_schema_costs_nothing(state_dir: Path) -> None:
    turns = await filled(state_dir)
    path = state_dir / "journal.db"
    before = await _identity(state_dir)
    for bad in (bytes(PAGE), b"\0" + path.read_bytes()[1:PAGE], random.Random(1).randbytes(PAGE)):
        with path.open("r+b") as file:
            file.write(bad)
        journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
        assert journal.salvaged is not None
        assert sum(journal.salvaged["lost"].values()) == 0
        assert journal.turns(limit=1000) == turns
        assert journal.id == before
        assert [child.what for child in journal.children()] == ["init"]
        await journal.close()
    assert {file.name.split(".")[2] for file in state_dir.glob("journal.db.*")} == {
        file.name.split(".")[2] for file in state_dir.glob("journal.db.damaged-*")
    }


async def _identity(state_dir: Path) -> str:
    with Reader.open(state_dir) as reader:
        ((journal_id,),) = reader._rows("SELECT value FROM meta WHERE key = 'id'")
        return str(journal_id)


async def test_what_stands_only_in_the_log_is_salvaged_too(state_dir: Path, tmp_path: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    for n in range(30):
        await running(journal, f"m{n}")
    copied = tmp_path / "copied"
    process = await anyio.run_process(["cp", "-r", str(state_dir), str(copied)])
    assert process.returncode == 0
    await journal.close()
    assert (copied / "journal.db-wal").stat().st_size > 30 * PAGE
    with (copied / "journal.db").open("r+b") as file:
        file.write(bytes(100))
    journal = await Journal.open(copied, boot_id="boot-2", now=NOW)
    assert journal.salvaged is not None
    assert len(journal.turns()) == 30
    aside = copied / journal.salvaged["moved_to"]
    assert aside.with_name(aside.name + "-wal").exists()
    await journal.close()


async def test_a_log_without_its_main_file_moves_aside(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "journal.db-wal").write_bytes(b"what is left of a journal")
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    assert journal.salvaged is not None
    assert journal.salvaged["why"] == "its main file is gone"
    assert (state_dir / (journal.salvaged["moved_to"] + "-wal")).read_bytes() == b"what is left of a journal"
    await answered(journal, "m1")
    await journal.close()


async def test_a_text_that_cannot_be_read_is_kept_as_well_as_it_can_be(state_dir: Path) -> None:
    await filled(state_dir)
    path = state_dir / "journal.db"
    content = path.read_bytes()
    assert content.count(b"hash-m77") == 1
    path.write_bytes(content.replace(b"hash-m77", b"hash\xff\xfe77"))
    for boot_id, damaged in (("boot-2", True), ("boot-3", False)):
        journal = await Journal.open(state_dir, boot_id=boot_id, now=NOW)
        assert (journal.salvaged is not None) is damaged
        turn = journal.turn("turn-m77")
        assert turn is not None
        assert turn.content_hash == "hash\ufffd\ufffd77"
        assert len(journal.turns(limit=1000)) == 120
        await journal.close()


async def test_an_outcome_that_cannot_be_read_does_not_cost_its_turn(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    ended = await answered(journal, "m1", answer="42")

    def spoil(tx: Transaction) -> None:
        tx.execute("UPDATE turns SET outcome = '{' || outcome")

    await journal._writer.run(spoil)
    await journal.close()
    for boot_id, damaged in (("boot-2", True), ("boot-3", False)):
        journal = await Journal.open(state_dir, boot_id=boot_id, now=NOW)
        assert (journal.salvaged is not None) is damaged
        turn = journal.turn(ended.id)
        assert turn is not None
        assert (turn.answer, turn.outcome) == ("42", None)
        await journal.close()


@pytest.mark.parametrize("step", ["copied", "moved", "moved in part"])
async def test_a_crash_while_salvaging_is_made_good_by_the_next_start(state_dir: Path, step: str) -> None:
    turns = await filled(state_dir)
    path = state_dir / "journal.db"
    if step == "copied":  # not quite
        with path.open("r+b") as file:
            file.write(b"\0" * 20)
        (state_dir / "journal.db.salvaged").write_bytes(path.read_bytes()[: 5 * PAGE])
    else:
        path.rename(state_dir / "journal.db.salvaged")
        if step == "moved in part":
            (state_dir / "journal.db-wal").write_bytes(b"of the damaged one")
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert journal.turns(limit=1000) == turns
    assert not (state_dir / "journal.db.salvaged").exists()
    await journal.close()


async def test_a_salvage_that_cannot_write_leaves_everything_as_it_was(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(state_dir)
    path = state_dir / "journal.db"
    with path.open("r+b") as file:
        file.write(bytes(100))
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "build", full)
        with pytest.raises(JournalUnavailable):
            await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert path.read_bytes() == before
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert len(journal.turns(limit=1000)) == 120
    await journal.close()
