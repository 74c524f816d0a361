from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workspace_adapter.errors import JournalDamaged, JournalError
from workspace_adapter.events import SessionHandle
from workspace_adapter.sidecar.journal import Journal, Reader
from workspace_adapter.turns import State

from .made import NOW, accept, answered, call, child, message, running


async def test_an_operator_reads_while_a_sidecar_runs_and_after_it_has_gone(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    turn = await running(journal, "m1")
    await journal.permit(turn.id, 1, call(), now=NOW)
    with Reader.open(state_dir) as reader:
        assert reader.turns() == journal.turns()
        ended = await answered(journal, "m2", answer="x" * 300_000)
        assert reader.turn(ended.id) == ended
        assert reader.calls(turn.id) == journal.calls(turn.id)
        assert reader.counts() == journal.counts()
    await journal.close()
    with Reader.open(state_dir) as reader:
        assert [turn.message_id for turn in reader.unfinished()] == ["m1"]
        assert reader.size_bytes() > 300_000
    assert not list(state_dir.glob("*damaged*"))


async def test_an_operator_reads_what_a_killed_sidecar_left(state_dir: Path) -> None:
    with child("work", state_dir) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(50)]
        process.kill()
    with Reader.open(state_dir) as reader:
        assert all(reader.turn(turn_id) is not None for _, turn_id in said)
        before = reader.turns(limit=1 << 30)
    journal = await Journal.open(state_dir, boot_id="next", now=NOW)
    assert journal.turns(limit=1 << 30) == before
    await journal.close()


async def test_a_reader_changes_nothing(state_dir: Path, tmp_path: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await accept(journal, message("m1"))
    await journal.close()
    before = (state_dir / "journal.db").read_bytes()
    with Reader.open(state_dir) as reader:
        assert reader.counts()[State.ACCEPTED] == 1
    assert (state_dir / "journal.db").read_bytes() == before


def test_without_a_journal_the_operator_is_told_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=rf"no journal in {tmp_path}: set WORKSPACE_STATE_DIR"):
        Reader.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_that_cannot_be_read_is_a_journal_error(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await answered(journal, "m1", answer="x" * 300_000)
    await journal.close()
    shutil.rmtree(state_dir / "blobs")
    with Reader.open(state_dir) as reader:
        turn = reader.turn("turn-m1")
        assert turn is not None
        assert turn.answer is not None
        assert turn.answer.startswith("[the answer is lost: blobs/")
    (state_dir / "journal.db").write_bytes(b"no database at all" * 999)
    with pytest.raises(JournalDamaged, match=r"journal\.db is damaged \(file is not a database"):
        Reader.open(state_dir)


async def test_sessions_are_listed_with_their_turns_the_latest_active_first(
    state_dir: Path, journal: Journal
) -> None:
    await answered(journal, "m1")
    await running(journal, "m2")
    await accept(journal, message("m3", session_id="later", caller="ann", accepted_at=NOW + 5))
    await journal.bind("later", SessionHandle("h"))
    with Reader.open(state_dir) as reader:
        later, first = reader.sessions()
        assert (later.session.id, later.session.caller, later.session.handle) == ("later", "ann", "h")
        assert first.turns == {State.ANSWERED: 1, State.RUNNING: 1}
        assert (later.active_at, first.active_at) == (NOW + 5, NOW)
        assert reader.sessions(caller="ann") == reader.sessions(session_id="later") == [later]
        assert reader.sessions(limit=1) == [later]
        assert reader.sessions(session_id="nowhere") == []


async def test_a_turn_is_found_by_the_beginning_of_its_id(state_dir: Path, journal: Journal) -> None:
    for name in ("m1", "m10", "x"):
        await accept(journal, message(name))
    with Reader.open(state_dir) as reader:
        assert reader.ids_beginning("turn-m1") == ["turn-m1"]
        assert reader.ids_beginning("turn-m") == ["turn-m1", "turn-m10"]
        assert reader.ids_beginning("turn-x") == ["turn-x"]
        assert reader.ids_beginning("%") == []


async def test_turns_are_listed_by_the_time_they_were_accepted(state_dir: Path, journal: Journal) -> None:
    for number in range(4):
        await accept(journal, message(f"m{number}", accepted_at=NOW + number))
    listed = journal.turns(since=NOW + 1, until=NOW + 3)
    assert [turn.message_id for turn in listed] == ["m2", "m1"]
