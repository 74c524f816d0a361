"""The one thread that has the SQLite file open, with group commit.

All that wait when it is free share one transaction and one fsync. Each request has a
savepoint of its own, so one that is refused leaves its neighbours alone; answers go
back to the event loop with one call per transaction, after its commit. Reads go the
same way: a file with one connection has no second one to be busy with.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ....errors import StoreUnavailable, WorkspaceAdapterError

T = TypeVar("T")

MOST = 500
"""Requests in one transaction; the others wait for the next."""


Word = tuple[Callable[[Any], None], str | int]


@dataclass(slots=True)
class Transaction:
    """What a request may use on the writer's thread."""

    connection: sqlite3.Connection
    words: list[Word] = field(default_factory=list)
    """What is to be told on the event loop once it is committed."""

    def then(self, tell: Callable[[Any], None], what: str | int) -> None:
        """Have somebody told, after the commit; the same word only once."""
        self.words.append((tell, what))

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Run one statement and return its rows."""
        return self.connection.execute(sql, values).fetchall()

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        """Run one statement and return its first row, all of it having run."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None

    def change(self, sql: str, *values: object) -> int:
        """Run one statement and return how many rows it changed."""
        return self.connection.execute(sql, values).rowcount


Request = Callable[[Transaction], T]


class _Waiting(NamedTuple):
    request: Request[Any]
    future: asyncio.Future[Any]
    lasting: bool


class _Answer(NamedTuple):
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Writer:
    """Takes requests on the event loop, commits them on its own thread."""

    def __init__(
        self,
        path: Path,
        *,
        prepare: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._loop = asyncio.get_running_loop()
        self._free = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._closing = False
        self._lasting = True
        """How the connection commits; the writer's thread alone knows."""
        self._ended = asyncio.Event()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)

    # --- on the event loop ------------------------------------------------------------

    async def open(self) -> None:
        """Open the file on the thread that will use it.

        Raises:
            StoreError: it cannot be opened, or is in use.
        """
        self._thread.start()
        await self._opened

    async def run(self, request: Request[T], *, lasting: bool = True) -> T:
        """Have a request committed and return its result. A caller that is cancelled takes nothing back.

        Args:
            lasting: it is on the disk then. What is not survives the process, not a loss of power; it
                comes to the disk with the next that is.

        Raises:
            StoreUnavailable: nothing of it was written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        with self._free:
            if self._closing:
                raise self._unavailable("it is closed")
            self._waiting.append(_Waiting(request, future, lasting))
            self._free.notify()
        return await future

    async def close(self) -> None:
        """Commit what waits, then close the file and end the thread."""
        with self._free:
            self._closing = True
            self._free.notify()
        await self._ended.wait()
        self._thread.join()

    def _deliver(self, answers: Iterable[_Answer], transaction: Transaction | None) -> None:
        for answer in answers:
            if answer.future.done():
                continue
            if answer.error is not None:
                answer.future.set_exception(answer.error)
            else:
                answer.future.set_result(answer.result)
        if transaction is not None:
            for tell, what in dict.fromkeys(transaction.words):
                tell(what)

    # --- on the writer's thread -------------------------------------------------------

    def _work(self) -> None:
        batch: list[_Waiting] = []
        try:
            try:
                connection = self._connect()
            except (sqlite3.Error, OSError) as error:
                self._tell(self._deliver, [_Answer(self._opened, error=self._failed(error))], None)
                return
            except WorkspaceAdapterError as error:
                self._tell(self._deliver, [_Answer(self._opened, error=error)], None)
                return
            self._tell(self._deliver, [_Answer(self._opened)], None)
            try:
                while batch := self._take():
                    self._commit(connection, batch)
            finally:
                connection.close()
        finally:
            # Something is left only when a bug ended the thread; its traceback goes to threading.excepthook.
            with self._free:
                self._closing = True
                left = [*batch, *self._waiting]
            self._tell(
                self._deliver, [_Answer(w.future, error=self._unavailable("it failed")) for w in left], None
            )
            self._tell(self._ended.set)

    def _connect(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)  # it holds secrets, and SQLite gives its other files the same rights
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        try:
            connection.row_factory = sqlite3.Row
            # Held until it is closed: a second process would be told that the file is in use.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self) -> list[_Waiting]:
        with self._free:
            while not self._waiting and not self._closing:
                self._free.wait()
            return [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]

    def _commit(self, connection: sqlite3.Connection, batch: list[_Waiting]) -> None:
        transaction: Transaction | None = Transaction(connection)
        assert transaction is not None
        try:
            lasting = any(waiting.lasting for waiting in batch)
            if lasting is not self._lasting:
                connection.execute(f"PRAGMA synchronous={'FULL' if lasting else 'NORMAL'}")
                self._lasting = lasting
            connection.execute("BEGIN IMMEDIATE")
            answers = [self._try(transaction, waiting) for waiting in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            answers = [_Answer(w.future, error=self._failed(error)) for w in batch]
            transaction = None
        self._tell(self._deliver, answers, transaction)

    @staticmethod
    def _try(transaction: Transaction, waiting: _Waiting) -> _Answer:
        execute, words = transaction.connection.execute, len(transaction.words)
        execute("SAVEPOINT request")
        try:
            answer = _Answer(waiting.future, waiting.request(transaction))
        except (WorkspaceAdapterError, sqlite3.IntegrityError, UnicodeEncodeError) as refusal:
            execute("ROLLBACK TO request")
            del transaction.words[words:]
            answer = _Answer(waiting.future, error=refusal)
        execute("RELEASE request")
        return answer

    def _failed(self, error: sqlite3.Error | OSError) -> StoreUnavailable:
        why = str(error.strerror if isinstance(error, OSError) else error)
        if "locked" in why:
            why = "another process has it open; several replicas need PostgreSQL (SHIM_DATABASE_URL)"
        elif "not a database" in why or "malformed" in why:
            why = f"{why}; stop the shim and put a copy in its place, or move it away to begin with nothing"
        else:
            why = f"{why}; SHIM_STATE_DIR must be this user's to write, with room on its disk"
        return self._unavailable(why)

    def _unavailable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self._path} cannot be used: {why}. Nothing was acknowledged")

    def _tell(self, callback: Callable[..., None], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *values)
