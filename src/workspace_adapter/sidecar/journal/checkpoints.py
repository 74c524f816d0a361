"""Moves what was committed from the write-ahead log into the main file.

One pass at a time, on a thread and a connection of its own, so that no commit waits for
it. The writer says when; see :meth:`Checkpoints.due` for why not just at any time.
"""

from __future__ import annotations

import logging
import sqlite3
import threading

from .schema import LOCK_PATIENCE

logger = logging.getLogger(__name__)

EVERY = 2000
"""Rows changed after which a pass begins."""

LOG_LIMIT = 16 << 20
"""Bytes of the log above which the writer itself finishes a pass, so that the log begins anew."""

PASS = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpoints:
    """The thread that makes passes, and the decision when."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._rows = 0
        self._passed = False
        self._working = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="journal-checkpoints", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether no pass is under way."""
        return not self._working.is_set()

    def due(self, rows: int, *, log_bytes: int, was_idle: bool, writing: sqlite3.Connection) -> None:
        """The writer committed changes; make a pass if it is time.

        A pass must not begin while the log may begin anew under it: releases of SQLite
        before 3.51.3 can then take new frames for ones already moved, and lose them.
        The log begins anew only with the first commit after a pass that moved all of it,
        so a pass follows only upon such a commit that began when none was under way.

        Args:
            rows: how many the commit changed, at least one.
            log_bytes: the log's size after it.
            was_idle: what ``idle`` said before the commit began.
            writing: the writer's connection.
        """
        self._rows += rows
        over = log_bytes > LOG_LIMIT
        if not was_idle or not (over or self._rows >= EVERY):
            return
        self._rows = 0
        if over and self._passed:
            # Passes beside a busy writer never reach the log's end; what the last one
            # left is little.
            self._passed = False
            self._pass(writing)
        else:
            self._passed = over
            self._working.set()

    def begin(self, writing: sqlite3.Connection) -> None:
        """Begin a pass out of turn, on the writer's thread between two commits."""
        if self.idle:
            writing.execute("UPDATE owner SET probes = probes + 1")  # see due(): first a commit, then a pass
            self._working.set()

    def empty(self, writing: sqlite3.Connection) -> bool:
        """Move all of the log and cut it to nothing, on the writer's thread between two commits.

        Says no where that cannot be done now: a pass is under way, or somebody reads what
        the log holds. No pass can begin meanwhile, since only the writer begins them.
        """
        if not self.idle:
            return False
        writing.execute("PRAGMA busy_timeout=0")
        try:
            busy, _, _ = writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            writing.execute(f"PRAGMA busy_timeout={round(LOCK_PATIENCE * 1000)}")
        return not busy

    def end(self) -> None:
        """End the thread, after the pass under way."""
        self._ended = True
        self._working.set()
        self._thread.join()
        self._connection.close()

    def _work(self) -> None:
        while not self._ended:
            self._working.wait()
            if not self._ended:
                self._pass(self._connection)
            self._working.clear()

    def _pass(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute(PASS).fetchone()
        except sqlite3.Error as error:
            logger.warning("the journal's log could not be moved into its main file: %s", error)
