from __future__ import annotations

import hashlib
from pathlib import Path

import anyio
import pytest

from workspace_adapter.errors import InboxFull, JournalUnavailable
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.sidecar.journal.blobs import INLINE_LIMIT
from workspace_adapter.turns import State

from .made import FINAL, NOW, RETRYABLE, accept, answered, message, running, started

LARGE = b"x" * (INLINE_LIMIT + 1)
NAME = hashlib.sha256(LARGE).hexdigest()


def files(state_dir: Path) -> list[str]:
    return sorted(path.name for path in (state_dir / "blobs").iterdir())


async def test_a_large_message_is_a_file_named_by_its_digest(journal: Journal, state_dir: Path) -> None:
    await accept(journal, message("small", message=LARGE[:-1]))
    assert files(state_dir) == []
    before = journal.size_bytes()
    await accept(journal, message("m1", message=LARGE))
    assert files(state_dir) == [NAME]
    assert journal.message("turn-m1") == LARGE
    assert journal.message("turn-small") == LARGE[:-1]
    assert (state_dir / "blobs" / NAME).stat().st_mode & 0o077 == 0
    assert len(LARGE) <= journal.size_bytes() - before < len(LARGE) + 50_000


async def test_a_large_answer_is_a_file_and_reads_like_any_other(journal: Journal, state_dir: Path) -> None:
    turn = await running(journal)
    answer = "ä" * INLINE_LIMIT
    ended = await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", answer=answer, now=NOW)
    assert ended is not None
    assert ended.answer == answer
    assert journal.turn(turn.id) == ended
    assert journal.turns() == [ended]
    assert (await accept(journal, message("m1"))).turn == ended
    assert files(state_dir) == [hashlib.sha256(answer.encode()).hexdigest()]


async def test_a_file_goes_with_the_last_row_that_names_it(journal: Journal, state_dir: Path) -> None:
    first = await running(journal, "m1", message=LARGE)
    second = await running(journal, "m2", message=LARGE)
    third = await running(journal, "m3")
    for turn, answer in ((first, None), (second, None), (third, LARGE.decode())):
        await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", answer=answer, now=NOW)
        await journal.probe()
        assert files(state_dir) == ([] if turn is second else [NAME])
    assert await journal.prune(retention=1, now=NOW + 3) == 3
    await journal.probe()
    assert files(state_dir) == []


async def test_a_file_is_kept_while_its_turn_may_run_again(journal: Journal, state_dir: Path) -> None:
    turn = await running(journal, message=LARGE)
    failed = await journal.finish(
        turn.id,
        attempt=1,
        to=State.FAILED,
        cause="",
        outcome=RETRYABLE,
        answer="z" * len(LARGE),
        now=NOW,
    )
    assert failed is not None
    assert len(files(state_dir)) == 2
    await started(journal, failed)
    await journal.probe()
    assert files(state_dir) == [NAME]
    assert journal.message(turn.id) == LARGE
    await journal.finish(turn.id, attempt=2, to=State.FAILED, cause="", outcome=FINAL, now=NOW)
    await journal.probe()
    assert files(state_dir) == []


async def test_a_large_message_that_is_refused_leaves_nothing_behind(
    journal: Journal, state_dir: Path
) -> None:
    with pytest.raises(InboxFull):
        await accept(journal, message("m1", message=LARGE), inbox_limit=0)
    assert files(state_dir) == []
    await accept(journal, message("m2", message=LARGE))
    with pytest.raises(InboxFull, match="WORKSPACE_JOURNAL_LIMIT_BYTES"):
        await accept(journal, message("m3", message=LARGE + b"y"), limit_bytes=len(LARGE))
    late = await journal.finish(
        "turn-m2", attempt=1, to=State.ANSWERED, cause="", answer="y" * 300_000, now=NOW
    )
    assert late is None
    assert files(state_dir) == [NAME]
    assert journal.message("turn-m2") == LARGE


async def test_a_caller_who_is_cancelled_with_a_large_message_leaves_a_whole_turn_or_none(
    journal: Journal, state_dir: Path
) -> None:
    for n in range(20):
        with anyio.move_on_after(n / 4000):
            await accept(journal, message(f"m{n}", message=LARGE + str(n).encode()))
    await journal.probe()
    turns = journal.turns()
    assert [journal.message(turn.id) for turn in turns] == [
        LARGE + turn.message_id.removeprefix("m").encode() for turn in turns
    ]
    assert len(files(state_dir)) == len(turns)


async def test_what_a_crash_left_is_swept_at_the_next_start(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await accept(journal, message("m1", message=LARGE))
    await journal.close()
    (state_dir / "blobs" / ".half-written").write_bytes(b"x")
    (state_dir / "blobs" / ("0" * 64)).write_bytes(b"renamed, and never named by a commit")
    journal = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert files(state_dir) == [NAME]
    assert journal.message("turn-m1") == LARGE
    assert journal._blobs.size == len(LARGE)
    await journal.close()


async def test_without_their_directory_large_messages_are_refused_and_small_ones_are_not(
    journal: Journal, state_dir: Path
) -> None:
    (state_dir / "blobs").rmdir()
    with pytest.raises(JournalUnavailable, match=r"blobs.* cannot be written: No such file"):
        await accept(journal, message("m1", message=LARGE))
    await accept(journal, message("m2"))


async def test_files_of_a_journal_that_took_our_place_are_not_touched(
    tmp_path: Path, state_dir: Path
) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    turn = await running(journal, message=LARGE)
    state_dir.rename(tmp_path / "elsewhere")
    other = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    await accept(other, message("m1", message=LARGE))
    with pytest.raises(JournalUnavailable, match="replaced while in use"):
        await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", now=NOW)
    with pytest.raises(JournalUnavailable):
        await journal.probe()
    assert other.message("turn-m1") == LARGE
    await other.close()
    await journal.close()


async def test_a_body_that_holds_something_else_than_was_written_is_lost_and_said_to_be(
    journal: Journal, state_dir: Path
) -> None:
    turn = await answered(journal, "m1", answer="x" * INLINE_LIMIT * 2)
    waits = (await accept(journal, message("m2", message=b"y" * INLINE_LIMIT * 2))).turn
    for file in (state_dir / "blobs").iterdir():
        file.write_bytes(b"z" + file.read_bytes()[1:])
    assert journal.message(waits.id) is None
    found = journal.turn(turn.id)
    assert found is not None
    assert "answer is lost" in str(found.answer)
