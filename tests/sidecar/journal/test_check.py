from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from workspace_adapter.sidecar.journal import Journal, Reader
from workspace_adapter.sidecar.journal.check import Problem, problems
from workspace_adapter.sidecar.journal.damage import note_beside

from .made import NOW, accept, answered, call, message, running

LARGE = "x" * 300_000


@contextmanager
def by_hand(state_dir: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as connection:
        yield connection


def found(state_dir: Path) -> list[Problem]:
    with Reader.open(state_dir) as reader:
        return list(problems(reader))


async def filled(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await answered(journal, "m1", answer=LARGE)
    turn = await running(journal, "m2")
    await journal.permit(turn.id, 1, call(), now=NOW)
    await accept(journal, message("m3", message=LARGE.encode() + b"y"))
    await journal.close()


async def test_a_journal_is_whole_with_a_sidecar_and_without(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    await answered(journal, "m1", answer=LARGE)
    await running(journal, "m2")
    assert found(state_dir) == []
    await journal.close()
    assert found(state_dir) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DELETE FROM messages WHERE file IS NULL", "turn turn-m2 is running, and its message is gone"),
        ("DELETE FROM turns WHERE id = 'turn-m2'", "calls of turn turn-m2, which is not there"),
        ("DELETE FROM turns WHERE id = 'turn-m2'", "message 2 belongs to no turn"),
        ("DELETE FROM sessions", "turn turn-m1 is in session session, which is not there"),
        ("UPDATE turns SET ended_at = 1 WHERE id = 'turn-m2'", "does not go with the time of its end"),
        ("INSERT INTO sessions VALUES ('s', NULL, NULL, 1, 1, NULL)", "session s has no turn"),
        ("INSERT INTO events VALUES ('t', 1, 1, 1, 'text', '{}')", "events of turn t, which is not there"),
        ("DROP TABLE events", "the table events is missing"),
    ],
)
async def test_rows_that_contradict_one_another_are_told(state_dir: Path, change: str, told: str) -> None:
    await filled(state_dir)
    with by_hand(state_dir) as connection:
        connection.execute(change)
    assert any(told in problem.what for problem in found(state_dir)), found(state_dir)
    assert all(problem.todo for problem in found(state_dir))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE turns SET answer = CAST(x'fffe' AS TEXT)", "Could not decode to UTF-8"),
        ("UPDATE calls SET excerpt = CAST(x'fffe' AS TEXT)", "Could not decode to UTF-8"),
        ("UPDATE turns SET outcome = 'x' WHERE id = 'turn-m1'", "no outcome"),
        ("INSERT INTO events VALUES ('turn-m2', 9, 1, 1, 'text', 'x')", "no log entry"),
    ],
)
async def test_rows_that_cannot_be_read_are_damage_that_the_next_start_mends(
    state_dir: Path, change: str, told: str
) -> None:
    await filled(state_dir)
    with by_hand(state_dir) as connection:
        connection.execute(change)
    (problem,) = found(state_dir)
    assert (problem.kind, told in problem.what) == ("file", True), problem
    await (await Journal.open(state_dir, boot_id="boot-2", now=NOW)).close()
    assert not [problem for problem in found(state_dir) if problem.kind == "file"]


async def test_large_bodies_must_be_there_whole_and_wanted(state_dir: Path) -> None:
    await filled(state_dir)
    answer, sent = sorted((state_dir / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    answer.unlink()
    sent.write_bytes(b"something else")
    young, old = state_dir / "blobs" / ("0" * 64), state_dir / "blobs" / ("1" * 64)
    for path in (young, old):
        path.write_bytes(b"left over")
    os.utime(old, (NOW - 1e9, NOW - 1e9))
    told = [problem.what for problem in found(state_dir)]
    assert sorted(told) == sorted(
        [
            f"the answer of turn turn-m1: {answer} is missing",
            f"the message of turn turn-m3: {sent} does not hold what its name says",
            f"{old} is named by no row",
        ]
    )


async def test_a_damaged_page_is_told_and_what_to_do(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    for number in range(100):
        await answered(journal, f"m{number}", answer="x" * 1000)
    await journal.close()
    with (state_dir / "journal.db").open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xff" * 4096)
    told = found(state_dir)
    assert told
    assert {problem.kind for problem in told} == {"file"}
    assert all("start the sidecar" in problem.todo for problem in told)


async def test_what_somebody_met_before_is_told_until_it_is_mended(state_dir: Path) -> None:
    await filled(state_dir)
    note_beside(state_dir / "journal.db").write_text("a page that makes no sense")
    (problem,) = found(state_dir)
    assert problem.what == "somebody found it damaged before: a page that makes no sense"
    await (await Journal.open(state_dir, boot_id="boot-2", now=NOW)).close()
    assert found(state_dir) == []
