"""The one thread that writes the journal, with group commit.

Requests made in one turn of the event loop travel together, and all that wait when the
writer is free share one transaction and one fsync. Each has a savepoint of its own, so
one that is refused leaves its neighbours alone. Answers go back to the loop with one
call per transaction, after its commit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...errors import JournalError, JournalTaken, JournalUnavailable, WorkspaceAdapterError
from ..durations import MOMENTS, Durations
from .blobs import Blobs
from .checkpoints import LOG_LIMIT, Checkpoints
from .damage import Suspicion, Unreadable, shows_damage
from .queries import used_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 500
"""Requests in one transaction, urgent ones not counted; the others wait for the next."""


@dataclass(slots=True)
class Transaction:
    """What a request may use while it runs on the writer's thread."""

    connection: sqlite3.Connection
    boot_id: str
    blobs: Blobs
    changed: list[str] = field(default_factory=list)
    """Turns of which there is more to tell: what was logged, a state other than ``running``, their end
    for good."""
    loosened: set[str] = field(default_factory=set)
    """Digests of files that a row named, or was about to."""
    rows: int = 0
    """Rows changed."""
    _used_bytes: int | None = None

    @property
    def size(self) -> int:
        """Bytes the journal holds; those of its rows as of the first time this is asked."""
        if self._used_bytes is None:
            self._used_bytes = used_bytes(self.connection)
        return self._used_bytes + self.blobs.size

    def execute(self, sql: str, values: Sequence[object] | dict[str, object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, values)


Request = Callable[[Transaction], T]
"""One change, made on the writer's thread: it reads, refuses by raising, or writes."""


class _Waiting(NamedTuple):
    request: Request[Any]
    urgent: bool
    future: asyncio.Future[Any] | None


class _Errand(NamedTuple):
    do: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class _Answer(NamedTuple):
    future: asyncio.Future[Any] | None
    result: Any = None
    error: Exception | None = None


_ITS_OWN_FAULT = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    UnicodeEncodeError,
)
"""What one request alone is to blame for: a value that cannot be stored, or not twice."""


class Writer:
    """Takes requests on the event loop, commits them on its own thread."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        boot_id: str,
        blobs: Blobs,
        checkpoints: Checkpoints,
        suspicion: Suspicion,
        on_change: Callable[[str], None],
        on_health: Callable[[bool], None],
    ) -> None:
        self._files = (path, path.with_name(path.name + "-wal"))
        self._identities = [_identity(file.stat()) for file in self._files]
        self._connection = connection
        self._boot_id = boot_id
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._suspicion = suspicion
        self._on_change = on_change
        self._on_health = on_health
        self._healthy = True
        self.commits = Durations(MOMENTS)
        """What each transaction took, waiting for its fsync included."""
        self.failures = 0
        """Transactions that came to nothing."""

        self._loop = asyncio.get_running_loop()
        self._gathered: list[_Waiting] = []
        self._free = threading.Condition()
        self._urgent: deque[_Waiting] = deque()
        self._others: deque[_Waiting] = deque()
        self._errands: deque[_Errand] = deque()
        self._closing = False
        self._gone = False
        self._ended = asyncio.Event()
        connection.execute(f"PRAGMA journal_size_limit={LOG_LIMIT}")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        self._thread = threading.Thread(target=self._work, name="journal-writer", daemon=True)
        self._thread.start()

    # --- on the event loop ----------------------------------------------------------

    async def run(self, request: Request[T], *, urgent: bool = False) -> T:
        """Have a request committed and return its result.

        A caller that is cancelled meanwhile takes nothing back.

        Raises:
            JournalUnavailable: nothing of it was written.
            JournalTaken: another process owns the journal; nothing was written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._gather(_Waiting(request, urgent, future))
        return await future

    def post(self, request: Request[None]) -> None:
        """Have a request committed; when that fails, nobody hears of it."""
        self._gather(_Waiting(request, False, None))

    async def between(self, errand: Callable[[sqlite3.Connection], T]) -> T:
        """Have something done on the writer's connection between two transactions.

        Raises:
            JournalUnavailable: it could not be done.
            JournalTaken: another process owns the journal; nothing was done.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        with self._free:
            if self._closing or self._gone:
                raise self._unavailable("it is closed")
            self._errands.append(_Errand(errand, future))
            self._free.notify()
        return await future

    async def close(self) -> None:
        """Commit what waits, then end the thread."""
        self._hand_over()
        with self._free:
            self._closing = True
            self._free.notify()
        await self._ended.wait()
        self._thread.join()

    def _gather(self, waiting: _Waiting) -> None:
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(waiting)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        with self._free:
            if not self._closing and not self._gone:
                for waiting in gathered:
                    (self._urgent if waiting.urgent else self._others).append(waiting)
                self._free.notify()
                return
        self._answer([_Answer(w.future, error=self._unavailable("it is closed")) for w in gathered], (), None)

    def _answer(self, answers: Iterable[_Answer], changed: Iterable[str], healthy: bool | None) -> None:
        if healthy is not None:
            self._on_health(healthy)
        for answer in answers:
            if answer.future is None or answer.future.done():
                continue
            if answer.error is not None:
                answer.future.set_exception(answer.error)
            else:
                answer.future.set_result(answer.result)
        # Whoever waits for a future goes on only after this call.
        for turn_id in dict.fromkeys(changed):
            self._on_change(turn_id)

    # --- on the writer's thread -----------------------------------------------------

    def _work(self) -> None:
        batch: list[_Waiting] | _Errand = []
        try:
            while batch := self._take():
                if isinstance(batch, _Errand):
                    self._run(batch)
                else:
                    self._commit(batch)
        finally:
            # A batch is left only when a bug ended the thread; its traceback goes to
            # threading.excepthook.
            with self._free:
                self._gone = True
                left: list[_Waiting | _Errand] = [*self._urgent, *self._others, *self._errands]
                left += [batch] if isinstance(batch, _Errand) else batch
            error = "its writer failed; restart the workspace"
            answers = [_Answer(waiting.future, error=self._unavailable(error)) for waiting in left]
            self._tell(self._answer, answers, (), False if left else None)
            self._tell(self._ended.set)

    def _take(self) -> list[_Waiting] | _Errand:
        """Wait for requests; return those of the next transaction or an errand, none when closing."""
        with self._free:
            while not self._urgent:
                if self._errands:  # first: there may always be others
                    return self._errands.popleft()
                if self._others:
                    break
                if self._closing:
                    return []
                self._free.wait()
            batch = list(self._urgent)
            self._urgent.clear()
            batch += [self._others.popleft() for _ in range(min(MOST, len(self._others)))]
            return batch

    def _commit(self, batch: list[_Waiting]) -> None:
        idle, began = self._checkpoints.idle, time.perf_counter()
        connection = self._connection
        transaction = Transaction(connection, self._boot_id, self._blobs)
        try:
            self._suspicion.check()
            connection.execute("BEGIN IMMEDIATE")
            self._check_owner()
            answers = [self._try(transaction, waiting) for waiting in batch]
            connection.execute("COMMIT")
            log_bytes = self._check_files()
            self.commits.observe(time.perf_counter() - began)
        except (sqlite3.Error, OSError, JournalError, Unreadable) as error:
            self._roll_back()
            self.failures += 1
            log_bytes = None
            answers = [_Answer(waiting.future, error=self._failure(error)) for waiting in batch]
            transaction.changed.clear()
            if isinstance(error, JournalError):  # what lies there may be another owner's
                transaction.loosened.clear()
            if self._healthy:
                logger.error("%s", self._failure(error))
        # A commit that changed nothing wrote nothing: it does not show that writing works again.
        healthy = log_bytes is not None and (self._healthy or transaction.rows > 0)
        became = healthy if healthy is not self._healthy else None
        self._healthy = healthy
        self._tell(self._answer, answers, transaction.changed, became)
        if transaction.loosened:
            self._drop_files(transaction.loosened)
        if log_bytes is not None and transaction.rows:
            self._checkpoints.due(transaction.rows, log_bytes=log_bytes, was_idle=idle, writing=connection)

    def _run(self, errand: _Errand) -> None:
        try:
            self._suspicion.check()
            self._check_owner()
            answer = _Answer(errand.future, errand.do(self._connection))
        except (sqlite3.Error, JournalError) as error:
            answer = _Answer(errand.future, error=self._failure(error))
        self._tell(self._answer, [answer], (), None)

    def _try(self, transaction: Transaction, waiting: _Waiting) -> _Answer:
        execute, changed = self._connection.execute, len(transaction.changed)
        rows = self._connection.total_changes
        execute("SAVEPOINT request")
        try:
            result = waiting.request(transaction)
        except (WorkspaceAdapterError, *_ITS_OWN_FAULT) as refusal:
            execute("ROLLBACK TO request")
            execute("RELEASE request")
            del transaction.changed[changed:]
            return _Answer(waiting.future, error=refusal)
        execute("RELEASE request")
        transaction.rows += self._connection.total_changes - rows
        return _Answer(waiting.future, result)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                self._connection.execute("ROLLBACK")

    def _check_owner(self) -> None:
        (owner,) = self._connection.execute("SELECT boot_id FROM owner").fetchone() or ("nobody",)
        if owner != self._boot_id:
            raise JournalTaken(
                f"{self._files[0]} is owned by boot {owner} now; this one ({self._boot_id}) changes"
                " nothing any more"
            )

    def _check_files(self) -> int:
        """Return the log's size, once sure that what was fsynced can be found again."""
        log_bytes = 0
        for file, identity in zip(self._files, self._identities, strict=True):
            try:
                status = file.stat()
            except FileNotFoundError:
                raise JournalUnavailable(
                    f"{file} was removed while in use: what is written now would be lost."
                    " Put it back or restart the workspace"
                ) from None
            if _identity(status) != identity:
                raise JournalUnavailable(
                    f"{file} was replaced while in use: what is written now would be lost."
                    " Restart the workspace"
                )
            log_bytes = status.st_size
        return log_bytes

    def _drop_files(self, digests: set[str]) -> None:
        try:
            self._blobs.drop_unnamed(self._connection, digests)
        except (sqlite3.Error, OSError) as error:
            logger.warning("a large body could not be removed, the next start tries again: %s", error)

    def _failure(self, error: Exception) -> JournalError:
        if shows_damage(error):
            return self._suspicion.confirm(error)
        if isinstance(error, JournalError):
            return type(error)(*error.args)
        return self._unavailable(str(error))

    def _unavailable(self, why: str) -> JournalUnavailable:
        return JournalUnavailable(f"{self._files[0]} cannot be written: {why}. Nothing was acknowledged")

    def _tell(self, callback: Callable[..., None], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *values)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
