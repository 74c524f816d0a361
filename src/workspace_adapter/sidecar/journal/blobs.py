"""Bodies too large for a row, in files named by their digest.

A file is written and fsynced under a name of its own by whoever brings the body, then
given its digest as name by the writer thread, before the commit that names it. The
writer thread alone names and removes files, so that a body two rows share never goes
while one of them needs it.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from .schema import sync

INLINE_LIMIT = 256 * 1024
"""Bytes of a body above which it is a file."""

DIRECTORY = "blobs"
"""Beneath the state directory."""

NAMED = """
WITH asked (digest) AS (VALUES (?))
SELECT EXISTS (SELECT 1 FROM messages, asked WHERE file = digest)
    OR EXISTS (SELECT 1 FROM turns, asked WHERE answer_file = digest)
"""
"""Whether a row names the file of this digest."""


class Staged:
    """A large body on its way into the journal."""

    def __init__(self, directory: Path, data: bytes) -> None:
        self._data = data
        self.path = directory / f".{secrets.token_hex(8)}"
        self.digest = ""
        """Its name, once written."""

    def write(self) -> None:
        """Put it on disk; slow, so not for the event loop or the writer thread."""
        self.digest = hashlib.sha256(self._data).hexdigest()
        self.path.touch(mode=0o600)
        self.path.write_bytes(self._data)
        sync(self.path)

    def discard(self) -> None:
        """Remove it, unless it was kept."""
        self.path.unlink(missing_ok=True)


Body = bytes | Staged
"""A body to be journalled: small ones go into the row."""


class Blobs:
    """The directory of large bodies."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / DIRECTORY
        self.size = sum(_size(path) for path in self._files())
        """Bytes of all of them."""

    def stage(self, data: bytes) -> Staged:
        """Prepare a large body; write it, then keep or discard it."""
        return Staged(self._directory, data)

    def read(self, digest: str) -> bytes | None:
        """Return a body, or ``None`` when its file is gone, damaged or holds something else."""
        try:
            data = (self._directory / digest).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None  # one bad sector must not end every life that comes upon it
        return data if hashlib.sha256(data).hexdigest() == digest else None

    # --- only the writer thread, or nobody else yet ---------------------------------

    def keep(self, staged: Staged) -> None:
        """Give a written body its name, durably."""
        place = self._directory / staged.digest
        if not place.exists():
            self.size += staged.path.stat().st_size
        staged.path.rename(place)
        sync(self._directory)

    def drop_unnamed(self, connection: sqlite3.Connection, digests: Iterable[str]) -> None:
        """Remove those of these files that no committed row names any more."""
        for digest in digests:
            (named,) = connection.execute(NAMED, (digest,)).fetchone()
            if not named:
                self._remove(self._directory / digest)

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Remove what a crash left: bodies half written, and those that no row names."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        sync(self._directory.parent)
        self.drop_unnamed(connection, [path.name for path in self._files()])

    def _remove(self, path: Path) -> None:
        self.size -= _size(path)
        path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self._directory.iterdir()) if self._directory.is_dir() else []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
