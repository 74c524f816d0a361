"""From the start of the process to the first answer, beside a plain server that has nothing to remember.

Ours boots on a journal of 1,000 sessions with 100 turns that a SIGKILL cut; it finds the cut ones, has the
runtime at work on them again, and lets the new message in. The peer boots with nothing. Both are asked by a
caller who tries again each millisecond, and a process counts from its ``fork``. Places are 101, so that the
new message does not wait for the agent's work on the 100, which does not end, like that of one who waits for
its model. With one place, the default, and with echo for a runtime, it waits until all of them are answered:
shown without a limit, as is the boot of an empty journal.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from benchmarks.endless import ENDLESS
from benchmarks.frame import Bench, Figure, at_most
from benchmarks.starting import (
    PATIENCE,
    asked,
    copied,
    free_port,
    message,
    plain_server,
    running,
    settings,
    sidecar,
    until_answered,
)
from workspace_adapter.sidecar.journal import Reader
from workspace_adapter.turns import State

SESSIONS, CUT = 1000, 100
AT_WORK = "benchmarks.endless:EndlessAdapter"
AT_ONCE = {"WORKSPACE_MAX_CONCURRENT_TURNS": str(CUT + 1), "WORKSPACE_SESSIONS_OPEN": str(CUT + 1)}
ONE = {"WORKSPACE_INBOX_LIMIT": str(2 * CUT)}


async def measure(bench: Bench) -> list[Figure]:
    """Boot them in turns."""
    journals = {"at once": bench.scratch / "at once", "one": bench.scratch / "one"}
    for name, root in journals.items():
        await anyio.to_thread.run_sync(prepare, root, AT_ONCE if name == "at once" else ONE)
    empty = bench.scratch / "empty"
    empty.mkdir()
    live = bench.scratch / "live"
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        "plain": partial(anyio.to_thread.run_sync, theirs),
        "empty": partial(anyio.to_thread.run_sync, ours, empty, live, AT_WORK, AT_ONCE),
        "at once": partial(anyio.to_thread.run_sync, ours, journals["at once"], live, AT_WORK, AT_ONCE),
        "one": partial(anyio.to_thread.run_sync, ours, journals["one"], live, "echo", ONE),
    }
    took = await bench.interleave(sides, rounds=15)
    against = "a plain a2a-sdk server"
    return [
        Figure(
            what=f"first answer, {SESSIONS:,} sessions, {CUT} cut turns",
            unit="ms",
            measured=took["at once"],
            against=against,
            reference=took["plain"],
            limit=at_most(times=1.2),
        ),
        Figure(
            what="first answer, empty journal",
            unit="ms",
            measured=took["empty"],
            against=against,
            reference=took["plain"],
        ),
        Figure(
            what=f"first answer behind the {CUT} cut turns, one after another",
            unit="ms",
            measured=took["one"],
            against=against,
            reference=took["plain"],
        ),
    ]


def theirs() -> float:
    """Start the peer; return the ms to its first answer."""
    port = free_port()
    began = time.perf_counter()
    with running(plain_server(port)):
        until_answered(port, message("hello"))
        return 1e3 * (time.perf_counter() - began)


def ours(root: Path, live: Path, adapter: str, places: dict[str, str]) -> float:
    """Start a sidecar on a copy of a journal; return the ms to its first answer."""
    port = free_port()
    environ = settings(port, copied(root, live), adapter, **places)
    began = time.perf_counter()
    with running(sidecar(), environ=environ):
        until_answered(port, message("hello"))
        return 1e3 * (time.perf_counter() - began)


def prepare(root: Path, places: dict[str, str]) -> None:
    """Answer a message of each session; then cut turns of the first hundred."""
    port = free_port()
    with running(sidecar(), environ=settings(port, root, "echo", **AT_ONCE)):
        until_answered(port, message("hello"))
        for number in range(SESSIONS):
            if asked(port, message("hello", context=f"c{number}")) != 200:
                raise RuntimeError("a message was not answered")
    with running(sidecar(), environ=settings(port, root, AT_WORK, **places)):
        waiting = []
        for number in range(CUT):
            caller = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            _connect(caller)
            caller.request(
                "POST", "/", message(ENDLESS, context=f"c{number}"), {"content-type": "application/json"}
            )
            waiting.append(caller)
        give_up = time.monotonic() + PATIENCE
        while _unfinished(root) < CUT:
            if time.monotonic() > give_up:
                raise TimeoutError("the turns were not accepted")
            time.sleep(0.05)


def _connect(caller: http.client.HTTPConnection) -> None:
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            caller.connect()
            return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _unfinished(root: Path) -> int:
    """How many are cut when the process is killed now: all that may run do, the rest are accepted."""
    with Reader.open(root / "state") as journal:
        counts = journal.counts()
    return counts.get(State.RUNNING, 0) + counts.get(State.ACCEPTED, 0)
