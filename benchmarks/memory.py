"""Memory of an idle sidecar with echo, beside an idle plain server; each has answered one message.

What counts is the proportional set size, each page by how many processes share it: it is what the machine
has less of. The resident set is shown beside it; it counts the pages of Python and of libraries that the
two have in common in full.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import anyio.to_thread

from benchmarks.frame import Bench, Figure, at_most
from benchmarks.starting import (
    free_port,
    message,
    plain_server,
    running,
    settings,
    sidecar,
    until_answered,
)

MORE = 8
"""MiB."""

IDLE = 1.0
"""Seconds after the answer."""


async def measure(bench: Bench) -> list[Figure]:
    """Start both in turns."""
    sides: dict[str, Callable[[], Awaitable[Mapping[str, float]]]] = {
        "plain": partial(anyio.to_thread.run_sync, theirs),
        "ours": partial(anyio.to_thread.run_sync, ours, bench.scratch / "workspace"),
    }
    found = await bench.interleave(sides, rounds=5)
    return [
        Figure(
            what=what,
            unit="MiB",
            measured=[sizes[name] for sizes in found["ours"]],
            against="a plain a2a-sdk server",
            reference=[sizes[name] for sizes in found["plain"]],
            limit=at_most(MORE, times=1) if name == "Pss" else None,
        )
        for what, name in (
            ("idle, proportional set", "Pss"),
            ("idle, resident set", "Rss"),
            ("idle, private and written to", "Private_Dirty"),
        )
    ]


def theirs() -> Mapping[str, float]:
    """Measure the peer."""
    port = free_port()
    with running(plain_server(port)) as process:
        until_answered(port, message("hello"))
        time.sleep(IDLE)
        return sizes(process.pid)


def ours(root: Path) -> Mapping[str, float]:
    """Measure a sidecar."""
    port = free_port()
    with running(sidecar(), environ=settings(port, root, "echo")) as process:
        until_answered(port, message("hello"))
        time.sleep(IDLE)
        return sizes(process.pid)


def sizes(pid: int) -> Mapping[str, float]:
    """What the kernel says of a process's memory, in MiB."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", told, re.M)}
