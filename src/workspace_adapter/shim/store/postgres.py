"""The store in PostgreSQL, for any number of replicas: ``SKIP LOCKED``, ``NOTIFY`` after the commit.

Everything is in one schema, ``workspace_adapter`` unless said otherwise:

``workspaces``, ``boots``, ``tokens``
    As their names say; ``boots`` are the boot ids a workspace ever had.
``vitals``
    What a workspace last reported, apart from its row because it changes all the time: no
    index names a column that does, so a beat leaves no dead index entries.
``a2a_queue``
    One row a message, with its body until it has its answer.
``claim``
    A function: a claim is one statement and one round trip, in which an advisory lock
    makes a workspace's room and its restart hold for all replicas.
``migrations``
    The number of the last migration.

``a2a_queue_ready`` holds what could go now and nothing else: what waits for a time, is
leased or has ended is in other partial indexes, so depth does not matter to a claim.
Times are UTC epoch seconds; ``card``, ``report`` and ``headers`` are JSON.

Enqueues and settlements that arrive while one is under way travel together, in the next
statement. Each is safe to repeat, so one whose connection was cut is.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.abc
import asyncpg

from ... import queueing
from ...errors import ContentConflict, QueueFull, StoreTooNew, StoreUnavailable, UnknownWorkspace
from ...queueing import DROPPABLE, ENDED, REPLAYABLE, REVIVED, WAITING, Rules, State
from .contract import (
    DORMANT,
    REACHABLE,
    Answer,
    Beat,
    Enqueued,
    Heard,
    Item,
    Lease,
    Message,
    Role,
    Settlement,
    Status,
    Stranded,
    Token,
    Workspace,
)

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

_LIVE = "('queued', 'delayed', 'leased')"

_FIRST = f"""
                (q.expires_at IS NULL OR q.expires_at > at) AND (q.context_id IS NULL OR (
                    NOT EXISTS (
                        SELECT FROM a2a_queue AS held WHERE held.workspace_id = of_workspace
                        AND held.context_id = q.context_id AND held.context_id IS NOT NULL
                        AND held.state = 'leased'
                    ) AND NOT EXISTS (
                        SELECT FROM a2a_queue AS earlier WHERE earlier.workspace_id = of_workspace
                        AND earlier.context_id = q.context_id AND earlier.context_id IS NOT NULL
                        AND earlier.state IN {_LIVE}
                        AND (earlier.order_key, earlier.id) < (q.order_key, q.id)
                    )
                ))
"""
"""Of a queued item ``q``: nothing of its session is leased or comes before it, and it is still wanted."""

MIGRATIONS: tuple[str, ...] = (
    f"""
    CREATE TABLE workspaces (
        id text COLLATE "C" PRIMARY KEY,
        status text NOT NULL,
        url text,
        boot_id text,
        restarting boolean NOT NULL DEFAULT false,
        card text,
        created_at float8 NOT NULL,
        provisioner text NOT NULL,
        spec text NOT NULL,
        secret text NOT NULL
    );
    CREATE TABLE boots (
        workspace_id text COLLATE "C" NOT NULL,
        boot_id text NOT NULL,
        seen_at float8 NOT NULL,
        PRIMARY KEY (workspace_id, boot_id)
    );
    CREATE TABLE vitals (
        workspace_id text COLLATE "C" PRIMARY KEY,
        beat_at float8,
        active_tasks bigint NOT NULL DEFAULT 0,
        max_concurrent int NOT NULL,
        hold_until float8 NOT NULL DEFAULT 0,
        report text NOT NULL DEFAULT '{{}}'
    ) WITH (fillfactor = 60);
    CREATE TABLE tokens (
        digest text PRIMARY KEY,
        role text NOT NULL,
        workspace_id text,
        label text NOT NULL,
        created_at float8 NOT NULL
    );
    CREATE TABLE a2a_queue (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        workspace_id text COLLATE "C" NOT NULL,
        turn_key text COLLATE "C" NOT NULL,
        content_hash text NOT NULL,
        context_id text COLLATE "C",
        caller text,
        method text NOT NULL,
        priority int NOT NULL,
        headers text NOT NULL,
        state text NOT NULL,
        order_key float8 NOT NULL,
        enqueued_at float8 NOT NULL,
        expires_at float8,
        due_at float8,
        attempt int NOT NULL DEFAULT 0,
        strikes int NOT NULL DEFAULT 0,
        lapses int NOT NULL DEFAULT 0,
        taken boolean NOT NULL DEFAULT false,
        lease_owner text,
        lease_until float8,
        leased_at float8,
        ended_at float8,
        last_error text,
        cursor text,
        body bytea,
        answer_status int,
        answer bytea
    ) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
    CREATE UNIQUE INDEX a2a_queue_message ON a2a_queue (workspace_id, turn_key);
    CREATE INDEX a2a_queue_ready ON a2a_queue (workspace_id, order_key, id)
        WHERE state = 'queued' AND NOT taken;
    CREATE INDEX a2a_queue_taken ON a2a_queue (workspace_id, order_key, id)
        WHERE state = 'queued' AND taken;
    CREATE INDEX a2a_queue_delayed ON a2a_queue (due_at) WHERE state = 'delayed';
    CREATE INDEX a2a_queue_delayed_at ON a2a_queue (workspace_id) WHERE state = 'delayed';
    CREATE INDEX a2a_queue_session ON a2a_queue (workspace_id, context_id, order_key, id)
        WHERE context_id IS NOT NULL AND state IN {_LIVE};
    CREATE UNIQUE INDEX a2a_queue_one_of_a_session ON a2a_queue (workspace_id, context_id)
        WHERE context_id IS NOT NULL AND state = 'leased';
    CREATE INDEX a2a_queue_leased ON a2a_queue (workspace_id) WHERE state = 'leased';
    CREATE INDEX a2a_queue_expires ON a2a_queue (expires_at)
        WHERE expires_at IS NOT NULL AND state IN ('queued', 'delayed');
    CREATE INDEX a2a_queue_ended ON a2a_queue (ended_at) WHERE ended_at IS NOT NULL;

    CREATE FUNCTION claim(
        of_workspace text, for_owner text, at float8, lease float8, most int, no_room int
    ) RETURNS SETOF a2a_queue LANGUAGE plpgsql AS $$
    DECLARE
        room int;
    BEGIN
        -- One claim of a workspace at a time. Each statement below sees what the last one committed.
        PERFORM pg_advisory_xact_lock(1463898960, hashtext(of_workspace));
        SELECT least(most, v.max_concurrent - greatest(v.active_tasks, (
                SELECT count(*) FROM a2a_queue AS held
                WHERE held.workspace_id = of_workspace AND held.state = 'leased'
            ))) INTO room
        FROM workspaces AS w JOIN vitals AS v ON v.workspace_id = w.id
        WHERE w.id = of_workspace AND w.status IN ('online', 'degraded') AND NOT w.restarting
            AND v.hold_until <= at AND v.active_tasks < no_room;
        IF room IS NULL THEN
            RETURN;
        END IF;
        RETURN QUERY
        WITH lost AS (
            SELECT q.id FROM a2a_queue AS q
            WHERE q.workspace_id = of_workspace AND q.state = 'leased' AND q.lease_until <= at
            ORDER BY q.order_key, q.id LIMIT most FOR UPDATE SKIP LOCKED
        ), again AS (
            SELECT q.id FROM a2a_queue AS q
            WHERE q.workspace_id = of_workspace AND q.state = 'queued' AND q.taken
                AND {_FIRST}
            ORDER BY q.order_key, q.id LIMIT most FOR UPDATE SKIP LOCKED
        ), fresh AS (
            SELECT q.id FROM a2a_queue AS q
            WHERE q.workspace_id = of_workspace AND q.state = 'queued' AND NOT q.taken
                AND {_FIRST}
            ORDER BY q.order_key, q.id LIMIT greatest(room, 0) FOR UPDATE SKIP LOCKED
        ), chosen AS (
            SELECT id FROM lost UNION ALL SELECT id FROM again UNION ALL SELECT id FROM fresh
        )
        UPDATE a2a_queue AS q SET attempt = q.attempt + 1, lapses = q.lapses + (q.state = 'leased')::int,
            state = 'leased', lease_owner = for_owner, lease_until = at + lease, leased_at = at,
            due_at = NULL
        FROM chosen WHERE q.id = chosen.id RETURNING q.*;
    END
    $$;
    """,
)
"""Forward only; the position of the last one is the schema's number."""

_NOW = "coalesce($1::float8, extract(epoch FROM statement_timestamp())::float8)"


def _among(states: Collection[State | Status]) -> str:
    """Write constants of ours for an ``IN``."""
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"


_WORKSPACES = "SELECT * FROM workspaces AS w JOIN vitals AS v ON v.workspace_id = w.id"

_DEPTH = (
    "(SELECT count(*) FROM (SELECT FROM a2a_queue AS q WHERE q.workspace_id = {0} AND q.state = 'queued'"
    " AND NOT q.taken LIMIT {1}) AS found)"
    " + (SELECT count(*) FROM (SELECT FROM a2a_queue AS q WHERE q.workspace_id = {0} AND q.state = 'queued'"
    " AND q.taken LIMIT {1}) AS found)"
    " + (SELECT count(*) FROM (SELECT FROM a2a_queue AS q WHERE q.workspace_id = {0} AND q.state = 'delayed'"
    " LIMIT {1}) AS found)"
)
"""What waits, counted on the partial indexes and no further than the cap."""

_ENQUEUE = f"""
    WITH sent AS (
        SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::int[], $9::text[], $10::float8[], $11::bytea[], $1::float8[]) WITH ORDINALITY
        AS s (workspace_id, turn_key, content_hash, context_id, caller, method, priority, headers,
            expires_in, body, now, number)
    ), open AS (
        SELECT w.id, CASE WHEN w.id = ANY ($14::text[]) THEN {_DEPTH.format("w.id", "$12::int")}
            ELSE 0 END AS depth
        FROM workspaces AS w
        WHERE w.id = ANY ($2::text[]) AND w.status <> 'removed'
    ), fits AS (
        SELECT * FROM (
            SELECT sent.*, coalesce(now, extract(epoch FROM statement_timestamp())::float8) AS at,
                open.depth + row_number() OVER (PARTITION BY sent.workspace_id ORDER BY number) AS place
            FROM sent JOIN open ON open.id = sent.workspace_id
        ) AS placed WHERE place <= $12::int
    ), made AS (
    INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, caller, method, priority,
        headers, state, order_key, enqueued_at, expires_at, body)
    SELECT workspace_id, turn_key, content_hash, context_id, caller, method, priority, headers,
        'queued', at - priority * $13::float8, at, at + expires_in, body
    FROM fits ORDER BY number
    ON CONFLICT (workspace_id, turn_key) DO NOTHING RETURNING id, workspace_id, turn_key
    )
    SELECT made.*, open.depth FROM made JOIN open ON open.id = made.workspace_id
"""

_ENQUEUE_ONE = f"""
    INSERT INTO a2a_queue (workspace_id, turn_key, content_hash, context_id, caller, method, priority,
        headers, state, order_key, enqueued_at, expires_at, body)
    SELECT w.id, $3, $4, $5, $6, $7, $8::int, $9, 'queued', {_NOW} - $8::int * $12::float8, {_NOW},
        {_NOW} + $10::float8, $11
    FROM workspaces AS w WHERE w.id = $2 AND w.status <> 'removed'
    ON CONFLICT (workspace_id, turn_key) DO NOTHING RETURNING id, workspace_id, turn_key
"""
"""The same for one message that there is room for: most, and less than half the work."""

_KNOWN = f"""
    SELECT asked.workspace_id, asked.turn_key, q.id, q.state, q.content_hash,
        (SELECT status FROM workspaces AS w WHERE w.id = asked.workspace_id) AS status,
        {_DEPTH.format("asked.workspace_id", "$3::int")} AS depth
    FROM unnest($1::text[], $2::text[]) AS asked (workspace_id, turn_key)
    LEFT JOIN a2a_queue AS q ON q.workspace_id = asked.workspace_id AND q.turn_key = asked.turn_key
"""

_REQUEUE = f"""
    UPDATE a2a_queue SET state = 'queued', order_key = {_NOW} - priority * $2::float8, enqueued_at = {_NOW},
        expires_at = {_NOW} + $3::float8, strikes = 0, lapses = 0, taken = false, ended_at = NULL,
        due_at = NULL, answer_status = NULL, answer = NULL
    WHERE id = $4 AND state = ANY ($5::text[]) RETURNING workspace_id
"""

_SETTLE = """
    WITH said AS (
        SELECT s.*, coalesce(now, extract(epoch FROM statement_timestamp())::float8) AS at
        FROM unnest($1::float8[], $2::bigint[], $3::int[], $4::text[], $5::text[], $6::boolean[],
            $7::boolean[], $8::float8[], $9::boolean[], $10::text[], $11::int[], $12::bytea[])
        AS s (now, id, attempt, owner, state, strike, taken, wait, ended, because, answer_status, answer)
    ), settled AS (
        UPDATE a2a_queue AS q SET state = said.state, strikes = q.strikes + said.strike::int, lapses = 0,
            taken = q.taken OR said.taken,
            expires_at = CASE WHEN said.taken THEN NULL ELSE q.expires_at END,
            due_at = CASE WHEN said.state = 'delayed' THEN said.at + said.wait END,
            ended_at = CASE WHEN said.ended THEN said.at END,
            last_error = said.because,
            body = CASE WHEN said.state = 'completed' THEN NULL ELSE q.body END,
            answer_status = said.answer_status, answer = said.answer
        FROM said WHERE q.id = said.id AND q.state = 'leased' AND q.attempt = said.attempt
            AND q.lease_owner = said.owner
        RETURNING q.id, q.workspace_id, q.state, said.at + said.wait AS until
    ), held AS (
        UPDATE vitals AS v SET hold_until = greatest(v.hold_until, busy.until)
        FROM (SELECT workspace_id, max(until) AS until FROM settled WHERE state = 'queued'
            GROUP BY workspace_id) AS busy
        WHERE v.workspace_id = busy.workspace_id
    )
    SELECT id FROM settled
"""

_BEAT = f"""
    WITH beat AS (
        SELECT * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::int[], $6::text[], $7::text[],
            $8::boolean[])
        AS b (workspace_id, boot_id, active_tasks, max_concurrent, status, report, whole)
    ), counted AS (
        SELECT beat.*, w.status AS was, w.secret,
            coalesce(beat.status, CASE w.status WHEN 'degraded' THEN w.status ELSE 'online' END) AS next
        FROM beat
        JOIN workspaces AS w ON w.id = beat.workspace_id AND w.boot_id IS NOT DISTINCT FROM beat.boot_id
            AND w.status NOT IN {_among(DORMANT)}
        JOIN vitals AS v ON v.workspace_id = beat.workspace_id
        ORDER BY v.workspace_id FOR NO KEY UPDATE OF v
    ), turned AS (
        UPDATE workspaces AS w SET status = counted.next FROM counted
        WHERE w.id = counted.workspace_id AND counted.was <> counted.next
            AND w.status NOT IN {_among(DORMANT)}
    )
    UPDATE vitals AS v SET beat_at = {_NOW}, active_tasks = counted.active_tasks,
        max_concurrent = coalesce(counted.max_concurrent, v.max_concurrent),
        report = CASE WHEN counted.whole THEN counted.report
            ELSE (v.report::jsonb || counted.report::jsonb)::text END,
        hold_until = CASE WHEN counted.active_tasks
            < least({queueing.NO_ROOM}, coalesce(counted.max_concurrent, v.max_concurrent))
            THEN 0 ELSE v.hold_until END
    FROM counted WHERE v.workspace_id = counted.workspace_id
    RETURNING v.workspace_id, v.max_concurrent, counted.secret,
        {_DEPTH.format("v.workspace_id", "$9::int")} AS waiting
"""

_REPORTED: dict[bool | None, str | None] = {True: "degraded", False: "online", None: None}

_DUE = f"""
    WITH RECURSIVE ready (id) AS (
        (SELECT workspace_id FROM a2a_queue WHERE state = 'queued' AND NOT taken
        ORDER BY workspace_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT workspace_id FROM a2a_queue
            WHERE state = 'queued' AND NOT taken AND workspace_id > ready.id
            ORDER BY workspace_id LIMIT 1
        ) FROM ready WHERE ready.id IS NOT NULL
    ), due (id, fresh) AS (
        SELECT id, true FROM ready WHERE id IS NOT NULL
        UNION ALL
        SELECT workspace_id, false FROM a2a_queue WHERE state = 'queued' AND taken
        UNION ALL
        SELECT workspace_id, false FROM a2a_queue WHERE state = 'leased' AND lease_until <= {_NOW}
    )
    SELECT DISTINCT due.id FROM due
    CROSS JOIN LATERAL (
        -- OFFSET 0: looked up for each, whatever the planner thinks of tables it has not analysed yet.
        SELECT FROM workspaces AS w WHERE w.id = due.id AND w.status IN {_among(REACHABLE)}
            AND NOT w.restarting OFFSET 0
    ) AS reachable
    CROSS JOIN LATERAL (
        SELECT FROM vitals AS v WHERE v.workspace_id = due.id AND v.hold_until <= {_NOW}
            AND v.active_tasks < {queueing.NO_ROOM}
            AND (NOT due.fresh OR v.active_tasks < v.max_concurrent) OFFSET 0
    ) AS has_room
    ORDER BY due.id
"""

_STRANDED = f"""
    SELECT w.id, w.status, found.waiting, found.oldest FROM workspaces AS w
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting, min(enqueued_at) AS oldest FROM (
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'queued'
                AND NOT q.taken ORDER BY q.order_key LIMIT $1)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'queued'
                AND q.taken ORDER BY q.order_key LIMIT $1)
            UNION ALL
            (SELECT enqueued_at FROM a2a_queue AS q WHERE q.workspace_id = w.id AND q.state = 'delayed'
                LIMIT $1)
        ) AS one
    ) AS found
    WHERE w.status NOT IN {_among(REACHABLE)} AND found.waiting > 0 ORDER BY w.id
"""

_ITEM = (
    "id, workspace_id, turn_key, context_id, caller, method, priority, state, attempt, strikes, lapses,"
    " taken, enqueued_at, leased_at, due_at, expires_at, ended_at, last_error"
)

_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)
"""What another try may not meet again: the database restarts, a connection was cut, two met."""

_PAUSE = 0.1
"""Seconds between two tries."""

_SETTINGS = {
    "application_name": "workspace-adapter",
    "jit": "off",
    # Each statement has one good plan, along an index. A table that grew since it was last
    # analysed must not make the planner choose another.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
}


class _Gathered(Generic[A, B]):
    """Requests that travel together: those that arrive while the last ones are on their way go next."""

    def __init__(
        self,
        send: Callable[[list[A]], Awaitable[Sequence[B | Exception]]],
        tasks: anyio.abc.TaskGroup,
        *,
        most: int = 200,
        lanes: int = 2,
    ) -> None:
        self._send = send
        self._tasks = tasks
        self._most = most
        self._lanes = lanes
        self._waiting: list[tuple[A, asyncio.Future[B]]] = []
        self._under_way = 0

    async def __call__(self, request: A) -> B:
        """Have it sent, whatever becomes of the caller."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._under_way < self._lanes:
            self._under_way += 1
            self._tasks.start_soon(self._work)
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                try:
                    results = await self._send([request for request, _ in batch])
                except StoreUnavailable as error:
                    results = [error] * len(batch)
                for (_, future), result in zip(batch, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._under_way -= 1


class _Room:
    """How many messages may be queued for a workspace before its depth is counted again.

    A count is as long as the queue. So one serves for an eighth of the room that it found, for
    some seconds: up to eight replicas never fill a queue beyond its cap.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._left: dict[str, tuple[int, float]] = {}

    def ask(self, wanted: Mapping[str, int]) -> list[str]:
        """Return the workspaces whose depth has to be counted, and take the room of the others."""
        now = anyio.current_time()
        if len(self._left) > 10_000:
            self._left.clear()
        counted = []
        for workspace_id, number in wanted.items():
            left, until = self._left.get(workspace_id, (0, 0.0))
            if left >= number and now < until:
                self._left[workspace_id] = (left - number, until)
            else:
                counted.append(workspace_id)
        return counted

    def told(self, workspace_id: str, depth: int) -> None:
        """Take a count."""
        self._left[workspace_id] = ((self._cap - depth) // 8, anyio.current_time() + 5.0)


class PostgresStore:
    """What the shim keeps, in a PostgreSQL database that any number of replicas share."""

    def __init__(
        self,
        url: str,
        rules: Rules,
        *,
        schema: str = "workspace_adapter",
        connections: int = 8,
        patience: float = 10.0,
    ) -> None:
        """Name the database.

        Args:
            connections: at most, besides the one that listens.
            patience: seconds for which a verb tries again when the database is away.
        """
        self._url = url
        self._rules = rules
        self._schema = schema
        self._connections = connections
        self._patience = patience
        self._claims = 0
        self._room = _Room(rules.depth_cap)
        self._ear: Any = None
        self._due: set[str] = set()
        self._ended: set[int] = set()
        self._telling = False
        self.on_due: Callable[[str], None] = _nobody
        self.on_ended: Callable[[int], None] = _nobody

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            settings = {**_SETTINGS, "search_path": self._schema}
            try:
                await self._migrate()
                self._pool = await stack.enter_async_context(
                    asyncpg.create_pool(
                        self._url,
                        min_size=1,
                        max_size=self._connections,
                        max_inactive_connection_lifetime=0,
                        server_settings=settings,
                        command_timeout=30,
                        reset=_keep,
                    )
                )
            except (*_PASSING, asyncpg.PostgresError) as error:
                raise self._unavailable(error) from error
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            listening = anyio.Event()
            self._listening = anyio.CancelScope()
            self._tasks.start_soon(self._listen, settings, listening)
            self._enqueue: _Gathered[tuple[Message, float | None], Enqueued] = _Gathered(
                self._send_messages, self._tasks
            )
            self._settle: _Gathered[tuple[Settlement, float | None], bool] = _Gathered(
                self._send_settlements, self._tasks
            )
            await listening.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._listening.cancel()
        await self._stack.__aexit__(None, None, None)

    # --- connections ------------------------------------------------------------------

    async def _migrate(self) -> None:
        connection = await asyncpg.connect(self._url, timeout=self._patience)
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(1463898961)")
                await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
                await connection.execute(f'SET LOCAL search_path = "{self._schema}"')
                await connection.execute("CREATE TABLE IF NOT EXISTS migrations (version int NOT NULL)")
                version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM migrations")
                if version > len(MIGRATIONS):
                    raise StoreTooNew(
                        f"the store has schema {version} and this version knows {len(MIGRATIONS)}:"
                        " upgrade workspace-adapter"
                    )
                for number in range(version, len(MIGRATIONS)):
                    await connection.execute(MIGRATIONS[number])
                    await connection.execute("INSERT INTO migrations VALUES ($1)", number + 1)
        finally:
            await connection.close()

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do something that can be repeated, on a connection; try again while the database is away.

        Raises:
            StoreUnavailable: it stayed away.
        """
        deadline = anyio.current_time() + self._patience
        while True:
            try:
                async with self._pool.acquire() as connection:
                    return await work(connection)
            except asyncpg.DataError:
                raise
            except _PASSING as error:
                if anyio.current_time() > deadline:
                    raise self._unavailable(error) from error
            except asyncpg.PostgresError as error:
                raise self._unavailable(error) from error
            await anyio.sleep(_PAUSE)

    async def _all(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._run(lambda connection: connection.fetch(sql, *values))

    async def _one(self, sql: str, *values: object) -> asyncpg.Record | None:
        rows = await self._all(sql, *values)
        return rows[0] if rows else None

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"PostgreSQL cannot be used ({type(error).__name__}: {error}): see SHIM_DATABASE_URL and the"
            " database's log. Nothing was acknowledged"
        )

    # --- telling all replicas ---------------------------------------------------------

    def _tell(self, due: Collection[str] = (), ended: Collection[int] = ()) -> None:
        """Have all replicas told, after the commit: a NOTIFY inside it would make commits queue up."""
        self._due.update(due)
        self._ended.update(ended)
        if (self._due or self._ended) and not self._telling:
            self._telling = True
            self._tasks.start_soon(self._send_word)

    async def _send_word(self) -> None:
        try:
            while (self._due or self._ended) and self._ear is not None:
                due, self._due = self._due, set()
                ended, self._ended = self._ended, set()
                words = [f"d{workspace_id}" for workspace_id in due] + [f"e{item_id}" for item_id in ended]
                with suppress(*_PASSING, asyncpg.PostgresError):  # the sweep finds what was not said
                    await self._ear.execute(
                        "SELECT pg_notify($1, word) FROM unnest($2::text[]) AS word", self._schema, words
                    )
        finally:
            self._telling = False

    async def _listen(self, settings: Mapping[str, str], listening: anyio.Event) -> None:
        """Keep the one connection that listens, and speaks: a word is not worth a wait for the disk."""
        settings = {**settings, "synchronous_commit": "off"}
        with self._listening:
            while True:
                try:
                    connection = await asyncpg.connect(
                        self._url, timeout=self._patience, server_settings=settings
                    )
                except (*_PASSING, asyncpg.PostgresError):
                    await anyio.sleep(_PAUSE)
                    continue
                gone = anyio.Event()
                try:
                    connection.add_termination_listener(lambda _, gone=gone: gone.set())
                    await connection.add_listener(self._schema, self._hear)
                    self._ear = connection
                    listening.set()
                    self._tell()
                    await gone.wait()
                except (*_PASSING, asyncpg.PostgresError):
                    await anyio.sleep(_PAUSE)
                finally:
                    self._ear = None
                    connection.terminate()

    def _hear(self, _connection: object, _pid: int, _channel: str, word: object) -> None:
        text = str(word)
        if text.startswith("d"):
            self.on_due(text[1:])
        else:
            self.on_ended(int(text[1:]))

    # --- workspaces and tokens --------------------------------------------------------

    async def create_workspace(
        self,
        workspace_id: str,
        *,
        max_concurrent: int = 1,
        provisioner: str = "external",
        spec: Mapping[str, Any] | None = None,
        secret: str = "",
        now: float | None = None,
    ) -> bool:
        made = await self._one(
            f"""
            WITH made AS (
                INSERT INTO workspaces AS w (id, status, created_at, provisioner, spec, secret)
                VALUES ($2, 'provisioning', {_NOW}, $4, $5, $6)
                ON CONFLICT (id) DO UPDATE SET status = 'provisioning', url = NULL, boot_id = NULL,
                    restarting = false, card = NULL, created_at = excluded.created_at,
                    provisioner = excluded.provisioner, spec = excluded.spec, secret = excluded.secret
                    WHERE w.status = 'removed'
                RETURNING id
            )
            INSERT INTO vitals (workspace_id, max_concurrent) SELECT id, $3 FROM made
            ON CONFLICT (workspace_id) DO UPDATE SET beat_at = NULL, active_tasks = 0,
                max_concurrent = excluded.max_concurrent, hold_until = 0, report = '{{}}'
            RETURNING workspace_id
            """,
            now,
            workspace_id,
            max_concurrent,
            provisioner,
            json.dumps(spec or {}),
            secret,
        )
        return made is not None

    async def workspace(self, workspace_id: str) -> Workspace | None:
        row = await self._one(f"{_WORKSPACES} WHERE w.id = $1", workspace_id)
        return None if row is None else _workspace(row)

    async def workspaces(self) -> list[Workspace]:
        return [
            _workspace(row)
            for row in await self._all(f"{_WORKSPACES} WHERE status <> 'removed' ORDER BY w.id")
        ]

    async def register(
        self,
        workspace_id: str,
        *,
        url: str | None,
        boot_id: str | None,
        card: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> bool:
        async def register(connection: Any) -> bool:
            async with connection.transaction():
                row = await connection.fetchrow(
                    "SELECT status, boot_id FROM workspaces WHERE id = $1 FOR NO KEY UPDATE", workspace_id
                )
                if row is None or row["status"] == Status.REMOVED:
                    raise UnknownWorkspace(f"there is no workspace {workspace_id}")
                if row["status"] in DORMANT:
                    return False
                new = row["boot_id"] != boot_id
                if new and boot_id is not None:
                    first = await connection.fetchval(
                        f"INSERT INTO boots VALUES ($2, $3, {_NOW}) ON CONFLICT DO NOTHING RETURNING true",
                        now,
                        workspace_id,
                        boot_id,
                    )
                    if not first:
                        return False
                await connection.execute(
                    "UPDATE workspaces SET status = 'online', url = $2, boot_id = $3,"
                    " card = coalesce($4, card) WHERE id = $1",
                    workspace_id,
                    url,
                    boot_id,
                    None if card is None else json.dumps(card),
                )
                if new:
                    await connection.execute(
                        f"UPDATE vitals SET active_tasks = 0, hold_until = 0, beat_at = {_NOW}"
                        " WHERE workspace_id = $2",
                        now,
                        workspace_id,
                    )
                return True

        registered = await self._run(register)
        if registered:
            self._tell(due=[workspace_id])
        return registered

    async def set_status(self, workspace_id: str, status: Status, *, were: Collection[Status]) -> bool:
        async def change(connection: Any) -> list[int] | None:
            async with connection.transaction():
                changed = await connection.fetchval(
                    "UPDATE workspaces SET status = $2 WHERE id = $1 AND status = ANY ($3::text[])"
                    " RETURNING true",
                    workspace_id,
                    str(status),
                    [str(state) for state in were],
                )
                if not changed:
                    return None
                if status is not Status.REMOVED:
                    return []
                await connection.execute("DELETE FROM tokens WHERE workspace_id = $1", workspace_id)
                await connection.execute("DELETE FROM boots WHERE workspace_id = $1", workspace_id)
                dropped = await connection.fetch(
                    f"UPDATE a2a_queue SET state = 'dropped', ended_at = {_NOW}, due_at = NULL,"
                    " last_error = 'the workspace was removed'"
                    f" WHERE workspace_id = $2 AND state IN {_LIVE} RETURNING id",
                    None,
                    workspace_id,
                )
                return [row["id"] for row in dropped]

        dropped = await self._run(change)
        if dropped is None:
            return False
        self._tell(due=[workspace_id] if status in REACHABLE else [], ended=dropped)
        return True

    async def set_restarting(self, workspace_id: str, restarting: bool) -> bool:
        async def change(connection: Any) -> bool:
            async with connection.transaction():
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(1463898960, hashtext($1))", workspace_id
                )
                return bool(
                    await connection.fetchval(
                        "UPDATE workspaces SET restarting = $2 WHERE id = $1 AND restarting <> $2"
                        " RETURNING true",
                        workspace_id,
                        restarting,
                    )
                )

        changed = await self._run(change)
        if changed and not restarting:
            self._tell(due=[workspace_id])
        return changed

    async def beat(self, beats: Sequence[Beat], *, now: float | None = None) -> dict[str, Heard]:
        last = list({beat.workspace_id: beat for beat in beats}.values())

        async def take(connection: Any) -> list[asyncpg.Record]:
            async with connection.transaction():
                # The next beat says it again: not worth a wait for the disk.
                await connection.execute("SET LOCAL synchronous_commit = off")
                rows: list[asyncpg.Record] = await connection.fetch(
                    _BEAT,
                    now,
                    [beat.workspace_id for beat in last],
                    [beat.boot_id for beat in last],
                    [beat.active_tasks for beat in last],
                    [beat.max_concurrent for beat in last],
                    [_REPORTED[beat.degraded] for beat in last],
                    [json.dumps(beat.report) for beat in last],
                    [beat.whole for beat in last],
                    self._rules.depth_cap,
                )
                return rows

        return {
            row["workspace_id"]: Heard(
                min(row["waiting"], self._rules.depth_cap), row["max_concurrent"], row["secret"]
            )
            for row in await self._run(take)
        }

    async def add_token(
        self,
        digest: str,
        *,
        role: Role,
        workspace_id: str | None = None,
        label: str = "",
        now: float | None = None,
    ) -> None:
        await self._all(
            f"INSERT INTO tokens VALUES ($2, $3, $4, $5, {_NOW}) ON CONFLICT DO NOTHING",
            now,
            digest,
            str(role),
            workspace_id,
            label,
        )

    async def tokens(self, digests: Collection[str]) -> dict[str, Token]:
        rows = await self._all("SELECT * FROM tokens WHERE digest = ANY ($1::text[])", list(digests))
        return {row["digest"]: _token(row) for row in rows}

    async def tokens_of(self, workspace_id: str | None) -> list[Token]:
        rows = await self._all(
            "SELECT * FROM tokens WHERE workspace_id IS NOT DISTINCT FROM $1 ORDER BY created_at, digest",
            workspace_id,
        )
        return [_token(row) for row in rows]

    async def revoke_token(self, digest: str) -> bool:
        return await self._one("DELETE FROM tokens WHERE digest = $1 RETURNING true", digest) is not None

    # --- the queue --------------------------------------------------------------------

    async def enqueue(self, message: Message, *, now: float | None = None) -> Enqueued:
        return await self._enqueue((message, now))

    async def _send_messages(
        self, sent: list[tuple[Message, float | None]]
    ) -> Sequence[Enqueued | Exception]:
        return await self._run(lambda connection: self._insert(connection, sent))

    async def _insert(
        self, connection: Any, sent: Sequence[tuple[Message, float | None]]
    ) -> Sequence[Enqueued | Exception]:
        messages = [message for message, _ in sent]
        counted = self._room.ask(Counter(message.workspace_id for message in messages))
        if len(messages) == 1 and not counted:
            rows = await self._insert_one(connection, *sent[0])
        else:
            rows = await self._insert_all(connection, sent, counted)
        for row in rows:
            if row["workspace_id"] in counted:
                self._room.told(row["workspace_id"], row["depth"])
        made = {(row["workspace_id"], row["turn_key"]): row["id"] for row in rows}
        self._tell(due={workspace_id for workspace_id, _ in made})
        results: list[Enqueued | Exception | None] = []
        for message in messages:
            item_id = made.pop((message.workspace_id, message.turn_key), None)
            results.append(
                None if item_id is None else Enqueued(id=item_id, state=State.QUEUED, joined=False)
            )
        others = [message for message, result in zip(messages, results, strict=True) if result is None]
        if not others:
            return [result for result in results if result is not None]
        known = await connection.fetch(
            _KNOWN,
            [message.workspace_id for message in others],
            [message.turn_key for message in others],
            self._rules.depth_cap,
        )
        found = {(row["workspace_id"], row["turn_key"]): row for row in known}
        return [
            result
            or await self._join(connection, message, found[message.workspace_id, message.turn_key], now)
            for (message, now), result in zip(sent, results, strict=True)
        ]

    async def _insert_one(self, connection: Any, message: Message, now: float | None) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await connection.fetch(
            _ENQUEUE_ONE,
            now,
            message.workspace_id,
            message.turn_key,
            message.content_hash,
            message.context_id,
            message.caller,
            message.method,
            message.priority,
            json.dumps(dict(message.headers)),
            message.expires_in,
            message.body,
            self._rules.priority_weight,
        )
        return rows

    async def _insert_all(
        self, connection: Any, sent: Sequence[tuple[Message, float | None]], counted: Sequence[str]
    ) -> list[asyncpg.Record]:
        messages = [message for message, _ in sent]
        rows: list[asyncpg.Record] = await connection.fetch(
            _ENQUEUE,
            [now for _, now in sent],
            [message.workspace_id for message in messages],
            [message.turn_key for message in messages],
            [message.content_hash for message in messages],
            [message.context_id for message in messages],
            [message.caller for message in messages],
            [message.method for message in messages],
            [message.priority for message in messages],
            [json.dumps(dict(message.headers)) for message in messages],
            [message.expires_in for message in messages],
            [message.body for message in messages],
            self._rules.depth_cap,
            self._rules.priority_weight,
            counted,
        )
        return rows

    async def _join(
        self, connection: Any, message: Message, known: asyncpg.Record, now: float | None
    ) -> Enqueued | Exception:
        full = known["depth"] >= self._rules.depth_cap
        if known["id"] is None:
            if known["status"] in (None, Status.REMOVED):
                return UnknownWorkspace(f"there is no workspace {message.workspace_id}")
            # What made it full may have gone since: then the next statement has room for it.
            return (
                QueueFull(known["depth"]) if full else (await self._insert(connection, [(message, now)]))[0]
            )
        if known["content_hash"] != message.content_hash:
            return ContentConflict("this messageId was sent before with other content")
        item_id, state = known["id"], State(known["state"])
        if state in REVIVED:
            if known["status"] in (None, Status.REMOVED):
                return UnknownWorkspace(f"there is no workspace {message.workspace_id}")
            if full:
                return QueueFull(known["depth"])
            await connection.execute(
                _REQUEUE,
                now,
                self._rules.priority_weight,
                message.expires_in,
                item_id,
                [str(state) for state in REVIVED],
            )
            state = State.QUEUED
        if state is State.QUEUED:
            self._tell(due=[message.workspace_id])
        return Enqueued(id=item_id, state=state, joined=True)

    async def claim(
        self, workspace_id: str, owner: str, *, most: int = 64, now: float | None = None
    ) -> list[Lease]:
        self._claims += 1
        # Its own mark, so that what a claim leased whose answer was lost on the way can be found.
        owner = f"{owner}/{self._claims}"
        tried = False

        async def claim(connection: Any) -> list[asyncpg.Record]:
            nonlocal tried
            if tried:
                await connection.execute(
                    "UPDATE a2a_queue SET state = 'queued', attempt = attempt + 1"
                    " WHERE workspace_id = $1 AND state = 'leased' AND lease_owner = $2",
                    workspace_id,
                    owner,
                )
            tried = True
            rows: list[asyncpg.Record] = await connection.fetch(
                f"SELECT * FROM claim($2, $3, {_NOW}, $4, $5, $6) ORDER BY order_key, id",
                now,
                workspace_id,
                owner,
                self._rules.lease,
                most,
                queueing.NO_ROOM,
            )
            return rows

        with anyio.CancelScope(shield=True):
            rows = await self._run(claim)
        return [_lease(row) for row in rows]

    async def renew(self, leases: Sequence[Lease], *, now: float | None = None) -> set[int]:
        async def renew(connection: Any) -> list[asyncpg.Record]:
            async with connection.transaction():
                await connection.execute("SET LOCAL synchronous_commit = off")
                rows: list[asyncpg.Record] = await connection.fetch(
                    f"""
                    UPDATE a2a_queue AS q SET lease_until = greatest(q.lease_until, {_NOW} + $2::float8)
                    FROM unnest($3::bigint[], $4::int[], $5::text[]) AS held (id, attempt, owner)
                    WHERE q.id = held.id AND q.state = 'leased' AND q.attempt = held.attempt
                        AND q.lease_owner = held.owner
                    RETURNING q.id
                    """,
                    now,
                    self._rules.lease,
                    [lease.id for lease in leases],
                    [lease.attempt for lease in leases],
                    [lease.owner for lease in leases],
                )
                return rows

        return {row["id"] for row in await self._run(renew)}

    async def settle(self, settlement: Settlement, *, now: float | None = None) -> bool:
        queueing.check(str(settlement.lease.id), State.LEASED, settlement.verdict.state)
        return await self._settle((settlement, now))

    async def _send_settlements(
        self, sent: list[tuple[Settlement, float | None]]
    ) -> Sequence[bool | Exception]:
        tried = False

        async def settle(connection: Any) -> list[bool | Exception]:
            nonlocal tried
            leases = [settlement.lease for settlement, _ in sent]
            verdicts = [settlement.verdict for settlement, _ in sent]
            answers = [
                settlement.answer if settlement.verdict.state in ENDED else None for settlement, _ in sent
            ]
            before: set[tuple[int, int, str]] = set()
            if tried:  # what was written although its answer was lost on the way
                rows = await connection.fetch(
                    "SELECT id, attempt, lease_owner FROM a2a_queue WHERE id = ANY ($1::bigint[])"
                    " AND state <> 'leased'",
                    [lease.id for lease in leases],
                )
                before = {(row["id"], row["attempt"], row["lease_owner"]) for row in rows}
            tried = True
            rows = await connection.fetch(
                _SETTLE,
                [now for _, now in sent],
                [lease.id for lease in leases],
                [lease.attempt for lease in leases],
                [lease.owner for lease in leases],
                [str(verdict.state) for verdict in verdicts],
                [verdict.strike for verdict in verdicts],
                [verdict.taken for verdict in verdicts],
                [verdict.wait for verdict in verdicts],
                [verdict.state in ENDED for verdict in verdicts],
                [None if v.state is State.COMPLETED else v.because for v in verdicts],
                [None if answer is None else answer.status for answer in answers],
                [None if answer is None else answer.body for answer in answers],
            )
            settled = {row["id"] for row in rows}
            done = [
                lease.id in settled or (lease.id, lease.attempt, lease.owner) in before for lease in leases
            ]
            self._tell(
                ended=[
                    lease.id
                    for lease, verdict, was in zip(leases, verdicts, done, strict=True)
                    if was and verdict.state in ENDED
                ]
            )
            return list(done)

        return await self._run(settle)

    async def promote(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            UPDATE a2a_queue SET state = 'queued', due_at = NULL WHERE id IN (
                SELECT id FROM a2a_queue WHERE state = 'delayed' AND due_at <= {_NOW}
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ) RETURNING workspace_id
            """,
            now,
            most,
        )
        self._tell(due={row["workspace_id"] for row in rows})
        return len(rows)

    async def expire(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            UPDATE a2a_queue SET state = 'expired', due_at = NULL, ended_at = {_NOW},
                last_error = 'nobody wanted it any longer: expires_in_seconds passed while it waited'
            WHERE id IN (
                SELECT id FROM a2a_queue
                WHERE expires_at IS NOT NULL AND expires_at <= {_NOW} AND state IN {_among(WAITING)}
                ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ) RETURNING id, workspace_id
            """,
            now,
            most,
        )
        self._tell(due={row["workspace_id"] for row in rows}, ended=[row["id"] for row in rows])
        return len(rows)

    async def due(self, *, now: float | None = None) -> list[str]:
        return [row["id"] for row in await self._all(_DUE, now)]

    async def stranded(self) -> list[Stranded]:
        return [
            Stranded(
                workspace_id=row["id"],
                status=Status(row["status"]),
                waiting=min(row["waiting"], self._rules.depth_cap),
                oldest=row["oldest"],
            )
            for row in await self._all(_STRANDED, self._rules.depth_cap)
        ]

    async def depth(self, workspace_id: str) -> int:
        row = await self._one(f"SELECT {_DEPTH.format('$1', '$2::int')}", workspace_id, self._rules.depth_cap)
        assert row is not None
        return min(int(row[0]), self._rules.depth_cap)

    async def item(self, item_id: int) -> Item | None:
        row = await self._one(f"SELECT {_ITEM}, answer_status, answer FROM a2a_queue WHERE id = $1", item_id)
        if row is None:
            return None
        status = row["answer_status"]
        return _item(row, None if status is None else Answer(status=status, body=row["answer"]))

    async def ended(self, item_ids: Collection[int]) -> set[int]:
        rows = await self._all(
            "SELECT asked.id FROM unnest($1::bigint[]) AS asked (id) LEFT JOIN a2a_queue AS q USING (id)"
            " WHERE q.state IS NULL OR q.state = ANY ($2::text[])",
            list(item_ids),
            [str(state) for state in ENDED],
        )
        return {row["id"] for row in rows}

    async def items(
        self, workspace_id: str, *, state: State | None = None, after: int = 0, most: int = 100
    ) -> list[Item]:
        rows = await self._all(
            f"SELECT {_ITEM} FROM a2a_queue WHERE workspace_id = $1 AND id > $2"
            " AND ($3::text IS NULL OR state = $3) ORDER BY id LIMIT $4",
            workspace_id,
            after,
            None if state is None else str(state),
            most,
        )
        return [_item(row, None) for row in rows]

    async def replay(self, item_id: int, *, now: float | None = None) -> bool:
        row = await self._one(
            _REQUEUE, now, self._rules.priority_weight, None, item_id, [str(state) for state in REPLAYABLE]
        )
        if row is None:
            return False
        self._tell(due=[row["workspace_id"]])
        return True

    async def drop(self, item_id: int, because: str, *, now: float | None = None) -> bool:
        row = await self._one(
            f"UPDATE a2a_queue SET state = 'dropped', due_at = NULL, ended_at = {_NOW}, last_error = $2"
            f" WHERE id = $3 AND state IN {_among(DROPPABLE)} RETURNING workspace_id",
            now,
            because,
            item_id,
        )
        if row is None:
            return False
        self._tell(due=[row["workspace_id"]], ended=[item_id])
        return True

    async def forget(self, *, most: int = 500, now: float | None = None) -> int:
        rows = await self._all(
            f"""
            DELETE FROM a2a_queue WHERE id IN (
                SELECT id FROM a2a_queue WHERE ended_at IS NOT NULL AND ended_at <= {_NOW} - $2::float8
                ORDER BY ended_at LIMIT $3 FOR UPDATE SKIP LOCKED
            ) RETURNING id
            """,
            now,
            self._rules.retention,
            most,
        )
        return len(rows)


def _nobody(_: object) -> None:
    """Nobody listens yet."""


async def _keep(_: object) -> None:
    """Leave a connection as it is when it goes back to the pool: nothing of a session is changed here."""


def _workspace(row: asyncpg.Record) -> Workspace:
    return Workspace(
        id=row["id"],
        status=Status(row["status"]),
        url=row["url"],
        boot_id=row["boot_id"],
        restarting=row["restarting"],
        card=None if row["card"] is None else json.loads(row["card"]),
        created_at=row["created_at"],
        beat_at=row["beat_at"],
        active_tasks=row["active_tasks"],
        max_concurrent=row["max_concurrent"],
        hold_until=row["hold_until"],
        report=json.loads(row["report"]),
        provisioner=row["provisioner"],
        spec=json.loads(row["spec"]),
        secret=row["secret"],
    )


def _token(row: asyncpg.Record) -> Token:
    return Token(**(dict(row) | {"role": Role(row["role"])}))


def _lease(row: asyncpg.Record) -> Lease:
    return Lease(
        id=row["id"],
        attempt=row["attempt"],
        owner=row["lease_owner"],
        workspace_id=row["workspace_id"],
        turn_key=row["turn_key"],
        context_id=row["context_id"],
        caller=row["caller"],
        method=row["method"],
        body=row["body"],
        headers=json.loads(row["headers"]),
        strikes=row["strikes"],
        lapses=row["lapses"],
        taken=row["taken"],
        enqueued_at=row["enqueued_at"],
        cursor=row["cursor"],
    )


def _item(row: asyncpg.Record, answer: Answer | None) -> Item:
    values = dict(row)
    values.pop("answer_status", None)
    values.pop("answer", None)
    return Item(**(values | {"state": State(row["state"]), "answer": answer}))
