"""Whether a journal is whole: its file, its rows among one another, its large bodies.

It only reads, and may be done beside a live sidecar.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import JournalDamaged, JournalUnavailable
from ...turns import ENDED
from . import schema
from .blobs import DIRECTORY, NAMED
from .damage import told
from .queries import Reader

_ON_ITS_WAY = 60.0
"""Seconds for which a body that no row names may be one whose row is being written."""

_MOST = 100
"""Problems of one kind that are told one by one."""

RESTART = "restart the sidecar: its start saves what can be read and moves the damaged file aside"
_TELL = "it does no harm; tell the authors, with the output of this command"
_GONE = "restore it from a backup; else send the message again, or forget its session"

_ENDED = ", ".join(f"'{state}'" for state in sorted(ENDED))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be."""

    kind: str
    """One word: ``file``, ``schema``, ``rows``, ``body``."""
    what: str
    todo: str


_ROWS = (
    (
        "message {0} belongs to no turn",
        _TELL,
        "SELECT seq FROM messages WHERE seq NOT IN (SELECT seq FROM turns)",
    ),
    (
        "calls of turn {0}, which is not there",
        _TELL,
        "SELECT DISTINCT turn_id FROM calls WHERE turn_id NOT IN (SELECT id FROM turns)",
    ),
    (
        "events of turn {0}, which is not there",
        _TELL,
        "SELECT DISTINCT turn_id FROM events WHERE turn_id NOT IN (SELECT id FROM turns)",
    ),
    (
        "turn {0} is in session {1}, which is not there",
        "its conversation begins anew with its next turn",
        "SELECT id, session_id FROM turns WHERE session_id NOT IN (SELECT id FROM sessions)",
    ),
    (
        "session {0} has no turn",
        "forget it: workspace-adapter sessions forget {0}",
        "SELECT id FROM sessions WHERE id NOT IN (SELECT session_id FROM turns)",
    ),
    (
        "turn {0} is {1}, and its message is gone",
        "cancel it, and have its message sent again: workspace-adapter turns cancel {0}",
        "SELECT id, state FROM turns WHERE ended_at IS NULL AND seq NOT IN (SELECT seq FROM messages)",
    ),
    (
        "turn {0} is {1}, which does not go with the time of its end",
        _TELL,
        f"SELECT id, state FROM turns WHERE (ended_at IS NOT NULL) IS NOT (state IN ({_ENDED}))",
    ),
)
"""What is wrong, what to do about it, and the rows it is true of."""

_BODIES = """
SELECT file AS digest, turns.id AS turn_id, 'message' AS what FROM messages JOIN turns USING (seq)
    WHERE file IS NOT NULL
UNION ALL
SELECT answer_file, id, 'answer' FROM turns WHERE answer_file IS NOT NULL
"""


def problems(journal: Reader) -> Iterator[Problem]:
    """Find what is not as it should be.

    Raises:
        JournalUnavailable: it cannot be read at all.
    """
    with journal.snapshot():
        damage = list(_damage(journal))
        yield from damage
        if damage:
            return  # of a damaged file the rest would be a guess
        for what, todo, sql in _ROWS:
            for row in journal.records(f"{sql} LIMIT {_MOST}"):
                yield Problem("rows", what.format(*row.values()), todo.format(*row.values()))
    yield from _bodies(journal)


def _damage(journal: Reader) -> Iterator[Problem]:
    suspected = told(journal.state_dir / schema.FILE)
    if suspected is not None:
        yield Problem("file", f"somebody found it damaged before: {suspected}", RESTART)
    try:
        for row in journal.records(f"PRAGMA integrity_check({_MOST})"):
            (said,) = row.values()
            if said != "ok":
                journal.doubt(said)
                yield Problem("file", said, RESTART)
        tables = {row["name"] for row in journal.records("SELECT name FROM sqlite_schema")}
        for table in schema.TABLES:
            if table not in tables:
                yield Problem("schema", f"the table {table} is missing", RESTART)
        ((version,),) = (row.values() for row in journal.records("PRAGMA user_version"))
        if version < len(schema.MIGRATIONS):
            what = f"its schema is {version}, this version's is {len(schema.MIGRATIONS)}"
            yield Problem("schema", what, "start the sidecar: it brings the file up to date")
        else:
            journal.read_through()
    except (JournalDamaged, JournalUnavailable) as error:
        yield Problem("file", str(error), RESTART)


def _bodies(journal: Reader) -> Iterator[Problem]:
    directory = journal.state_dir / DIRECTORY
    lying = sorted(directory.iterdir()) if directory.is_dir() else []
    for row in journal.records(_BODIES):
        path = directory / row["digest"]
        wrong = _wrong(path, row["digest"])
        if wrong and _named(journal, row["digest"]):
            yield Problem("body", f"the {row['what']} of turn {row['turn_id']}: {path} {wrong}", _GONE)
    for path in lying:
        if not _named(journal, path.name) and _age(path) > _ON_ITS_WAY:
            todo = "restart the sidecar: it removes what a crash left"
            yield Problem("body", f"{path} is named by no row", todo)


def _wrong(path: Path, digest: str) -> str:
    try:
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if same else "does not hold what its name says"


def _named(journal: Reader, digest: str) -> bool:
    (row,) = journal.records(NAMED, digest)
    return bool(next(iter(row.values())))


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
