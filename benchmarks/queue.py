"""The platform's queue on PostgreSQL beside the plain statements on the same tables, and two other queues.

The raw side writes the same rows with the same indexes on the same server, as durably, with asyncpg: one
prepared ``INSERT`` a message on a connection of each caller's own; a claim is one ``UPDATE`` of what
``SKIP LOCKED`` finds along the same index, 32 are completed with their answers by one more. It asks for no
workspace, no depth, no room, no session's order, joins nothing, tells nobody. So a figure says what the
queue's promises cost. What was claimed is completed with one call, and again with a call each, as the
dispatcher does it: two figures, under the same limits. pgqueuer claims and completes 32 at once through its
own queries and then through its worker; procrastinate has a worker only. Both have a database of their own
there and store no answer. In SQLite the raw side is the insert of a row of the same size by ``sqlite3``, a
transaction each.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import asyncpg
from tests.shim.postgres import Postgres, programs

from benchmarks.frame import Bench, Figure, Unmeasurable, at_least, at_most
from workspace_adapter.queueing import Rules, State, Verdict
from workspace_adapter.shim.store.contract import Answer, Message, Settlement
from workspace_adapter.shim.store.postgres import PostgresStore
from workspace_adapter.shim.store.sqlite import SqliteStore

SECONDS = 0.3
BATCH = 32
BATCHES = 30
CLAIMS = 300
BODY = b"x" * 1024
RULES = Rules(depth_cap=1_000_000)
DONE = Verdict(state=State.COMPLETED, because="answered")
BACK = Verdict(state=State.QUEUED, because="put back")

INSERT = """
    INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, caller, method, priority,
        headers, state, order_key, enqueued_at, body)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $10, $11) RETURNING id
"""
CLAIM = """
    UPDATE a2a_queue AS q SET state = 'leased', attempt = attempt + 1, lease_owner = $2, lease_until = $3,
        leased_at = $4
    FROM (
        SELECT id FROM a2a_queue WHERE workspace_id = $1 AND state = 'queued' AND NOT taken
        ORDER BY order_key, id LIMIT $5 FOR UPDATE SKIP LOCKED
    ) AS next
    WHERE q.id = next.id RETURNING q.id, attempt, turn_key, context_id, caller, method, body, headers
"""
COMPLETE = """
    UPDATE a2a_queue AS q SET state = 'completed', ended_at = $2, answer_status = 200, answer = done.answer,
        body = NULL
    FROM unnest($1::bigint[], $3::bytea[]) AS done (id, answer) WHERE q.id = done.id AND state = 'leased'
"""
FILL = """
    INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, method, priority, headers, state,
        due_at, order_key, enqueued_at, body)
    SELECT 'w' || n % $2::int, $3 || n, 'h', CASE WHEN n % 2 = 0 THEN $3 || n END, 'message/send', 50, '{}',
        $4, CASE WHEN $4 = 'delayed' THEN 1e10 END, n, n, $5
    FROM generate_series(1, $1::int) AS n
"""

_numbers = itertools.count()


def new_message(workspace_id: str = "w0") -> Message:
    """Make one that was never sent, of a session of its own."""
    number = next(_numbers)
    key = hashlib.sha256(str(number).encode()).hexdigest()
    return Message(
        workspace_id=workspace_id,
        turn_key=key,
        content_hash=key,
        body=BODY,
        context_id=f"s{number}",
        caller="c",
    )


async def measure(bench: Bench) -> list[Figure]:
    """Measure both stores."""
    if programs() is None:
        raise Unmeasurable("PostgreSQL is missing: apt install postgresql")
    return [*await on_postgres(bench), *await on_sqlite(bench)]


async def on_postgres(bench: Bench) -> list[Figure]:
    """Measure one server with several schemas and databases."""
    rows = 100_000 if bench.quick else 1_000_000
    server = Postgres("shared_buffers=256MB", "max_wal_size=4GB")
    try:
        server.start()
        async with AsyncExitStack() as stack:
            places = {
                name: await stack.enter_async_context(place(server, name))
                for name in ("ours", "raw", "shallow", "deep")
            }
            ours, shallow, deep = (places[name] for name in ("ours", "shallow", "deep"))
            raws = [await stack.enter_async_context(connected(server, "raw")) for _ in range(16)]
            peers = []
            for module in ("pgqueuer_queue", "procrastinate_queue"):
                await raws[0].execute(f"CREATE DATABASE {module}")
                peers.append(stack.enter_context(peer(bench, server, module)))
            pgqueuer, procrastinate = peers
            enqueues = await bench.interleave(
                {
                    "ours 1": partial(rate, [partial(send, ours)]),
                    "raw 1": partial(rate, [partial(send_raw, raws[0])]),
                    "ours 16": partial(rate, [partial(send, ours)] * 16),
                    "raw 16": partial(rate, [partial(send_raw, raw) for raw in raws]),
                },
                rounds=15,
            )
            async with connected(server, "ours") as filler:
                emptying: dict[str, Callable[[], Awaitable[float]]] = {
                    "ours": partial(emptied, ours, filler, together),
                    "ours, a call each": partial(emptied, ours, filler, each),
                    "raw": partial(emptied_raw, raws[0]),
                    "pgqueuer": partial(pgqueuer, "batch"),
                    "pgqueuer's worker": partial(pgqueuer, "worker"),
                    "procrastinate's worker": partial(procrastinate, "worker"),
                }
                batches = await bench.interleave(emptying, rounds=11)
            await fill(server, "shallow", 1000)
            await fill(server, "deep", rows, hot=rows // 10, delayed=50_000)
            depths = await bench.interleave(
                {
                    "claims, 1,000": partial(claims, shallow),
                    "claims": partial(claims, deep),
                    "enqueues, 1,000": partial(rate, [partial(send, shallow)]),
                    "enqueues": partial(rate, [partial(send, deep)]),
                    "sweep": partial(swept, deep),
                },
                rounds=11,
            )
    finally:
        server.stop()
    against = f"the INSERT alone, asyncpg {asyncpg.__version__}"
    completed = f"claim and complete, batches of {BATCH}"
    return [
        *(
            Figure(
                what=f"enqueue, {callers}",
                unit="/s",
                measured=enqueues[f"ours {number}"],
                against=against,
                reference=enqueues[f"raw {number}"],
                limit=at_least(times=0.8),
            )
            for number, callers in ((1, "1 caller"), (16, "16 callers"))
        ),
        *(
            Figure(
                what=f"{completed}{how}",
                unit="/s",
                measured=batches[f"ours{how}"],
                against=other,
                reference=batches[side],
                limit=at_least(times=times),
            )
            for how in ("", ", a call each")
            for side, other, times in (
                ("raw", "two UPDATEs alone", 0.7),
                ("pgqueuer", "pgqueuer's queries", 1.4),
                ("pgqueuer's worker", "pgqueuer's worker", 3.0),
                ("procrastinate's worker", "procrastinate's worker", 3.0),
            )
        ),
        Figure(
            what=f"claim among {rows:,} and 50,000 delayed, 99th percentile",
            unit="ms",
            measured=depths["claims"],
            against="among 1,000",
            reference=depths["claims, 1,000"],
            limit=at_most(times=1.5),
        ),
        Figure(
            what=f"enqueue to {rows:,}, 1 caller",
            unit="/s",
            measured=depths["enqueues"],
            against="to 1,000",
            reference=depths["enqueues, 1,000"],
            limit=at_least(times=0.8),
        ),
        Figure(
            what=f"sweep of {rows:,} over 1,000 workspaces",
            unit="ms",
            measured=depths["sweep"],
            limit=at_most(20),
        ),
    ]


async def on_sqlite(bench: Bench) -> list[Figure]:
    """Measure the one file, for the record."""
    raw = sqlite3.connect(bench.scratch / "raw.sqlite", isolation_level=None, check_same_thread=False)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, workspace_id, turn_key, state, order_key, body)")
    raw.execute("CREATE UNIQUE INDEX message ON queue (workspace_id, turn_key)")
    raw.execute("CREATE INDEX ready ON queue (workspace_id, order_key, id) WHERE state = 'queued'")
    async with SqliteStore(bench.scratch / "ours.sqlite", RULES) as store:
        await store.create_workspace("w0", max_concurrent=900)
        sides: dict[str, Callable[[], Awaitable[float]]] = {
            "ours 1": partial(rate, [partial(send, store)]),
            "ours 16": partial(rate, [partial(send, store)] * 16),
            "raw": partial(anyio.to_thread.run_sync, inserted, raw),
        }
        rates = await bench.interleave(sides, rounds=15)
    raw.close()
    return [
        Figure(
            what=f"enqueue in SQLite, {callers}",
            unit="/s",
            measured=rates[f"ours {number}"],
            against="the INSERT alone, one by one, sqlite3",
            reference=rates["raw"],
        )
        for number, callers in ((1, "1 caller"), (16, "16 callers"))
    ]


@asynccontextmanager
async def place(server: Postgres, schema: str) -> AsyncIterator[PostgresStore]:
    """Open a store with workspaces that take anything."""
    async with PostgresStore(server.url, RULES, schema=schema) as store:
        async with connected(server, schema) as connection:
            await connection.execute(
                "INSERT INTO workspaces (id, status, created_at, provisioner, spec, secret)"
                " SELECT 'w' || n, 'online', 0, 'external', '{}', '' FROM generate_series(0, 999) AS n"
            )
            await connection.execute(
                "INSERT INTO vitals (workspace_id, max_concurrent) SELECT id, 900 FROM workspaces"
            )
        yield store


@asynccontextmanager
async def connected(server: Postgres, schema: str) -> AsyncIterator[Any]:
    """Connect as the raw side does, with nothing set but where the tables are."""
    connection = await asyncpg.connect(server.url, server_settings={"search_path": schema, "jit": "off"})
    try:
        yield connection
    finally:
        await connection.close()


async def fill(server: Postgres, schema: str, rows: int, *, hot: int = 0, delayed: int = 0) -> None:
    """Queue rows over 1,000 workspaces, and some more for the first; clean up as autovacuum would."""
    async with connected(server, schema) as connection:
        await connection.execute("SET synchronous_commit = off")
        for number, over, key, state in (
            (rows - hot, 1000, "a", "queued"),
            (hot, 1, "b", "queued"),
            (delayed, 1000, "c", "delayed"),
        ):
            await connection.execute(FILL, number, over, key, state, b"{}", timeout=600)
        await connection.execute("VACUUM ANALYZE a2a_queue", timeout=600)


async def rate(callers: Sequence[Callable[[], Awaitable[object]]]) -> float:
    """Have each caller call again and again for a moment; return calls a second."""
    began = time.perf_counter()
    calls = 0

    async def call(once: Callable[[], Awaitable[object]]) -> None:
        nonlocal calls
        while time.perf_counter() - began < SECONDS:
            await once()
            calls += 1

    await asyncio.gather(*(call(once) for once in callers))
    return calls / (time.perf_counter() - began)


async def send(store: PostgresStore | SqliteStore) -> None:
    await store.enqueue(new_message())


async def send_raw(connection: Any) -> None:
    message, now = new_message(), time.time()
    await connection.fetchval(
        INSERT,
        message.workspace_id,
        message.turn_key,
        message.content_hash,
        message.context_id,
        message.caller,
        message.method,
        message.priority,
        "{}",
        now,
        now,
        message.body,
    )


def inserted(connection: sqlite3.Connection) -> float:
    """Insert for a moment; return rows a second."""
    began = time.perf_counter()
    calls = 0
    while time.perf_counter() - began < SECONDS:
        message = new_message()
        connection.execute(
            "INSERT INTO queue (workspace_id, turn_key, state, order_key, body)"
            " VALUES (?, ?, 'queued', ?, ?)",
            (message.workspace_id, message.turn_key, time.time(), message.body),
        )
        calls += 1
    return calls / (time.perf_counter() - began)


async def together(store: PostgresStore, settlements: list[Settlement]) -> list[bool]:
    """Settle with one call."""
    return await store.settle(settlements)


async def each(store: PostgresStore, settlements: list[Settlement]) -> list[bool]:
    """Settle at once with a call each, as the dispatcher's tasks do when their answers come together."""
    settled = await asyncio.gather(*(store.settle([settlement]) for settlement in settlements))
    return [done for (done,) in settled]


Settle = Callable[[PostgresStore, list[Settlement]], Awaitable[list[bool]]]


async def emptied(store: PostgresStore, filler: Any, settle: Settle) -> float:
    """Claim and complete what was queued; return items a second."""
    await refill(filler)
    answer = Answer(status=200, body=BODY)
    items = 0
    began = time.perf_counter()
    while items < BATCH * BATCHES:
        leases = await store.claim("w0", "owner", most=BATCH)
        settled = await settle(
            store, [Settlement(lease=lease, verdict=DONE, answer=answer) for lease in leases]
        )
        assert settled == [True] * BATCH
        items += len(settled)
    return items / (time.perf_counter() - began)


async def emptied_raw(connection: Any) -> float:
    """Do the same with the two statements alone."""
    await refill(connection)
    items = 0
    began = time.perf_counter()
    while items < BATCH * BATCHES:
        now = time.time()
        rows = await connection.fetch(CLAIM, "w0", "owner", now + 30, now, BATCH)
        await connection.execute(COMPLETE, [row["id"] for row in rows], now, [BODY] * len(rows))
        assert len(rows) == BATCH
        items += len(rows)
    return items / (time.perf_counter() - began)


async def refill(connection: Any) -> None:
    """Leave nothing queued but what is now to be claimed."""
    await connection.execute("DELETE FROM a2a_queue")
    await connection.execute(FILL, BATCH * BATCHES, 1, f"{next(_numbers)}-", "queued", BODY)
    await connection.execute("VACUUM ANALYZE a2a_queue")


async def claims(store: PostgresStore) -> float:
    """Claim an item of one workspace after another, and put it back; return the slow ones' milliseconds."""
    took: list[float] = []
    for number in range(CLAIMS):
        began = time.perf_counter()
        (lease,) = await store.claim(f"w{number * 7 % 1000}", "owner", most=1)
        took.append((time.perf_counter() - began) * 1e3)
        await store.settle([Settlement(lease=lease, verdict=BACK)])
    return sorted(took)[int(len(took) * 0.99)]


async def swept(store: PostgresStore) -> float:
    """Ask which workspaces have something due; return milliseconds."""
    began = time.perf_counter()
    assert len(await store.due()) == 1000
    return (time.perf_counter() - began) * 1e3


@contextmanager
def peer(bench: Bench, server: Postgres, module: str) -> Iterator[Callable[[str], Awaitable[float]]]:
    """Run a peer in its own environment, on a database of its own; yield how to have it measure."""
    url = server.url.replace("/postgres?", f"/{module}?")
    child = subprocess.Popen(
        [str(bench.peers), "-m", f"benchmarks.peers.{module}", url, str(BATCH), str(BATCHES)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def ask(what: str) -> float:
        assert child.stdin is not None
        assert child.stdout is not None
        print(what, file=child.stdin, flush=True)
        return float(child.stdout.readline())

    async def measured(what: str) -> float:
        return await anyio.to_thread.run_sync(ask, what)

    try:
        yield measured
    finally:
        child.kill()
        child.wait()
