"""What a permit adds to a tool call, against one append with one ``fdatasync``.

Fair because a permit must be on disk before the tool starts, so one fsync is what no design can save;
one session asks, one call after another, which is when no commit is shared. The end that is recorded
after the call is shown beside it: the tool has run by then.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from itertools import count
from statistics import median
from uuid import uuid4

from benchmarks.accept import LIMITS, message
from benchmarks.disk import Disk
from benchmarks.frame import Bench, Figure, at_most
from workspace_adapter import AtClosedGate, Permit, ToolCall
from workspace_adapter.ledger import Running
from workspace_adapter.sidecar.gate import SessionGate, Switch
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.turns import State

CALLS = 60
"""In one round; the middle one counts."""


async def measure(bench: Bench) -> list[Figure]:
    """Ask and end, beside the disk."""
    disk = Disk(bench.scratch)
    journal = await Journal.open(bench.scratch / "state", boot_id=uuid4().hex, now=time.time())
    try:
        turn = (await journal.accept(message(), **LIMITS)).turn
        await journal.start(turn.id, expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=time.time())
        gate = SessionGate(
            switch=Switch(),
            journal=journal,
            at_closed=AtClosedGate.END,
            clock=time.time,
            on_change=lambda: None,
        )
        gate.begin(
            Running(turn.id, turn.session_id, attempt=1), on_call=lambda _: None, on_end=lambda _, ok: None
        )
        numbers = count()

        async def asked() -> tuple[float, float]:
            permits, ends = [], []
            for number in (next(numbers) for _ in range(CALLS)):
                call = ToolCall(id=str(number), name="sh", arguments=f"echo {number}")
                began = time.perf_counter()
                assert await gate.ask(call) is Permit.GRANTED
                permitted = time.perf_counter()
                await gate.ended(call.id)
                permits.append(permitted - began)
                ends.append(time.perf_counter() - permitted)
            return median(permits), median(ends)

        async def synced() -> tuple[float, float]:
            seconds = median(disk.seconds(CALLS))
            return seconds, seconds

        sides: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {"gate": asked, "disk": synced}
        took = await bench.interleave(sides, rounds=41)
    finally:
        await journal.close()
        disk.close()
    permits, ends = ([1e3 * seconds for seconds in side] for side in zip(*took["gate"], strict=True))
    synced_ms = [1e3 * seconds for seconds, _ in took["disk"]]
    fdatasync = "one fdatasync"
    return [
        Figure(
            what="permit",
            unit="ms",
            measured=permits,
            against=fdatasync,
            reference=synced_ms,
            limit=at_most(times=2),
        ),
        Figure(what="end, after the call", unit="ms", measured=ends, against=fdatasync, reference=synced_ms),
    ]
