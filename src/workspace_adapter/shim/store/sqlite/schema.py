"""The tables of the SQLite store, and how they came to be.

``workspaces``
    One row a workspace: status, URL, the boot id that registered last, whether it restarts.
``boots``
    The boot ids a workspace ever had: the one that is not current was replaced.
``vitals``
    What a workspace last reported, apart from its row because it changes all the time.
``tokens``
    Digests of bearers.
``a2a_queue``
    One row a message, narrow; its body is in ``a2a_bodies`` until the item has its answer,
    which is in ``a2a_answers``: so no change of state rewrites megabytes. ``waiting`` is the
    depth: ``vitals.waiting`` is kept by triggers, so no enqueue counts.
``a2a_events``
    What was said on an item's stream, numbered from 1; the item counts them and their bytes.
``cycles``
    Restarts. The indexes hold that of one workspace one runs and one waits, whatever the code does.
``activity``, ``acknowledged``
    What workspaces report, and how far each read its own.
``delegations``
    Tasks that workspaces gave one another; how one stands is its item's to say. ``told`` once the
    source's activity has how it ended.

Times are UTC epoch seconds, bodies bytes, ``card``, ``report`` and ``headers`` JSON.
"""

from __future__ import annotations

import sqlite3

from ....errors import StoreTooNew

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE workspaces (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        url TEXT,
        boot_id TEXT,
        restarting INTEGER NOT NULL DEFAULT 0,
        card TEXT,
        created_at REAL NOT NULL,
        provisioner TEXT NOT NULL,
        spec TEXT NOT NULL,
        secret TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE boots (
        workspace_id TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        seen_at REAL NOT NULL,
        PRIMARY KEY (workspace_id, boot_id)
    ) WITHOUT ROWID;
    CREATE TABLE vitals (
        workspace_id TEXT PRIMARY KEY,
        beat_at REAL,
        active_tasks INTEGER NOT NULL DEFAULT 0,
        max_concurrent INTEGER NOT NULL,
        hold_until REAL NOT NULL DEFAULT 0,
        waiting INTEGER NOT NULL DEFAULT 0,
        report TEXT NOT NULL DEFAULT '{}'
    ) WITHOUT ROWID;
    CREATE TABLE tokens (
        digest TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        workspace_id TEXT,
        label TEXT NOT NULL,
        created_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE a2a_queue (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        workspace_id TEXT NOT NULL,
        turn_key TEXT NOT NULL,
        content_hash TEXT NOT NULL,
        context_id TEXT,
        caller TEXT,
        method TEXT NOT NULL,
        priority INTEGER NOT NULL,
        headers TEXT NOT NULL,
        state TEXT NOT NULL,
        order_key REAL NOT NULL,
        enqueued_at REAL NOT NULL,
        expires_at REAL,
        due_at REAL,
        attempt INTEGER NOT NULL DEFAULT 0,
        strikes INTEGER NOT NULL DEFAULT 0,
        lapses INTEGER NOT NULL DEFAULT 0,
        taken INTEGER NOT NULL DEFAULT 0,
        lease_owner TEXT,
        lease_until REAL,
        leased_at REAL,
        ended_at REAL,
        last_error TEXT,
        cursor TEXT,
        events INTEGER NOT NULL DEFAULT 0,
        event_bytes INTEGER NOT NULL DEFAULT 0
    );
    CREATE UNIQUE INDEX a2a_queue_message ON a2a_queue (workspace_id, turn_key);
    CREATE INDEX a2a_queue_ready ON a2a_queue (workspace_id, order_key, id)
        WHERE state = 'queued' AND taken = 0;
    CREATE INDEX a2a_queue_taken ON a2a_queue (workspace_id, order_key, id)
        WHERE state = 'queued' AND taken = 1;
    CREATE INDEX a2a_queue_delayed ON a2a_queue (due_at) WHERE state = 'delayed';
    CREATE INDEX a2a_queue_session ON a2a_queue (workspace_id, context_id, order_key, id)
        WHERE context_id IS NOT NULL AND state IN ('queued', 'delayed', 'leased');
    CREATE UNIQUE INDEX a2a_queue_one_of_a_session ON a2a_queue (workspace_id, context_id)
        WHERE context_id IS NOT NULL AND state = 'leased';
    CREATE INDEX a2a_queue_leased ON a2a_queue (workspace_id) WHERE state = 'leased';
    CREATE INDEX a2a_queue_expires ON a2a_queue (expires_at)
        WHERE expires_at IS NOT NULL AND state IN ('queued', 'delayed');
    CREATE INDEX a2a_queue_ended ON a2a_queue (ended_at) WHERE ended_at IS NOT NULL;
    CREATE INDEX a2a_queue_failed ON a2a_queue (id) WHERE state = 'failed';
    CREATE TABLE a2a_bodies (item INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE a2a_answers (item INTEGER PRIMARY KEY, status INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE a2a_events (
        item INTEGER NOT NULL,
        number INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (item, number)
    ) WITHOUT ROWID;
    CREATE TABLE cycles (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        workspace_id TEXT NOT NULL,
        aim TEXT NOT NULL,
        reason TEXT NOT NULL,
        requests INTEGER NOT NULL DEFAULT 1,
        step TEXT NOT NULL DEFAULT 'asked',
        attempt INTEGER NOT NULL DEFAULT 0,
        owner TEXT,
        lease_until REAL,
        boot_before TEXT,
        asked_at REAL NOT NULL,
        began_at REAL,
        ended_at REAL,
        notes TEXT NOT NULL DEFAULT '{}'
    );
    CREATE INDEX cycles_of ON cycles (workspace_id, id);
    CREATE UNIQUE INDEX cycles_waiting ON cycles (workspace_id) WHERE ended_at IS NULL AND began_at IS NULL;
    CREATE UNIQUE INDEX cycles_running ON cycles (workspace_id)
        WHERE ended_at IS NULL AND began_at IS NOT NULL;
    CREATE INDEX cycles_open ON cycles (id) WHERE ended_at IS NULL;
    CREATE INDEX cycles_ended ON cycles (ended_at) WHERE ended_at IS NOT NULL;
    CREATE TABLE activity (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        workspace_id TEXT NOT NULL,
        activity_type TEXT NOT NULL,
        by_agent INTEGER NOT NULL,
        created_at REAL NOT NULL,
        entry TEXT NOT NULL
    );
    CREATE INDEX activity_of ON activity (workspace_id, seq);
    CREATE INDEX activity_of_type ON activity (workspace_id, activity_type, seq);
    CREATE INDEX activity_at ON activity (created_at);
    CREATE TABLE acknowledged (workspace_id TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE delegations (
        id TEXT PRIMARY KEY,
        source_id TEXT NOT NULL,
        target_id TEXT NOT NULL,
        task TEXT NOT NULL,
        item_id INTEGER,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        status TEXT,
        response_preview TEXT,
        error TEXT,
        told INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX delegations_of ON delegations (source_id, created_at);
    CREATE INDEX delegations_untold ON delegations (source_id) WHERE told = 0;
    CREATE INDEX delegations_by ON delegations (item_id) WHERE item_id IS NOT NULL;
    CREATE INDEX delegations_at ON delegations (updated_at);
    CREATE TRIGGER a2a_queue_in AFTER INSERT ON a2a_queue BEGIN
        UPDATE vitals SET waiting = waiting + 1 WHERE workspace_id = new.workspace_id;
    END;
    CREATE TRIGGER a2a_queue_moved AFTER UPDATE OF state ON a2a_queue
    WHEN (old.state IN ('queued', 'delayed')) IS NOT (new.state IN ('queued', 'delayed')) BEGIN
        UPDATE vitals SET waiting = waiting + iif(new.state IN ('queued', 'delayed'), 1, -1)
        WHERE workspace_id = new.workspace_id;
    END;
    """,
    "CREATE INDEX tokens_of ON tokens (workspace_id)",
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date.

    Raises:
        StoreTooNew: a newer version wrote it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"the store has schema {version} and this version knows {len(MIGRATIONS)}:"
            " upgrade workspace-adapter"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN; {MIGRATIONS[number]}; PRAGMA user_version={number + 1}; COMMIT")
