"""A journal that holds 100,000 ended turns against a fresh one beside it: the same verbs, the same disk.

Fair because both are asked the same in every round; the old one's turns were made by the journal's own
verbs, many to a commit, since what is measured is not how fast they were made. Each round the retention
lets a share of them go while messages are accepted, as it does in life; when all are gone, the file
says what room it gave back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple
from uuid import uuid4

import anyio
import anyio.to_thread

from benchmarks.accept import LIMITS, message
from benchmarks.frame import Bench, Figure, Limit, at_most
from workspace_adapter.sidecar.journal import Journal, schema, verbs
from workspace_adapter.sidecar.journal.blobs import Blobs
from workspace_adapter.sidecar.journal.checkpoints import LOG_LIMIT
from workspace_adapter.sidecar.journal.writer import Transaction
from workspace_adapter.turns import Outcome, OutcomeKind, State

TURNS, QUICK_TURNS = 100_000, 5_000

TO_A_COMMIT = 500
"""Turns that are made in one commit."""

EVENTS = [("text", '{"text": "%s"}' % ("said " * 40))] * 3
"""What each turn's log holds; a KiB of answer comes to it."""

ROUNDS = 10

ACCEPTS = 200
"""Messages that one caller sends in a round, each waiting for its own."""

MIB = 1 << 20


class Waits(NamedTuple):
    """How long one caller waited for each message, in milliseconds."""

    middle: float
    slowest_of_100: float
    longest: float


async def measure(bench: Bench) -> list[Figure]:
    """Age one journal, then ask both."""
    turns, rounds = (QUICK_TURNS, 3) if bench.quick else (TURNS, ROUNDS)
    began = time.time() - turns
    await anyio.to_thread.run_sync(_age, bench.scratch / "aged", turns, began)
    fresh = await Journal.open(bench.scratch / "fresh", boot_id=uuid4().hex, now=time.time())
    aged = await Journal.open(bench.scratch / "aged", boot_id=uuid4().hex, now=time.time())
    shares = iter(range(1, rounds + 2))

    async def forgetting() -> Waits:
        return await _beside(aged, began + turns * next(shares) / (rounds + 1))

    try:
        full = _file(bench.scratch / "aged")
        idle = await bench.interleave(
            {"fresh": partial(_accept, fresh), "aged": partial(_accept, aged)}, rounds=rounds
        )
        busy: dict[str, list[Waits]] = await bench.interleave(
            {"fresh": partial(_accept, fresh), "aged": forgetting}, rounds=rounds
        )
        log = aged.file_bytes() / MIB - _file(bench.scratch / "aged")
        for journal in (fresh, aged):
            await journal.prune(retention=0, now=time.time())
            assert not journal.turns()
    finally:
        for journal in (fresh, aged):
            await journal.close()
    against = "a fresh journal"

    def waits(
        what: str, of: dict[str, list[Waits]], which: Callable[[Waits], float], limit: Limit | None = None
    ) -> Figure:
        return Figure(
            what=what,
            unit="ms",
            measured=[which(one) for one in of["aged"]],
            against=against,
            reference=[which(one) for one in of["fresh"]],
            limit=limit,
        )

    return [
        waits(f"accept after {turns:,} turns", idle, lambda w: w.middle, at_most(times=2)),
        waits("the slowest of 100", idle, lambda w: w.slowest_of_100, at_most(10)),
        waits("accept while they are forgotten", busy, lambda w: w.middle),
        Figure(what="the longest wait meanwhile", unit="ms", measured=[w.longest for w in busy["aged"]]),
        Figure(what="file", unit="MiB", measured=[full]),
        Figure(what="its log", unit="MiB", measured=[log], limit=at_most(1.5 * LOG_LIMIT / MIB)),
        Figure(
            what="file, all forgotten",
            unit="MiB",
            measured=[_file(bench.scratch / "aged")],
            against=against,
            reference=[_file(bench.scratch / "fresh")],
            limit=at_most(1, times=1),
        ),
    ]


def _age(state_dir: Path, turns: int, began: float) -> None:
    """Make a journal whose turns were accepted, run, answered and delivered, one a second."""
    state_dir.mkdir()
    schema.create(state_dir / schema.FILE)
    with closing(schema.connect(state_dir / schema.FILE)) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=OFF")
        for first in range(0, turns, TO_A_COMMIT):
            transaction = Transaction(connection, "", Blobs(state_dir))
            connection.execute("BEGIN")
            for n in range(first, first + TO_A_COMMIT):
                _lived(transaction, began + n)
            connection.execute("COMMIT")


def _lived(tx: Transaction, at: float) -> None:
    new = message()
    verbs.accept(tx, new, new.message, **LIMITS)
    verbs.start(tx, new.turn_id, expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=at)
    verbs.finish(
        tx,
        new.turn_id,
        attempt=1,
        to=State.ANSWERED,
        cause="",
        outcome=Outcome(kind=OutcomeKind.ANSWERED),
        answer=verbs.Answer("x" * 1024, b"x" * 1024),
        events=EVENTS,
        now=at,
    )
    verbs.delivered(tx, new.turn_id, now=at, forget=False)


async def _accept(journal: Journal) -> Waits:
    """Accept one message after the other; then end them all."""
    return await _accepted(journal, lambda sent: sent < ACCEPTS)


async def _beside(journal: Journal, until: float) -> Waits:
    """Accept for as long as the retention takes to let go what ended before."""
    gone = anyio.Event()

    async def forget() -> None:
        await journal.prune(retention=0, now=until)
        gone.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forget)
        waits = await _accepted(journal, lambda sent: not gone.is_set() or sent < 2)
    return waits


async def _accepted(journal: Journal, more: Callable[[int], bool]) -> Waits:
    took: list[float] = []
    sent: list[str] = []
    while more(len(sent)):
        new = message()
        sent.append(new.turn_id)
        began = time.perf_counter()
        await journal.accept(new, inbox_limit=1 << 30, limit_bytes=LIMITS["limit_bytes"])
        took.append((time.perf_counter() - began) * 1000)
    async with anyio.create_task_group() as tasks:
        for turn_id in sent:
            tasks.start_soon(_end, journal, turn_id)
    return Waits(median(took), quantiles(took, n=100)[98], max(took))


async def _end(journal: Journal, turn_id: str) -> None:
    """End a turn so long ago that the retention takes it first."""
    await journal.change(turn_id, expect=[State.ACCEPTED], to=State.CANCELED, cause="measured", now=1.0)


def _file(state_dir: Path) -> float:
    """The size of the main file, in MiB."""
    return (state_dir / schema.FILE).stat().st_size / MIB
