"""What heartbeats cost an idle workspace in processor time, beside the same workspace without a platform.

Two hundred times as many as usual are sent to a platform on this machine, so that their cost stands out of
the noise; what is left after the other's own is divided by their number, and shown for an hour of them at the
usual interval. Signs of life, which the event loop leaves for the thread that sends them, are not multiplied:
they are in the second figure, of an idle workspace at its usual pace.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio.to_thread

from benchmarks.frame import Bench, Figure, at_most
from benchmarks.starting import free_port, message, running, settings, sidecar, until_answered
from workspace_adapter.testing import FakePlatform

FAST, USUAL = 0.05, 10.0
"""Seconds between two heartbeats."""

WATCHED = {FAST: 4.0, USUAL: 11.0}
"""Seconds of which the processor time is taken."""

HOUR = 3600.0

SETTLED = 1.5
"""Seconds after the answer."""


async def measure(bench: Bench) -> list[Figure]:
    """Let both beat and not beat, in turns."""
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        "beating fast": partial(anyio.to_thread.run_sync, beating, bench.scratch / "fast", FAST),
        "silent": partial(anyio.to_thread.run_sync, silent, bench.scratch / "silent", WATCHED[FAST]),
        "beating": partial(anyio.to_thread.run_sync, beating, bench.scratch / "usual", USUAL),
        "silent as long": partial(anyio.to_thread.run_sync, silent, bench.scratch / "long", WATCHED[USUAL]),
    }
    used = await bench.interleave(sides, rounds=3)
    beats = HOUR / USUAL
    each = [
        max(0.0, (fast - none) / (WATCHED[FAST] / FAST))
        for fast, none in zip(used["beating fast"], used["silent"], strict=True)
    ]
    an_hour = HOUR / WATCHED[USUAL]
    return [
        Figure(
            what="an hour of heartbeats",
            unit="s of processor time",
            measured=[beats * cost for cost in each],
            limit=at_most(HOUR / 1000),
        ),
        Figure(
            what="an hour of an idle workspace with a platform",
            unit="s of processor time",
            measured=[an_hour * cost for cost in used["beating"]],
            against="without",
            reference=[an_hour * cost for cost in used["silent as long"]],
        ),
    ]


def beating(root: Path, interval: float) -> float:
    """Return the seconds of processor time that a workspace with a platform used."""
    with FakePlatform("bench", configs_dir=root / "configs") as platform:
        more = {"PLATFORM_URL": platform.url, "WORKSPACE_HEARTBEAT_INTERVAL": str(interval)}
        cost = used(root, WATCHED[interval], more)
        platform.assert_no_violations()
        return cost


def silent(root: Path, watched: float) -> float:
    """Return the seconds of processor time that a workspace of its own used."""
    return used(root, watched, {})


def used(root: Path, watched: float, more: dict[str, str]) -> float:
    """Start a workspace, answer a message and watch it do nothing."""
    port = free_port()
    environ = settings(port, root, "echo", WORKSPACE_URL=f"http://127.0.0.1:{port}", **more)
    with running(sidecar(), environ=environ) as process:
        until_answered(port, message("hello"))
        time.sleep(SETTLED)
        before = processor_time(process.pid)
        time.sleep(watched)
        return processor_time(process.pid) - before


def processor_time(pid: int) -> float:
    """What the kernel says that a process's threads used, in seconds."""
    spent = (file.read_text().split()[0] for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(map(int, spent)) / 1e9
