"""What shows that a journal is damaged, told to the start that can mend it.

SQLite reads a page when somebody needs what stands on it, and a boot does not look at
all of them: damage may be met by any life. Whoever meets it leaves a note beside the
journal, and the next start salvages it.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from ...errors import JournalDamaged
from .schema import sync

logger = logging.getLogger(__name__)

_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CUT = sqlite3.SQLITE_IOERR_SHORT_READ
"""A file, the log, is shorter than what was written to it."""


class Unreadable(ValueError):
    """A row holds what was never written."""


def shows_damage(error: BaseException) -> bool:
    """Say whether an error means that the file is damaged, not that it cannot be read now."""
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, Unreadable)
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # the sqlite3 module's own: a text that is not UTF-8
        return isinstance(error, sqlite3.OperationalError)
    return code == _CUT or code & 0xFF in _CORRUPT


class Suspicion:
    """What one life met of a journal's damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._why: str | None = None

    def confirm(self, error: BaseException) -> JournalDamaged:
        """Trust the journal no more and tell the next start; return what to raise."""
        if self._why is None:
            self._why = str(error)
            try:
                note = note_beside(self.path)
                note.write_text(self._why)
                sync(note)
            except OSError as failed:
                logger.warning("the next start cannot be told of the damage: %s", failed)
        return self._damaged()

    def check(self) -> None:
        """Return while the journal may be trusted.

        Raises:
            JournalDamaged: not any more.
        """
        if self._why is not None:
            raise self._damaged()

    def _damaged(self) -> JournalDamaged:
        return JournalDamaged(
            f"{self.path} is damaged ({self._why}): the next start of the sidecar saves what can be read"
        )


def note_beside(path: Path) -> Path:
    """Return where a life says what damage it met."""
    return path.with_name(f"{path.name}.suspect")


def told(path: Path) -> str | None:
    """Return what damage an earlier life met and no start has mended yet."""
    try:
        return note_beside(path).read_text(errors="replace") or "an earlier life found it damaged"
    except FileNotFoundError:
        return None
    except OSError as error:  # whoever wrote it was another user
        return f"an earlier life found it damaged, and how cannot be read: {error.strerror}"


def mended(path: Path) -> None:
    """Take back what was told of the damage."""
    note = note_beside(path)
    try:
        note.unlink(missing_ok=True)
    except OSError as error:
        logger.error("every start salvages the journal anew until you remove %s: %s", note, error.strerror)
