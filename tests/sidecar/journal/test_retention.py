from __future__ import annotations

from pathlib import Path

import anyio

from workspace_adapter.sidecar.journal import Journal, NewEvent, checkpoints, verbs
from workspace_adapter.turns import State

from .made import NOW, RETRYABLE, accept, answered, call, message, running, scalar

DAY = 86400.0


async def test_an_ended_turn_is_kept_for_the_retention_after_its_delivery(journal: Journal) -> None:
    for name in ("early", "late", "never"):
        await answered(journal, name)
    journal.delivered("turn-early", now=NOW)
    journal.delivered("turn-late", now=NOW + DAY)

    async def left(after: float) -> list[str]:
        await journal.prune(retention=DAY, now=NOW + after)
        return [turn.message_id for turn in journal.turns()]

    assert await left(DAY) == ["never", "late", "early"]
    assert await left(DAY + 1) == ["never", "late"]
    assert await left(2 * DAY) == ["never", "late"]
    assert await left(2 * DAY + 1) == []


async def test_what_has_not_ended_is_kept_for_ever(journal: Journal) -> None:
    await accept(journal, message("accepted"))
    await running(journal, "running")
    for name, to in (
        ("parked", State.PARKED),
        ("interrupted", State.INTERRUPTED),
        ("suspended", State.INTERRUPTED),
    ):
        turn = await running(journal, name)
        await journal.finish(turn.id, attempt=1, to=to, cause="", now=NOW)
    await journal.change("turn-suspended", expect=list(State), to=State.SUSPENDED, cause="", now=NOW)
    assert await journal.prune(retention=0, now=NOW + 999 * DAY) == 0
    assert len(journal.turns()) == 5
    assert journal.message("turn-suspended") is not None


async def test_a_turn_goes_with_everything_of_its_own_and_nothing_else(
    journal: Journal, state_dir: Path
) -> None:
    for name, session in (("m1", "a"), ("m2", "a"), ("m3", "b")):
        turn = await running(journal, name, session_id=session)
        await journal.permit(turn.id, 1, call(), now=NOW)
        await journal.append(turn.id, 1, [NewEvent(kind="text", body={})], now=NOW)
        await journal.finish(turn.id, attempt=1, to=State.FAILED, cause="", outcome=RETRYABLE, now=NOW)
    for turn_id in ("turn-m1", "turn-m3"):
        journal.delivered(turn_id, now=NOW)
    assert await journal.prune(retention=DAY, now=NOW + DAY + 1) == 2
    assert [turn.id for turn in journal.turns()] == ["turn-m2"]
    assert journal.session("a") is not None
    assert journal.session("b") is None
    for table, left in (("turns", 1), ("messages", 1), ("calls", 1), ("events", 1), ("sessions", 1)):
        assert journal._reading.execute(f"SELECT count(*) FROM {table}").fetchone() == (left,)
    assert len(journal.calls("turn-m2")) == len(journal.events("turn-m2")) == 1
    again = await accept(journal, message("m1", caller="somebody new", session_id="b"))
    assert not again.joined


async def test_retention_deletes_in_slices_that_others_get_between(journal: Journal) -> None:
    for n in range(120):
        await answered(journal, f"m{n}")
    log = await running(journal, "log")
    for _ in range(10):
        await journal.append(log.id, 1, [NewEvent(kind="text", body={"text": "x" * 500})] * 200, now=NOW)
    for n in range(30):
        await journal.permit(log.id, 1, call(f"c{n}"), now=NOW)
    await journal.finish(log.id, attempt=1, to=State.ANSWERED, cause="", now=NOW)
    statements: list[str] = []
    journal._files.writing.set_trace_callback(statements.append)
    deleted = await journal.prune(retention=0, now=NOW + 1)
    journal._files.writing.set_trace_callback(None)
    assert deleted == 121
    assert journal.turns() == []
    assert journal._reading.execute("SELECT count(*) FROM events").fetchone() == (0,)
    slices: list[list[str]] = [[]]
    for statement in statements:
        if statement == "COMMIT":
            slices.append([])
        slices[-1].append(statement)
    assert all(sum(s.startswith("DELETE FROM turns") for s in one) <= verbs.SLICE_TURNS for one in slices)
    assert len(slices) > 2000 / verbs.SLICE_ROWS + 120 / verbs.SLICE_TURNS


async def test_the_file_gives_back_the_room_it_no_longer_needs(journal: Journal, state_dir: Path) -> None:
    small = journal.size_bytes()
    for n in range(40):
        await answered(journal, f"m{n}", answer="x" * 200_000)
    assert journal.size_bytes() > 8_000_000
    await journal.prune(retention=0, now=NOW + 1)
    assert journal.size_bytes() < small + 100_000
    await journal.close()
    assert (state_dir / "journal.db").stat().st_size < 3_000_000


async def test_a_journal_that_has_seen_many_turns_is_no_larger_than_what_it_keeps(
    journal: Journal, state_dir: Path
) -> None:
    kept, sizes = 40, []
    for n in range(0, 1000, kept // 2):
        now = NOW + n
        async with anyio.create_task_group() as callers:
            for turn in range(n, n + kept // 2):
                callers.start_soon(_one_life, journal, f"m{turn}", now)
        await journal.prune(retention=kept, now=now)
        assert len(journal.turns()) <= 2 * kept
        sizes.append((scalar(state_dir / "journal.db", "PRAGMA page_count"), _log(state_dir)))
    settled, later = sizes[4:8], sizes[-4:]
    assert max(pages for pages, _ in later) <= 1.1 * max(pages for pages, _ in settled)
    assert max(log for _, log in sizes) < 1.2 * checkpoints.LOG_LIMIT


async def _one_life(journal: Journal, name: str, now: float) -> None:
    """A turn in a session of its own that says something, uses a tool and is collected."""
    turn = await running(journal, name, session_id=name, message=b"x" * 2000)
    await journal.permit(turn.id, 1, call(), now=now)
    await journal.append(turn.id, 1, [NewEvent(kind="text", body={"text": "x" * 200})] * 5, now=now)
    await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", answer="x" * 2000, now=now)
    journal.delivered(turn.id, now=now)


def _log(state_dir: Path) -> int:
    return (state_dir / "journal.db-wal").stat().st_size
