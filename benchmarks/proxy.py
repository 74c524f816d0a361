"""What the shim adds to a call: passed through, with a row first, on its way to an idle workspace.

Fair because every side stands before the same workspace, the least there can be, one process each, on the
same server (uvicorn with uvloop and httptools), with the same callers over connections that are kept. Ours
knows its callers by their tokens, reads workspaces from a store and checks addresses; the proxy written with
httpx does none of this. Latencies are medians of one caller, beside that caller's with nothing between. A
queued message's way is from its caller's send to the workspace's first byte, with the commit to the disk.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import anyio.to_thread
from tests.shim.postgres import Postgres, programs

from benchmarks.frame import Bench, Figure, Unmeasurable, at_least, at_most
from benchmarks.load import Load, load_from_outside
from benchmarks.send import until_open

CALLERS = 32
SECONDS = 0.6
ADMIN = "the-operator-of-a-benchmark"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a caller sends to."""

    port: int
    path: str = "/"
    bearer: str = ""

    async def load(self, dialect: str, callers: int) -> Load:
        """Load it for a moment."""
        return await anyio.to_thread.run_sync(
            load_from_outside, self.port, dialect, callers, SECONDS, self.path, self.bearer
        )


async def measure(bench: Bench) -> list[Figure]:
    """Ask all sides."""
    if programs() is None:
        raise Unmeasurable("PostgreSQL is missing: apt install postgresql")
    with ExitStack() as stack:
        echo = stack.enter_context(child("benchmarks.peers.echo_workspace"))
        await until_open(echo)
        httpx = stack.enter_context(child("benchmarks.peers.httpx_proxy", f"http://127.0.0.1:{echo}/"))
        server = Postgres()
        stack.callback(server.stop)
        server.start()
        ports = {
            "sqlite": stack.enter_context(shim(bench.scratch)),
            "postgres": stack.enter_context(shim(bench.scratch, SHIM_DATABASE_URL=server.url)),
        }
        await until_open(httpx)
        shims = {name: await introduced(port, echo) for name, port in ports.items()}
        direct, peer = Target(echo), Target(httpx)
        sides: dict[str, Callable[[], Awaitable[Load]]] = {
            "many ours": partial(shims["sqlite"].load, "get", CALLERS),
            "many httpx": partial(peer.load, "get", CALLERS),
            "one ours": partial(shims["sqlite"].load, "get", 1),
            "one direct": partial(direct.load, "get", 1),
            "message sqlite": partial(shims["sqlite"].load, "0.3", 1),
            "message postgres": partial(shims["postgres"].load, "0.3", 1),
            "message direct": partial(direct.load, "0.3", 1),
        }
        return figures(await bench.interleave(sides, rounds=15))


def figures(loads: Mapping[str, Sequence[Load]]) -> list[Figure]:
    """Say what the rounds came to."""

    def waits(side: str) -> list[float]:
        return [1000 * median(load.waits) for load in loads[side]]

    ways = [load.ways for load in loads["message postgres"]]
    straight = "the caller and the workspace alone"
    return [
        Figure(
            what=f"passed through, {CALLERS} callers",
            unit="/s",
            measured=[load.rate for load in loads["many ours"]],
            against=f"the same with httpx {version('httpx')}, uvicorn (uvloop, httptools)",
            reference=[load.rate for load in loads["many httpx"]],
            limit=at_least(times=4),
        ),
        Figure(
            what="passed through, one caller, median",
            unit="ms",
            measured=waits("one ours"),
            against=straight,
            reference=waits("one direct"),
            limit=at_most(0.3, times=1),
        ),
        Figure(
            what="a row first, SQLite, one caller, median",
            unit="ms",
            measured=waits("message sqlite"),
            against=straight,
            reference=waits("message direct"),
            limit=at_most(1.5, times=1),
        ),
        Figure(
            what="queued to first byte, PostgreSQL, median",
            unit="ms",
            measured=[1000 * median(of_round) for of_round in ways],
            limit=at_most(5),
        ),
        Figure(
            what="queued to first byte, PostgreSQL, p99",
            unit="ms",
            measured=[1000 * quantiles(of_round, n=100)[-1] for of_round in ways],
            limit=at_most(20),
        ),
    ]


# --- processes ------------------------------------------------------------------------------


@contextmanager
def child(module: str, *arguments: str, **environ: str) -> Iterator[int]:
    """Run a program that is told its port first; give the port."""
    port = free_port()
    with running([sys.executable, "-m", module, str(port), *arguments], environ):
        yield port


@contextmanager
def shim(scratch: Path, **settings: str) -> Iterator[int]:
    """Run ours; give its port."""
    port = free_port()
    environ = {
        "SHIM_PORT": str(port),
        "SHIM_STATE_DIR": str(scratch / f"shim-{port}"),
        "SHIM_ADMIN_TOKEN": ADMIN,
        "SHIM_RATE_LIMIT": "0",
        "SHIM_OFFLINE_AFTER": "3600",
        "SHIM_LOG_LEVEL": "warning",
        **settings,
    }
    with running([sys.executable, "-m", "workspace_adapter", "platform", "serve"], environ):
        yield port


@contextmanager
def running(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


async def introduced(port: int, workspace: int) -> Target:
    """Make the workspace and a caller known to a shim."""
    await until_open(port)
    while True:
        try:
            made = await told(port, "/workspaces", ADMIN, {"id": "w", "max_concurrent_tasks": 64})
            break
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it opens its store
                raise
            await anyio.sleep(0.05)
    registration = {"id": "w", "url": f"http://127.0.0.1:{workspace}", "agent_card": {}, "boot_id": "b"}
    await told(port, "/registry/register", made["auth_token"], registration)
    caller = await told(port, "/tokens", ADMIN, {"name": "load"})
    return Target(port, "/workspaces/w/a2a", caller["auth_token"])


async def told(port: int, path: str, bearer: str, body: object) -> dict[str, Any]:
    """Post one call to a shim."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"},
    )

    def post() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    return await anyio.to_thread.run_sync(post)
