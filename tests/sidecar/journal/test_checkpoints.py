from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest

from workspace_adapter.errors import InvalidTransition
from workspace_adapter.sidecar.journal import Journal, NewEvent, checkpoints
from workspace_adapter.sidecar.journal.checkpoints import PASS, Checkpoints
from workspace_adapter.turns import State

from .made import NOW, running


class Log:
    """Stands for a connection; tells of the passes made on it and can hold one up."""

    def __init__(self) -> None:
        self.passes = 0
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.leave.set()

    def execute(self, sql: str) -> Log:
        assert sql == PASS
        self.passes += 1
        self.entered.set()
        self.leave.wait(10)
        return self

    def fetchone(self) -> None:
        return None

    def close(self) -> None:
        return None


def _settled(passes: Checkpoints) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if passes.idle:
            return
        deadline.wait(0.005)
    raise AssertionError("the pass does not end")


@pytest.fixture
def own() -> Log:
    """The log as the checkpoints' own connection sees it."""
    return Log()


def test_a_pass_is_made_every_so_many_changes(own: Log) -> None:
    passes, writer = Checkpoints(own), Log()  # type: ignore[arg-type]
    for _ in range(checkpoints.EVERY - 1):
        passes.due(1, log_bytes=0, was_idle=True, writing=writer)  # type: ignore[arg-type]
    assert own.passes == 0
    passes.due(1, log_bytes=0, was_idle=True, writing=writer)  # type: ignore[arg-type]
    _settled(passes)
    assert (own.passes, writer.passes) == (1, 0)
    passes.end()


def test_no_pass_begins_upon_a_commit_that_began_beside_another(own: Log) -> None:
    passes, writer = Checkpoints(own), Log()  # type: ignore[arg-type]
    own.leave.clear()
    passes.due(checkpoints.EVERY, log_bytes=0, was_idle=passes.idle, writing=writer)  # type: ignore[arg-type]
    own.entered.wait(10)
    began_beside = passes.idle
    own.leave.set()
    _settled(passes)
    over = checkpoints.LOG_LIMIT + 1
    passes.due(checkpoints.EVERY, log_bytes=over, was_idle=began_beside, writing=writer)  # type: ignore[arg-type]
    assert (own.passes, writer.passes, passes.idle) == (1, 0, True)
    passes.due(1, log_bytes=over, was_idle=True, writing=writer)  # type: ignore[arg-type]
    _settled(passes)
    assert (own.passes, writer.passes) == (2, 0)
    passes.due(1, log_bytes=over, was_idle=True, writing=writer)  # type: ignore[arg-type]
    assert (own.passes, writer.passes) == (2, 1)
    passes.end()


def test_ending_waits_for_the_pass_under_way_and_for_no_more(own: Log) -> None:
    passes = Checkpoints(own)  # type: ignore[arg-type]
    own.leave.clear()
    passes.due(checkpoints.EVERY, log_bytes=0, was_idle=True, writing=own)  # type: ignore[arg-type]
    own.entered.wait(10)
    ending = threading.Thread(target=passes.end)
    ending.start()
    while not passes._ended:
        threading.Event().wait(0.001)
    own.leave.set()
    ending.join(10)
    assert not ending.is_alive()
    assert own.passes == 1


async def test_no_pass_begins_upon_commits_that_changed_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log could begin anew under it."""
    monkeypatch.setattr(checkpoints, "EVERY", 2)
    begun: list[str] = []
    journal._files.passing.set_trace_callback(begun.append)
    await journal.bind("no such session", None)
    for _ in range(5):
        await journal.bind("no such session", None)
        with pytest.raises(InvalidTransition):
            await journal.start("nowhere", expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=NOW)
    assert journal._checkpoints.idle
    assert begun == []
    await running(journal)
    _settled(journal._checkpoints)
    assert begun != []


async def test_the_log_stays_bounded_under_load_that_never_pauses(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LOG_LIMIT", 1 << 20)
    monkeypatch.setattr("workspace_adapter.sidecar.journal.writer.LOG_LIMIT", 1 << 20)
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    turn = await running(journal)
    events = [NewEvent(kind="text", body={"text": "x" * 4000})] * 4
    largest, written = 0, 0

    async def write() -> None:
        nonlocal largest, written
        for _ in range(100):
            await journal.append(turn.id, 1, events, now=NOW)
            written += 16_000
            largest = max(largest, (state_dir / "journal.db-wal").stat().st_size)

    async with anyio.create_task_group() as writers:
        for _ in range(16):
            writers.start_soon(write)
    assert written > 20 << 20
    assert largest < 6 << 20
    assert len(journal.events(turn.id, limit=10_000)) == 6400
    await journal.close()
    assert not (state_dir / "journal.db-wal").exists()
