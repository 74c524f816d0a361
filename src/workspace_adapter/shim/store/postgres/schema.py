"""The schema of the PostgreSQL store, and how it came to be.

Everything is in one schema, ``workspace_adapter`` unless said otherwise:

``workspaces``, ``boots``, ``tokens``
    As their names say; ``boots`` are the boot ids a workspace ever had.
``vitals``
    What a workspace last reported, apart from its row because it changes all the time: no
    index names a column that does, so a beat leaves no dead index entries.
``a2a_queue``
    One row a message, with its body until it has its answer.
``a2a_events``
    What was said on an item's stream, numbered from 1; the item counts them and their bytes.
``cycles``
    Restarts. The indexes hold that of one workspace one runs and one waits, whatever the code does.
``activity``, ``acknowledged``
    What workspaces report, and how far each read its own.
``delegations``
    Tasks that workspaces gave one another; how one stands is its item's to say. ``told`` once the
    source's activity has how it ended.
``claim``
    A function: a claim is one statement and one round trip, in which an advisory lock
    makes a workspace's room and its restart hold for all replicas.
``migrations``
    The number of the last migration.

``a2a_queue_ready`` holds what could go now and nothing else: what waits for a time, is
leased or has ended is in other partial indexes, so depth does not matter to a claim.
Times are UTC epoch seconds; ``card``, ``report`` and ``headers`` are JSON.
"""

from __future__ import annotations

import asyncpg

from ....errors import StoreTooNew
from .part import LIVE

_FIRST = f"""
                (q.expires_at IS NULL OR q.expires_at > at) AND (q.context_id IS NULL OR (
                    NOT EXISTS (
                        SELECT FROM a2a_queue AS held WHERE held.workspace_id = of_workspace
                        AND held.context_id = q.context_id
                        AND held.state = 'leased'
                    ) AND NOT EXISTS (
                        SELECT FROM a2a_queue AS earlier WHERE earlier.workspace_id = of_workspace
                        AND earlier.context_id = q.context_id AND earlier.context_id IS NOT NULL
                        AND earlier.state IN {LIVE}
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
        events bigint NOT NULL DEFAULT 0,
        event_bytes bigint NOT NULL DEFAULT 0,
        said_as bigint,
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
        WHERE context_id IS NOT NULL AND state IN {LIVE};
    -- Of one session one at most; those without one do not count as equal.
    CREATE UNIQUE INDEX a2a_queue_leased ON a2a_queue (workspace_id, context_id) WHERE state = 'leased';
    CREATE INDEX a2a_queue_expires ON a2a_queue (expires_at)
        WHERE expires_at IS NOT NULL AND state IN ('queued', 'delayed');
    CREATE INDEX a2a_queue_ended ON a2a_queue (ended_at) WHERE ended_at IS NOT NULL;
    CREATE INDEX a2a_queue_failed ON a2a_queue (id) WHERE state = 'failed';

    CREATE TABLE a2a_events (
        item bigint NOT NULL,
        number bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (item, number)
    );
    CREATE TABLE cycles (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        workspace_id text COLLATE "C" NOT NULL,
        aim text NOT NULL,
        reason text NOT NULL,
        requests int NOT NULL DEFAULT 1,
        step text NOT NULL DEFAULT 'asked',
        attempt int NOT NULL DEFAULT 0,
        owner text,
        lease_until float8,
        boot_before text,
        asked_at float8 NOT NULL,
        began_at float8,
        ended_at float8,
        notes text NOT NULL DEFAULT '{{}}'
    );
    CREATE INDEX cycles_of ON cycles (workspace_id, id);
    CREATE UNIQUE INDEX cycles_waiting ON cycles (workspace_id) WHERE ended_at IS NULL AND began_at IS NULL;
    CREATE UNIQUE INDEX cycles_running ON cycles (workspace_id)
        WHERE ended_at IS NULL AND began_at IS NOT NULL;
    CREATE INDEX cycles_open ON cycles (id) WHERE ended_at IS NULL;
    CREATE INDEX cycles_ended ON cycles (ended_at) WHERE ended_at IS NOT NULL;
    CREATE TABLE activity (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        workspace_id text COLLATE "C" NOT NULL,
        activity_type text NOT NULL,
        by_agent boolean NOT NULL,
        created_at float8 NOT NULL,
        entry text NOT NULL
    );
    CREATE INDEX activity_of ON activity (workspace_id, seq);
    CREATE INDEX activity_of_type ON activity (workspace_id, activity_type, seq);
    CREATE INDEX activity_at ON activity (created_at);
    CREATE TABLE acknowledged (workspace_id text COLLATE "C" PRIMARY KEY, seq bigint NOT NULL);
    CREATE TABLE delegations (
        id text COLLATE "C" PRIMARY KEY,
        source_id text COLLATE "C" NOT NULL,
        target_id text COLLATE "C" NOT NULL,
        task text NOT NULL,
        item_id bigint,
        created_at float8 NOT NULL,
        updated_at float8 NOT NULL,
        status text,
        response_preview text,
        error text,
        told boolean NOT NULL DEFAULT false
    );
    CREATE INDEX delegations_of ON delegations (source_id, created_at);
    CREATE INDEX delegations_untold ON delegations (source_id) WHERE NOT told;
    CREATE INDEX delegations_by ON delegations (item_id) WHERE item_id IS NOT NULL;
    CREATE INDEX delegations_at ON delegations (updated_at);

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
    "CREATE INDEX tokens_of ON tokens (workspace_id)",
)
"""Forward only; the position of the last one is the schema's number."""


async def migrate(url: str, schema: str, *, timeout: float) -> None:
    """Bring the schema up to date; several that start at once take turns.

    Raises:
        StoreTooNew: a later version made it.
    """
    connection = await asyncpg.connect(url, timeout=timeout)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(1463898961)")
            if not await connection.fetchval("SELECT true FROM pg_namespace WHERE nspname = $1", schema):
                # Not "if not exists": that needs the right to make one also where there is one.
                await connection.execute(f'CREATE SCHEMA "{schema}"')
            await connection.execute(f'SET LOCAL search_path = "{schema}"')
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
