"""From SIGTERM to the exit of an idle process, beside a bare application under uvicorn.

Both have answered one message before; nothing is in flight, so whatever the stop takes is the server's own:
ours drains, closes the gate, ends the runtime, closes the journal.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio.to_thread

from benchmarks.frame import Bench, Figure, at_most
from benchmarks.starting import (
    PATIENCE,
    free_port,
    message,
    running,
    settings,
    sidecar,
    until_answered,
)

MORE = 50
"""Milliseconds."""

IDLE = 0.5
"""Seconds after the answer, and up to a tenth more: uvicorn looks ten times a second whether to stop."""


async def measure(bench: Bench) -> list[Figure]:
    """Stop both in turns."""
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        "bare": partial(anyio.to_thread.run_sync, theirs),
        "ours": partial(anyio.to_thread.run_sync, ours, bench.scratch / "workspace"),
    }
    took = await bench.interleave(sides, rounds=11)
    return [
        Figure(
            what="an idle workspace",
            unit="ms",
            measured=took["ours"],
            against="a bare application under uvicorn",
            reference=took["bare"],
            limit=at_most(MORE, times=1),
        )
    ]


def theirs() -> float:
    """Stop the peer; return the ms it took."""
    port = free_port()
    with running(["-m", "benchmarks.peers.bare", "127.0.0.1", str(port)]) as process:
        until_answered(port, b"")
        return stopped(process)


def ours(root: Path) -> float:
    """Stop a sidecar; return the ms it took."""
    port = free_port()
    with running(sidecar(), environ=settings(port, root, "echo")) as process:
        until_answered(port, message("hello"))
        return stopped(process)


def stopped(process: subprocess.Popen[bytes]) -> float:
    """Send SIGTERM; return the ms to the exit."""
    time.sleep(IDLE + random.uniform(0, 0.1))
    told = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    return 1e3 * (time.perf_counter() - told)
