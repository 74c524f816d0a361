from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from workspace_adapter.errors import (
    BadMessage,
    ContentConflict,
    InboxFull,
    InvalidTransition,
    JournalUnavailable,
)
from workspace_adapter.sidecar.journal import Journal, NewEvent
from workspace_adapter.sidecar.journal.writer import MOST, Transaction
from workspace_adapter.turns import State

from .made import NOW, accept, call, message, running


@asynccontextmanager
async def busy(journal: Journal) -> AsyncIterator[list[str]]:
    """Keep the writer busy meanwhile; yield the statements it runs afterwards."""
    entered, free, statements = threading.Event(), threading.Event(), list[str]()

    def wait(tx: Transaction) -> None:
        entered.set()
        free.wait(10)
        tx.connection.set_trace_callback(statements.append)

    journal._writer.post(wait)
    await anyio.to_thread.run_sync(entered.wait)
    try:
        yield statements
    finally:
        free.set()


async def test_all_that_wait_share_one_commit(journal: Journal) -> None:
    async with anyio.create_task_group() as callers, busy(journal) as statements:
        for n in range(64):
            callers.start_soon(accept, journal, message(f"m{n}"))
        await anyio.wait_all_tasks_blocked()
    assert journal.counts()[State.ACCEPTED] == 64
    assert [statement for statement in statements if statement.startswith(("BEGIN", "COMMIT"))] == [
        "COMMIT",  # of the request that kept the writer busy
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


async def test_an_errand_waits_for_no_more_than_the_commit_under_way(journal: Journal) -> None:
    done: list[str] = []
    async with anyio.create_task_group() as callers, busy(journal):
        for _ in range(2 * MOST):
            journal._writer.post(lambda tx: done.append("request"))
        await anyio.wait_all_tasks_blocked()
        callers.start_soon(journal._writer.between, lambda connection: done.append("errand"))
        await anyio.wait_all_tasks_blocked()
    await journal.probe()
    assert done.index("errand") == 0
    assert len(done) == 2 * MOST + 1


async def test_one_that_is_refused_does_not_roll_back_its_neighbours(journal: Journal) -> None:
    turn = await running(journal, "m0")
    refusals: dict[str, str] = {}

    async def refused(name: str, **changes: object) -> None:
        with pytest.raises((ContentConflict, BadMessage, InboxFull, sqlite3.IntegrityError)) as refusal:
            await accept(journal, message(name, **changes), inbox_limit=3)
        refusals[name] = refusal.typename

    async def not_started() -> None:
        with pytest.raises(InvalidTransition):
            await journal.start(turn.id, expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=NOW)

    async with anyio.create_task_group() as callers, busy(journal) as statements:
        callers.start_soon(accept, journal, message("m1"))
        callers.start_soon(not_started)
        callers.start_soon(partial(refused, "m1", content_hash="other"))
        callers.start_soon(partial(refused, "stranger", caller="bob"))
        # The session is made before the database refuses an id that is taken.
        callers.start_soon(partial(refused, "same id", turn_id="turn-m0", session_id="new"))
        callers.start_soon(accept, journal, message("m2"))
        callers.start_soon(accept, journal, message("m3"))
        callers.start_soon(refused, "m4")
        await anyio.wait_all_tasks_blocked()
    assert statements.count("COMMIT") == 2
    assert refusals == {
        "m1": "ContentConflict",
        "stranger": "BadMessage",
        "same id": "IntegrityError",
        "m4": "InboxFull",
    }
    assert [turn.message_id for turn in journal.turns()] == ["m3", "m2", "m1", "m0"]
    assert journal.session("new") is None


async def test_a_value_that_cannot_be_stored_fails_its_request_alone(journal: Journal) -> None:
    async def wrong() -> None:
        with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
            await journal.bind("c", {"a": "handle"})  # type: ignore[arg-type]

    async with anyio.create_task_group() as callers, busy(journal):
        callers.start_soon(wrong)
        callers.start_soon(accept, journal, message("m"))
        await anyio.wait_all_tasks_blocked()
    assert journal.counts()[State.ACCEPTED] == 1
    await journal.probe()


async def test_permits_and_their_ends_go_first(journal: Journal) -> None:
    turn = await running(journal, "m0")
    await journal.permit(turn.id, 1, call("open"), now=NOW)
    async with anyio.create_task_group() as callers, busy(journal) as statements:
        callers.start_soon(accept, journal, message("m1"))
        callers.start_soon(partial(journal.permit, turn.id, 1, call("next"), now=NOW))
        callers.start_soon(partial(journal.end_call, turn.id, 1, "open", ok=True, now=NOW))
        await anyio.wait_all_tasks_blocked()
    writes = [s for s in statements if s.startswith(("INSERT", "UPDATE"))]
    assert ["calls" in s or "last_event_at" in s for s in writes] == 4 * [True] + (len(writes) - 4) * [False]
    assert any(s.startswith("INSERT INTO turns") for s in writes)


async def test_a_permit_does_not_wait_for_a_crowd(journal: Journal) -> None:
    turn = await running(journal, "m0")
    done: list[str] = []

    async def permitted() -> None:
        assert await journal.permit(turn.id, 1, call(), now=NOW)
        done.append("permit")

    async def probed() -> None:
        await journal.probe()
        done.append("probe")

    async with anyio.create_task_group() as callers, busy(journal):
        for _ in range(2 * MOST):
            callers.start_soon(probed)
        await anyio.wait_all_tasks_blocked()
        callers.start_soon(permitted)
        await anyio.wait_all_tasks_blocked()
    # It was the last to come, and is among the first commit's.
    assert done.index("permit") <= MOST
    assert len(done) == 2 * MOST + 1


async def test_a_caller_who_is_cancelled_takes_nothing_back_and_breaks_nothing(journal: Journal) -> None:
    async with anyio.create_task_group() as callers, busy(journal):
        callers.start_soon(accept, journal, message("m1"))
        await anyio.wait_all_tasks_blocked()
        callers.cancel_scope.cancel()
    await journal.probe()
    assert journal.turn("turn-m1") is not None
    await running(journal, "m2")


async def test_everyone_who_listens_hears_of_a_change_after_its_commit_and_before_its_caller(
    state_dir: Path,
) -> None:
    heard: list[str] = []

    def hear(turn_id: str) -> None:
        turn = journal.turn(turn_id)
        assert turn is not None
        heard.append(f"{turn_id} {turn.state} {len(journal.events(turn_id))}")

    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW, on_change=hear)

    async def refused() -> None:
        with pytest.raises(ContentConflict):
            await accept(journal, message("m1", turn_id="never", content_hash="other"))
        heard.append("refused")

    await accept(journal, message("m1"))
    heard.append("accepted")
    await refused()
    turn = await journal.start("turn-m1", expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=NOW)
    await journal.append(
        turn.id, 1, [NewEvent(kind="text", body={}), NewEvent(kind="text", body={})], now=NOW
    )
    heard.append("logged")
    await journal.permit(turn.id, 1, call(), now=NOW)
    await journal.append(turn.id, 2, [NewEvent(kind="text", body={})], now=NOW)
    await journal.finish(
        turn.id, attempt=1, to=State.ANSWERED, cause="", events=[NewEvent(kind="status", body={})], now=NOW
    )
    journal.delivered(turn.id, now=NOW)
    await journal.close()
    assert heard == [
        "turn-m1 accepted 0",
        "accepted",
        "refused",
        "turn-m1 running 2",
        "logged",
        "turn-m1 answered 3",
    ]


async def test_reading_does_not_wait_for_the_writer(journal: Journal) -> None:
    await running(journal, "m1")
    entered, leave = threading.Event(), threading.Event()

    def write_slowly(tx: Transaction) -> None:
        tx.execute("UPDATE turns SET cause = 'not committed'")
        entered.set()
        leave.wait(10)

    journal._writer.post(write_slowly)
    await anyio.to_thread.run_sync(entered.wait)
    turn = journal.turn("turn-m1")
    leave.set()
    assert turn is not None
    assert turn.cause is None


async def test_a_closed_journal_has_written_what_was_asked_and_takes_no_more(state_dir: Path) -> None:
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    async with anyio.create_task_group() as callers:
        for n in range(10):
            callers.start_soon(accept, journal, message(f"m{n}"))
        await anyio.lowlevel.checkpoint()
        await journal.close()
        await journal.close()
    with pytest.raises(JournalUnavailable, match=r"journal\.db cannot be written: it is closed"):
        await journal.probe()
    with pytest.raises(JournalUnavailable, match="closed"):
        journal.turns()
    again = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    assert again.counts()[State.ACCEPTED] == 10
    assert again.id == journal.id
    await again.close()


async def test_a_bug_in_the_writer_is_told_to_everyone_who_waits(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    health: list[bool] = []
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW, on_health=health.append)

    def fail(tx: Transaction) -> None:
        raise ZeroDivisionError

    with pytest.raises(JournalUnavailable, match="its writer failed; restart the workspace"):
        await journal._writer.run(fail)
    with pytest.raises(JournalUnavailable):
        await accept(journal, message("m1"))
    await journal.close()
    assert health == [False]
    assert [args.exc_type for args in died] == [ZeroDivisionError]
