"""How large a journal is, and how much of it is due to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import schema
from .blobs import DIRECTORY
from .queries import Reader

UPLOADS = "uploads"
"""Where the files that messages brought lie, beneath the state directory."""

_OLDEST = "SELECT id, state, accepted_at FROM turns ORDER BY seq LIMIT 1"

_DUE = """
WITH due AS (
    SELECT seq, id, answer FROM turns WHERE ended_at IS NOT NULL AND delivered_at < ?
    UNION ALL
    SELECT seq, id, answer FROM turns
        WHERE ended_at IS NOT NULL AND delivered_at IS NULL AND ended_at < ?
)
SELECT count(*) AS turns, coalesce(sum(
    coalesce(length(answer), 0)
    + (SELECT coalesce(sum(length(body)), 0) FROM events WHERE turn_id = due.id)
    + (SELECT coalesce(sum(length(body)), 0) FROM messages WHERE seq = due.seq)
), 0) AS characters FROM due
"""


def measure(journal: Reader, *, limit_bytes: int, retention: float, now: float) -> dict[str, Any]:
    """Return a journal's sizes, in bytes, and counts.

    ``counted_bytes`` is what is held against ``limit_bytes``. ``free_bytes`` lie unused in
    the file. ``due`` is what is past ``retention``, in seconds: how many turns, and about
    how many characters.

    Raises:
        JournalUnavailable: it cannot be read.
    """
    state_dir = journal.state_dir
    pages, free, size = (
        next(iter(journal.records(f"PRAGMA {name}")[0].values()))
        for name in ("page_count", "freelist_count", "page_size")
    )
    oldest = journal.records(_OLDEST)
    return {
        "state_dir": str(state_dir),
        "file_bytes": pages * size,
        "free_bytes": free * size,
        "log_bytes": _size(state_dir / f"{schema.FILE}-wal"),
        "blobs": _folder(state_dir / DIRECTORY),
        "uploads": _folder(state_dir / UPLOADS),
        "counted_bytes": journal.size_bytes(),
        "limit_bytes": limit_bytes,
        "rows": {
            table: journal.records(f"SELECT count(*) AS rows FROM {table}")[0]["rows"]
            for table in schema.TABLES
        },
        "oldest": oldest[0] if oldest else None,
        "due": journal.records(_DUE, journal.own(now - retention), journal.own(now - 2 * retention))[0],
    }


def _folder(path: Path) -> dict[str, int]:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return {"files": len(files), "bytes": sum(map(_size, files))}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
