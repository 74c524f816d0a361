"""Echoes that 16 callers get in a second, journalled by us, in memory by the SDK's own server.

Fair because both answer the same messages of the same callers, over connections that are kept open,
in one process each, on the same Python, SDK and HTTP server; ours fsyncs the message, its start and
its answer, while the peer forgets everything when it ends. The peer is ``DefaultRequestHandler`` with
``InMemoryTaskStore`` and the cheapest executor whose answer that store keeps, one event.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import anyio
import anyio.to_thread

from benchmarks.frame import Bench, Figure, at_least, at_most
from benchmarks.load import DIALECTS, Load, load_from_outside
from workspace_adapter.testing.workspace import Workspace

CALLERS = 16
SECONDS = 0.6


async def measure(bench: Bench) -> list[Figure]:
    """Send in both dialects."""
    places = {"WORKSPACE_MAX_CONCURRENT_TURNS": str(CALLERS), "WORKSPACE_SESSIONS_OPEN": str(CALLERS)}
    workspace = Workspace(bench.scratch / "workspace", "echo", environ=os.environ, settings=places)
    try:
        await workspace.start()
        with plain_server() as port:
            await until_open(port)
            sides: dict[str, Callable[[], Awaitable[Load]]] = {}
            for dialect in DIALECTS:
                sides[f"ours {dialect}"] = partial(sent, workspace.port, dialect)
                sides[f"theirs {dialect}"] = partial(sent, port, dialect)
            loads = await bench.interleave(sides, rounds=15)
    finally:
        workspace.kill_everything()
    figures = [
        Figure(
            what=f"A2A {dialect}, {CALLERS} callers",
            unit="/s",
            measured=[load.rate for load in loads[f"ours {dialect}"]],
            against=f"a2a-sdk {version('a2a-sdk')}, DefaultRequestHandler, InMemoryTaskStore, uvicorn",
            reference=[load.rate for load in loads[f"theirs {dialect}"]],
            limit=at_least(times=2),
        )
        for dialect in DIALECTS
    ]
    busiest = [max(load.busy for load in of_round) for of_round in zip(*loads.values(), strict=True)]
    return [
        *figures,
        Figure(what="the callers' process, busy", unit="%", measured=busiest, limit=at_most(60)),
    ]


async def sent(port: int, dialect: str) -> Load:
    """Load one server for a moment."""
    return await anyio.to_thread.run_sync(load_from_outside, port, dialect, CALLERS, SECONDS)


@contextmanager
def plain_server() -> Iterator[int]:
    """Run the peer; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.peers.plain_a2a", str(port)]
    peer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        peer.kill()
        peer.wait()


async def until_open(port: int) -> None:
    """Wait until somebody listens there."""
    with anyio.fail_after(60):
        while True:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return
            except OSError:
                await anyio.sleep(0.02)
