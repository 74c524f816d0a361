"""The tables of the journal.

``PRAGMA user_version`` is the number of migrations a file has been through. A change to
the tables is a new entry at the end of ``MIGRATIONS``; none is ever edited.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ...errors import JournalError, JournalTooNew

FILE = "journal.db"
"""The journal's name in the state directory."""

OLDEST_SQLITE = (3, 37, 0)
"""The first with STRICT tables."""

LOCK_PATIENCE = 1.0
"""Seconds a statement waits for somebody else's transaction, such as an operator's shell."""

_VERSION_1 = """
-- Facts about the file itself: ``id``, random, made with it.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The one life that may write. Every commit checks that the row still names it.
CREATE TABLE owner (
    only    INTEGER PRIMARY KEY CHECK (only = 1),
    boot_id TEXT NOT NULL,
    since   REAL NOT NULL,              -- UTC epoch seconds, as every time in this file
    probes  INTEGER NOT NULL DEFAULT 0  -- written to find out whether writing works
) STRICT;

-- One conversation. It goes with the last turn that names it.
CREATE TABLE sessions (
    id           TEXT PRIMARY KEY,  -- A2A's contextId
    caller       TEXT,              -- who opened it, where authenticated; it belongs to them
    handle       TEXT,              -- the runtime's own name for it
    created_at   REAL NOT NULL,
    last_turn_at REAL NOT NULL
) STRICT;

-- One message, until it is answered and after. What the columns mean stands in turns.Turn.
CREATE TABLE turns (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    task_id       TEXT NOT NULL,
    turn_key      TEXT NOT NULL UNIQUE,  -- one message, one turn; forgotten ones get a key nobody sends
    content_hash  TEXT NOT NULL,
    message_id    TEXT NOT NULL,
    session_id    TEXT NOT NULL,
    caller        TEXT,
    source        TEXT,
    state         TEXT NOT NULL CHECK (state IN ('accepted', 'running', 'answered', 'failed', 'canceled',
                                                 'parked', 'interrupted', 'expired', 'suspended')),
    attempt       INTEGER NOT NULL DEFAULT 0,
    strikes       INTEGER NOT NULL DEFAULT 0,
    charges       INTEGER NOT NULL DEFAULT 0,
    settled       INTEGER NOT NULL DEFAULT 0,
    cut           TEXT,
    cause         TEXT,
    outcome       TEXT,  -- turns.Outcome as JSON
    answer        TEXT,  -- or, when large,
    answer_file   TEXT,  -- the sha256 digest that names it under blobs/
    boot_id       TEXT,  -- the life that made its last start
    accepted_at   REAL NOT NULL,
    started_at    REAL,
    last_event_at REAL,
    ended_at      REAL,  -- set exactly while the state is one of turns.ENDED
    delivered_at  REAL,
    expires_at    REAL,
    notified_at   REAL
) STRICT;

-- Inbox, boot and drain look only at the few that have not ended.
CREATE INDEX turns_unfinished ON turns (state) WHERE ended_at IS NULL;
-- Retention walks the others in the order they fall due; counts come from here as well.
CREATE INDEX turns_ended ON turns (delivered_at, ended_at, state) WHERE ended_at IS NOT NULL;
CREATE INDEX turns_by_session ON turns (session_id);
CREATE INDEX turns_by_task ON turns (task_id);
CREATE INDEX turns_by_caller ON turns (caller) WHERE caller IS NOT NULL;
CREATE INDEX turns_answer_file ON turns (answer_file) WHERE answer_file IS NOT NULL;

-- The message as sent, for as long as its turn may run (again). A table of its own, so
-- that a change of the turn does not rewrite it.
CREATE TABLE messages (
    seq  INTEGER PRIMARY KEY,  -- of the turn
    body BLOB,                 -- or, when large,
    file TEXT                  -- the sha256 digest that names it under blobs/
) STRICT;
CREATE INDEX messages_file ON messages (file) WHERE file IS NOT NULL;

-- One tool call of one attempt, in the order they asked; see turns.Call.
CREATE TABLE calls (
    n            INTEGER PRIMARY KEY,
    turn_id      TEXT NOT NULL,
    attempt      INTEGER NOT NULL,
    id           TEXT NOT NULL,  -- the runtime's own
    name         TEXT NOT NULL,
    digest       TEXT NOT NULL,  -- sha256 of the arguments
    excerpt      TEXT NOT NULL,  -- their first characters
    asked_at     REAL NOT NULL,
    permitted_at REAL,
    ended_at     REAL,
    withdrawn_at REAL,
    outcome      TEXT,
    UNIQUE (turn_id, attempt, id)
) STRICT;

-- What a turn's asker is shown, in order.
CREATE TABLE events (
    turn_id TEXT NOT NULL,
    n       INTEGER NOT NULL,  -- 1, 2, 3 … over all attempts: the cursor
    attempt INTEGER NOT NULL,
    at      REAL NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL,     -- JSON
    PRIMARY KEY (turn_id, n)
) STRICT, WITHOUT ROWID;

-- Processes to be ended by whoever finds them left over.
CREATE TABLE children (
    pid         INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,  -- with the pid it names one process for ever
    boot_id     TEXT NOT NULL,     -- the life that started it
    what        TEXT NOT NULL,
    PRIMARY KEY (pid, start_ticks)
) STRICT, WITHOUT ROWID;
"""

_VERSION_2 = """
ALTER TABLE turns ADD COLUMN canvas INTEGER NOT NULL DEFAULT 0;
ALTER TABLE turns ADD COLUMN untold TEXT;
-- turns.Notice as JSON: the last thing the platform told the session's agent.
ALTER TABLE sessions ADD COLUMN notice TEXT;
"""
# Columns at the end, and few of them: salvage needs a table's root, and the pages of the
# schema, to be where they are in a file that was made with this version.

MIGRATIONS = (_VERSION_1, _VERSION_2)

_LACKED = (
    "",
    """
CREATE TEMP VIEW turns AS SELECT *, 0 AS canvas, NULL AS untold FROM main.turns;
CREATE TEMP VIEW sessions AS SELECT *, NULL AS notice FROM main.sessions;
""",
)
"""What shows a file of each version as one of the newest to who may not change it."""

TABLES = ("meta", "owner", "sessions", "turns", "messages", "calls", "events", "children")


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection that begins and ends its transactions itself.

    It may be used by any thread, by one at a time. A commit on it returns after the
    fsync.
    """
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={'ro' if read_only else 'rw'}",
        uri=True,
        timeout=LOCK_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def create(path: Path) -> None:
    """Make an empty journal, all of it or nothing.

    It is built beside its place, so that a crash never leaves half a journal behind.
    """
    fresh = path.with_name(path.name + ".new")
    build(fresh, journal_id=secrets.token_hex(8)).close()
    install(fresh, path)


def build(path: Path, *, journal_id: str, version: int | None = None) -> sqlite3.Connection:
    """Make the tables in a new file and return the connection to fill them with.

    Args:
        version: of the schema; the newest by default.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise JournalError(
            f"SQLite {sqlite3.sqlite_version} is too old for the journal:"
            f" it needs {'.'.join(map(str, OLDEST_SQLITE))} or later"
        )
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    connection = connect(path)
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    # Rolling back is not wanted of a file nobody knows yet; install() makes it durable.
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    migrate(connection, path, MIGRATIONS[:version])
    connection.execute("INSERT INTO meta VALUES ('id', ?)", (journal_id,))
    return connection


def install(fresh: Path, path: Path) -> None:
    """Give a journal that was built and closed its name, durably."""
    sync(fresh)
    fresh.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(connection: sqlite3.Connection, path: Path, migrations: Sequence[str] | None = None) -> int:
    """Return a file's version.

    Args:
        migrations: ours by default.

    Raises:
        JournalTooNew: naming both versions.
        sqlite3.DatabaseError: it is damaged.
    """
    known = len(MIGRATIONS if migrations is None else migrations)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > known:
        raise JournalTooNew(
            f"{path} was written by a newer version (schema {version}, this one knows {known}):"
            " upgrade, or move the whole state directory aside to begin anew"
        )
    return int(version)


def show_as_newest(connection: sqlite3.Connection, version: int) -> None:
    """Let a connection that only reads a file of an older version read it as one of ours."""
    connection.executescript(_LACKED[version] if version < len(_LACKED) else "")


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str] | None = None) -> None:
    """Bring a file to the newest schema, one version at a time, each in a transaction.

    Args:
        migrations: ours by default.

    Raises:
        JournalTooNew: it is ahead of us.
        sqlite3.DatabaseError: it is damaged.
    """
    migrations = MIGRATIONS if migrations is None else migrations
    for number in range(check(connection, path, migrations), len(migrations)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {migrations[number]}; PRAGMA user_version = {number + 1}; COMMIT"
        )
