"""What 100,000 workspaces cost one shim that beat every 30 seconds, over 64 kept connections.

That is 3,334 heartbeats a second, each of a sidecar's usual size, its bearer looked up and the beat committed
before it is answered; whoever beats is another process. The shim is the command a user runs, on SQLite and on
PostgreSQL, and its processor time and memory are the kernel's count of that process. No peer does this; the
limits are a share of one core, and what a small machine has.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import anyio.to_thread
import asyncpg
from tests.shim.postgres import Postgres, programs

from benchmarks.beat import processor_time
from benchmarks.beating import CARD, name, token
from benchmarks.frame import Bench, Figure, Unmeasurable, at_least, at_most
from benchmarks.starting import ENVIRON, PATIENCE, free_port, running
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.front.identity import digest
from workspace_adapter.shim.store.postgres import PostgresStore
from workspace_adapter.shim.store.sqlite import SqliteStore

WORKSPACES = 100_000
INTERVAL = 30.0
CONNECTIONS = 64
SECONDS = 15.0


class Cost(NamedTuple):
    """What it took."""

    share: float
    """Of one core, in per cent."""
    resident: float
    """MB, at the end."""
    answered: float
    """Within a second, of all that were due, in per cent."""
    p99: float
    """How long one took, in milliseconds."""


async def measure(bench: Bench) -> list[Figure]:
    """Beat on both databases in turns."""
    sides = {"SQLite": partial(anyio.to_thread.run_sync, on_sqlite, bench.scratch / "sqlite")}
    if programs() is None:
        raise Unmeasurable("PostgreSQL is missing: apt install postgresql")
    sides["PostgreSQL"] = partial(anyio.to_thread.run_sync, on_postgres, bench.scratch / "postgres")
    costs = await bench.interleave(sides, rounds=2)
    return [
        figure
        for side, measured in costs.items()
        for figure in (
            Figure(
                what=f"100,000 workspaces beating, {side}",
                unit="% of a core",
                measured=[cost.share for cost in measured],
                limit=at_most(40),
            ),
            Figure(
                what=f"the same: memory of the shim, {side}",
                unit="MB",
                measured=[cost.resident for cost in measured],
                limit=at_most(250),
            ),
            Figure(
                what=f"the same: answered within a second, {side}",
                unit="%",
                measured=[cost.answered for cost in measured],
                limit=at_least(99),
            ),
            Figure(
                what=f"the same: a heartbeat's 99th percentile, {side}",
                unit="ms",
                measured=[cost.p99 for cost in measured],
            ),
        )
    ]


def on_sqlite(root: Path) -> Cost:
    """Beat to a shim on SQLite."""
    root.mkdir(exist_ok=True)
    file = root / "shim.sqlite"
    if not file.exists():
        anyio.run(_make, SqliteStore(file, Rules()))
        connection = sqlite3.connect(file)
        for table, rows in tables():
            columns = COLUMNS[table].split()
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
        connection.commit()
        connection.close()
    return beaten(SHIM_STATE_DIR=str(root))


def on_postgres(root: Path) -> Cost:
    """Beat to a shim on PostgreSQL."""
    server = Postgres()
    try:
        server.start()
        anyio.run(_make, PostgresStore(server.url, Rules()))
        anyio.run(_fill, server.url)
        return beaten(SHIM_DATABASE_URL=server.url)
    finally:
        server.stop()


async def _make(store: SqliteStore | PostgresStore) -> None:
    async with store:
        pass


async def _fill(url: str) -> None:
    connection = await asyncpg.connect(url)
    for table, rows in tables():
        columns = COLUMNS[table].split()
        await connection.copy_records_to_table(
            table, schema_name="workspace_adapter", columns=columns, records=rows
        )
    await connection.execute("ANALYZE")
    await connection.close()


COLUMNS = {
    "workspaces": "id status url boot_id restarting card created_at provisioner spec secret",
    "boots": "workspace_id boot_id seen_at",
    "vitals": "workspace_id beat_at active_tasks max_concurrent hold_until report",
    "tokens": "digest role workspace_id label created_at",
}


def tables() -> Iterator[tuple[str, list[tuple[object, ...]]]]:
    """The rows of workspaces that have all registered."""
    now, card = time.time(), json.dumps(CARD)
    everybody = range(WORKSPACES)
    yield (
        "workspaces",
        [
            (
                name(n),
                "online",
                "http://127.0.0.1:9",
                f"{n:016x}",
                False,
                card,
                now,
                "external",
                "{}",
                "s" * 43,
            )
            for n in everybody
        ],
    )
    yield "boots", [(name(n), f"{n:016x}", now) for n in everybody]
    yield "vitals", [(name(n), now, 0, 1, 0.0, "{}") for n in everybody]
    yield "tokens", [(digest(token(n)), "workspace", name(n), "", now) for n in everybody]


def beaten(**settings: str) -> Cost:
    """Start a shim, beat to it, and count."""
    port = free_port()
    environ = {**ENVIRON, "SHIM_PORT": str(port), "SHIM_OFFLINE_AFTER": "600", **settings}
    with running(["-m", "workspace_adapter", "platform", "serve"], environ=environ) as shim:
        until_ready(port)
        spent = -processor_time(shim.pid)
        told = load(port)
        spent += processor_time(shim.pid)
        return Cost(
            # Of each heartbeat, times how many there are: also where this machine could not keep the pace.
            share=100 * spent / (told["answered"] + told["failed"]) * WORKSPACES / INTERVAL,
            resident=resident(shim.pid),
            answered=100 * told["answered"] / (WORKSPACES / INTERVAL * SECONDS),
            p99=told["p99_ms"],
        )


def until_ready(port: int) -> None:
    """Wait until the shim serves."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the shim was not ready in time")


def load(port: int) -> dict[str, float]:
    """Have everybody beat; return what came of it."""
    what = [port, WORKSPACES, INTERVAL, CONNECTIONS, SECONDS]
    command = [sys.executable, "-m", "benchmarks.beating", *map(str, what)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=10 * SECONDS, check=True)
    told: dict[str, float] = json.loads(ended.stdout)
    return told


def resident(pid: int) -> float:
    """What the kernel says that a process has in memory, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kilobytes) * 1024 / 1e6
