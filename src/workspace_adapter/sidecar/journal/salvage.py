"""What can be saved of a damaged journal.

Everything readable is copied into a new file before the damaged one is touched; then
main file, ``-wal`` and ``-shm`` move aside together, for people to look at, and the copy
takes their place. A crash on the way leaves either the damaged journal or the finished
copy to go on from.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import JournalTooNew
from . import schema
from .damage import Unreadable, mended, shows_damage
from .queries import SELECT_UNDELIVERED, SELECT_UNFINISHED, Row, outcome_of, turn_of

logger = logging.getLogger(__name__)

_PARTS = ("", "-wal", "-shm", "-journal")
_PAGE = 4096
"""Bytes; SQLite's default, and ours."""

_POINTERS = 2
"""The page that says which page belongs to which, as incremental vacuum needs it."""

_ONE_PAGE = frozenset({"meta", "children"})
"""Tables so small that there is no way round a damaged page of theirs."""

_GIVE_UP = 10_000
"""Rows that are not found one after another, after which the end is taken as reached."""


class Damaged(Exception):
    """SQLite, or a row it returned, says that the file is damaged."""


def examine(path: Path) -> None:
    """Read what a boot needs: the schema, the unfinished and the undelivered turns.

    Not the whole file: a boot must not take longer the more it has done. A file of an
    older version is brought to ours first, since only ours can be read.

    Raises:
        Damaged: with what was found.
        JournalTooNew: it was written by a newer version.
        sqlite3.Error: it cannot be read now.
    """
    if not path.exists():
        raise Damaged("its main file is gone")
    if path.stat().st_size == 0:  # SQLite would take it for a new one and drop the log beside it
        raise Damaged("it is empty")
    if path.with_name(path.name + "-journal").exists():
        # A life was killed while it gave the file its log: only who may write can undo that.
        with noticing_damage(), closing(schema.connect(path)) as connection:
            schema.check(connection, path)
    with noticing_damage(), closing(schema.connect(path, read_only=True)) as connection:
        version = schema.check(connection, path)
    if version == 0:
        raise Damaged("it holds no journal")
    if version < len(schema.MIGRATIONS):
        with noticing_damage(), closing(schema.connect(path)) as connection:
            schema.migrate(connection, path)
    with noticing_damage(), closing(schema.connect(path, read_only=True)) as connection:
        if not _tables(connection).issuperset(schema.TABLES):
            raise Damaged("it holds no journal")
        for table in ("meta", "owner", "sessions", "children"):
            for _ in connection.execute(f"SELECT * FROM {table}"):
                pass
        for query in (SELECT_UNFINISHED, SELECT_UNDELIVERED):
            for row in connection.execute(query):
                turn = turn_of(row, lambda digest: b"")
                for table, key, value in (("messages", "seq", turn.seq), ("calls", "turn_id", turn.id)):
                    connection.execute(f"SELECT * FROM {table} WHERE {key} = ?", (value,)).fetchall()


@contextmanager
def noticing_damage() -> Iterator[None]:
    """Turn the errors that mean damage into ``Damaged``."""
    try:
        yield
    except (sqlite3.Error, Unreadable) as error:
        if not shows_damage(error):
            raise
        raise Damaged(str(error)) from error


def salvage(path: Path, *, why: str, now: float) -> dict[str, Any]:
    """Copy every readable row into a new file that takes the damaged one's place.

    The copy has the damaged one's schema; whoever opens it brings it to ours.

    Returns ``why``, ``moved_to`` (the damaged file's new name), and per table the rows
    ``copied`` and ``lost``: at least that many, where even their number cannot be read.

    Raises:
        sqlite3.Error, OSError: the copy could not be written; nothing has changed.
    """
    copy = _beside(path, "salvaged")
    version = _version(path)
    with (
        closing(schema.build(copy, journal_id=secrets.token_hex(8), version=version)) as target,
        _source(path, version, _tables(target)) as source,
    ):
        copied = {table: 0 for table in schema.TABLES if table in _tables(target)}
        lost = dict.fromkeys(copied, 0)
        target.execute("BEGIN")
        if source is not None:
            _copy(source, target, copied, lost)
        _make_whole(target, copied, lost)
        target.execute("COMMIT")
    moved_to = _move_aside(path, now)
    schema.install(copy, path)
    mended(path)
    logger.error(
        "%s is damaged (%s): moved to %s, %d rows copied, %d lost",
        path,
        why,
        moved_to,
        sum(copied.values()),
        sum(lost.values()),
    )
    return {"why": why, "moved_to": moved_to, "copied": copied, "lost": lost}


def resume(path: Path, *, now: float) -> None:
    """Finish a salvage that a crash interrupted after its copy was complete."""
    copy = _beside(path, "salvaged")
    if copy.exists() and not path.exists():
        _move_aside(path, now)
        schema.install(copy, path)
    copy.unlink(missing_ok=True)


def _tables(connection: sqlite3.Connection) -> frozenset[str]:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return frozenset(name for (name,) in tables)


# --- reading what is damaged ------------------------------------------------------------


def _version(path: Path) -> int:
    """Return a damaged journal's version; ours, where that cannot be read."""
    try:
        with closing(schema.connect(path, read_only=True)) as connection:
            version = schema.check(connection, path)
    except (sqlite3.Error, JournalTooNew):
        version = int.from_bytes(_head(path)[60:64], "big")  # SQLite says no more than that it is damaged
    newest = len(schema.MIGRATIONS)
    return version if 0 < version < newest else newest


def _head(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(100)


@contextmanager
def _source(path: Path, version: int, tables: frozenset[str]) -> Iterator[sqlite3.Connection | None]:
    """Open a damaged journal, if anything of it can be opened."""
    if not path.exists() or path.stat().st_size < _PAGE:
        yield None
        return
    with ExitStack() as opened:
        source = _open(path, opened, tables)
        if source is None:
            source = _open(_with_own_schema(path, opened, version), opened, tables)
        yield source


def _open(path: Path, opened: ExitStack, tables: frozenset[str]) -> sqlite3.Connection | None:
    try:
        connection = opened.enter_context(closing(schema.connect(path, read_only=True)))
        # A damaged text is better than none.
        connection.text_factory = lambda data: data.decode(errors="replace")
        return connection if _tables(connection) >= tables else None
    except sqlite3.DatabaseError:
        return None


def _with_own_schema(path: Path, opened: ExitStack, version: int) -> Path:
    """Copy a journal whose schema cannot be read, and give the copy that of a new journal.

    It stands on the same pages in every journal made with that version, and says where
    the tables begin. The first page, one of them, is written more often than any other,
    so the likeliest torn.
    """
    repaired = _beside(path, "repaired")
    for part in _PARTS:
        opened.callback(repaired.with_name(repaired.name + part).unlink, missing_ok=True)
    with closing(schema.build(repaired, journal_id="", version=version)) as fresh:
        roots = {root for (root,) in fresh.execute("SELECT rootpage FROM sqlite_master")}
    content = bytearray(repaired.read_bytes())
    content[18:20] = b"\2\2"  # it has a write-ahead log
    # Tables that begin past the end of a truncated file count as empty pages, else none is found.
    size = max(path.stat().st_size // _PAGE * _PAGE, len(content))
    content[28:32] = (size // _PAGE).to_bytes(4, "big")
    log = path.with_name(path.name + "-wal")
    if log.exists():
        shutil.copyfile(log, repaired.with_name(repaired.name + "-wal"))
    shutil.copyfile(path, repaired)
    with repaired.open("r+b") as file:
        file.truncate(size)
        for number in set(range(1, len(content) // _PAGE + 1)) - roots - {_POINTERS}:
            file.seek((number - 1) * _PAGE)
            file.write(content[(number - 1) * _PAGE : number * _PAGE])
    return repaired


def _copy(
    source: sqlite3.Connection, target: sqlite3.Connection, copied: dict[str, int], lost: dict[str, int]
) -> None:
    for table in copied:
        for row in _rows(source, table, target, lost):
            counts = copied if _insert(target, table, row) else lost
            counts[table] += 1
        lost[table] = max(lost[table], _known(source, table) - copied[table])


def _rows(
    source: sqlite3.Connection, table: str, target: sqlite3.Connection, lost: dict[str, int]
) -> Iterator[Row]:
    """Yield the readable rows of a table, counting those that are not."""
    if table == "events":
        for (turn_id,) in target.execute("SELECT id FROM turns").fetchall():
            yield from _walk(source, table, lost, "n", "turn_id = ?", turn_id)
    else:
        key = None if table in _ONE_PAGE else "rowid"
        yield from _walk(source, table, lost, key)


def _known(source: sqlite3.Connection, table: str) -> int:
    """Count a table's rows by its smallest index, where that can still be read."""
    try:
        return int(source.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


def _walk(
    source: sqlite3.Connection,
    table: str,
    lost: dict[str, int],
    key: str | None,
    where: str = "true",
    *values: object,
) -> Iterator[Row]:
    """Read from the front until that fails, from the back until that fails, then one by one between."""
    select = f"SELECT {key or 0}, * FROM {table} NOT INDEXED WHERE {where}"
    last = 0
    first: int | None = None
    try:
        for at, *row in source.execute(f"{select} ORDER BY {key or 1}", values):
            last = at
            yield tuple(row)
        return
    except sqlite3.DatabaseError:
        if key is None:
            lost[table] += 1
            return
    try:
        for at, *row in source.execute(f"{select} ORDER BY {key} DESC", values):
            if at <= last:
                return
            first = at
            yield tuple(row)
        return
    except sqlite3.DatabaseError:
        pass
    failed, nothing, at = 0, 0, last
    while nothing < _GIVE_UP if first is None else at + 1 < first:
        at += 1
        try:
            found = source.execute(f"{select} AND {key} = ?", (*values, at)).fetchall()
        except sqlite3.DatabaseError:
            found, failed = [], failed + 1
        nothing += 1
        for _, *row in found:
            lost[table] += failed
            failed, nothing = 0, 0
            yield tuple(row)
    lost[table] += failed if first is not None else 1


# --- writing what is kept ---------------------------------------------------------------


def _insert(target: sqlite3.Connection, table: str, row: Row) -> bool:
    """Copy a row, unless its values are none that we ever write."""
    # The new file has an id; the old one's goes on, since children carry it.
    verb = "REPLACE" if table == "meta" else "IGNORE"
    try:
        cursor = target.execute(f"INSERT OR {verb} INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    except sqlite3.IntegrityError:
        return False
    return cursor.rowcount == 1


def _make_whole(target: sqlite3.Connection, copied: dict[str, int], lost: dict[str, int]) -> None:
    """Drop what lost its turn, and what nobody could read: log entries, outcomes."""
    for table, key, of in (("messages", "seq", "seq"), ("calls", "turn_id", "id")):
        orphans = target.execute(f"DELETE FROM {table} WHERE {key} NOT IN (SELECT {of} FROM turns)").rowcount
        copied[table] -= orphans
        lost[table] += orphans
    (without,) = target.execute(
        "SELECT count(*) FROM turns WHERE ended_at IS NULL AND seq NOT IN (SELECT seq FROM messages)"
    ).fetchone()
    lost["messages"] = max(lost["messages"], without)
    unreadable = [
        (turn_id, n)
        for turn_id, n, body in target.execute("SELECT turn_id, n, body FROM events")
        if not _is_json(body)
    ]
    target.executemany("DELETE FROM events WHERE turn_id = ? AND n = ?", unreadable)
    copied["events"] -= len(unreadable)
    lost["events"] += len(unreadable)
    for seq, outcome in target.execute("SELECT seq, outcome FROM turns").fetchall():
        try:
            outcome_of(outcome)
        except Unreadable:
            target.execute("UPDATE turns SET outcome = NULL WHERE seq = ?", (seq,))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f"{path.name}.{word}")


def _move_aside(path: Path, now: float) -> str:
    """Give what there is of a journal a name that SQLite still reads as one journal."""
    aside = _beside(path, f"damaged-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S.%fZ}")
    for part in _PARTS:
        file = path.with_name(path.name + part)
        if file.exists():
            file.rename(aside.with_name(aside.name + part))
    schema.sync(path.parent)
    return aside.name
