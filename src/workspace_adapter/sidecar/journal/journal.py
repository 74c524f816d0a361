"""The verbs on the file that knows every turn."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import anyio
import anyio.to_thread

from ...errors import JournalError, JournalUnavailable
from ...events import SessionHandle, ToolCall
from ...turns import Notice, Outcome, State, Turn
from ..durations import Durations
from . import ownership, salvage, schema, verbs
from .blobs import INLINE_LIMIT, Blobs, Body
from .checkpoints import Checkpoints
from .damage import told
from .queries import Queries, kept_time
from .records import Accepted, Child, NewEvent, NewTurn
from .timeline import BELIEVED, KEPT, Kept, Machine, Timeline
from .verbs import Answer
from .writer import Transaction, Writer

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOG_PATIENCE = 20.0
"""Seconds for which emptying the log is tried; readers are done in less."""

_LOG_POLL = 0.02

_NO_ROOM_FOR_COPY = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_GETTEMPPATH, sqlite3.SQLITE_FULL})
"""What a root file system that cannot be written, or a small ``/tmp``, comes to; a disk's says more."""

_KEEP_EVERY = 3600.0
"""Seconds after which the journal's time is written down again."""


class Journal(Queries):
    """One SQLite file, one writer thread, readers that never wait for it.

    Every ``async`` verb returns after its commit was fsynced. Each raises
    ``JournalUnavailable`` when nothing could be written, ``JournalTaken`` when another
    process owns the file, and ``JournalDamaged`` once anything of it was found damaged;
    then nothing was changed. A caller that is cancelled
    while it waits takes nothing back: what it asked for may still be written.
    """

    id: str
    """Random, made with the file; part of the mark that children carry."""
    boot_id: str
    """Random, of this life; the owner's row that every commit checks."""
    salvaged: dict[str, Any] | None
    """What was saved of a damaged file when this one was opened; see ``salvage.salvage``."""

    def __init__(
        self,
        path: Path,
        files: _Files,
        blobs: Blobs,
        lock: ownership.Lock,
        *,
        boot_id: str,
        machine: Machine | None,
        on_change: Callable[[str], None],
        on_health: Callable[[bool], None],
    ) -> None:
        """Use :meth:`open`."""
        super().__init__(path, files.reading, blobs, files.timeline)
        self.id, self.boot_id, self.salvaged = files.journal_id, boot_id, files.salvaged
        self._lock = lock
        self._files = files
        self._machine = machine
        self._kept_at = -math.inf
        self._checkpoints = Checkpoints(files.passing)
        self._writer = Writer(
            path,
            files.writing,
            boot_id=boot_id,
            blobs=blobs,
            checkpoints=self._checkpoints,
            suspicion=self._suspicion,
            on_change=on_change,
            on_health=on_health,
        )
        self._closed = False

    @classmethod
    async def open(
        cls,
        state_dir: Path,
        *,
        boot_id: str,
        now: float,
        machine: Machine | None = None,
        believed: float = BELIEVED,
        on_change: Callable[[str], None] = lambda turn_id: None,
        on_health: Callable[[bool], None] = lambda healthy: None,
        patience: float = 10.0,
    ) -> Self:
        """Open the journal of a state directory as its one owner, made or repaired where need be.

        Args:
            now: the wall clock's time.
            machine: its uptime is what ages are counted on; without one the wall clock
                is followed wherever it goes.
            believed: see :class:`Timeline`.
            on_change: called on the event loop with each turn of which there is more to
                tell, after the commit and before the verb returns. A start alone is no
                news: the first entry of its log says so.
            on_health: called on the event loop when writes begin to fail, and when they
                work again.
            patience: seconds to wait for a predecessor that is leaving.

        Raises:
            StateDirError: the directory cannot be used, or somebody else owns it.
            JournalTooNew: a newer version wrote the journal.
            JournalUnavailable: not now; try again.
        """
        with ExitStack() as undo:
            await anyio.to_thread.run_sync(ownership.prepare, state_dir)
            lock = await ownership.take(state_dir, boot_id=boot_id, now=now, patience=patience)
            undo.callback(lock.release)
            path = state_dir / schema.FILE
            try:
                blobs = Blobs(state_dir)
            except OSError as error:
                raise JournalUnavailable(f"cannot read {state_dir}: {error}") from error
            files = await anyio.to_thread.run_sync(
                partial(
                    _open_files, path, blobs, boot_id=boot_id, now=now, machine=machine, believed=believed
                )
            )
            journal = cls(
                path,
                files,
                blobs,
                lock,
                boot_id=boot_id,
                machine=machine,
                on_change=on_change,
                on_health=on_health,
            )
            undo.pop_all()
        journal.clock()
        return journal

    async def close(self) -> None:
        """Write what waits, close the file and let another process own it. Harmless to repeat."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            self._keep_time()
            await self._writer.close()
            await anyio.to_thread.run_sync(self._close_files)

    def _close_files(self) -> None:
        self._checkpoints.end()
        with closing(self._files.writing) as writing, closing(self._files.reading):
            try:
                writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                logger.warning("%s keeps its write-ahead log: %s", self._path, error)
        self._lock.release()

    # --- time ---------------------------------------------------------------------

    def clock(self) -> float:
        """Return the wall clock's time, having noticed whether somebody set it.

        What is read and written from then on keeps its age.
        """
        if self._machine is None or self._timeline is None:
            return time.time()
        now = self._machine()
        step = self._timeline.look(now)
        if step:
            logger.warning(
                "the clock was set %s by %.0f s: nothing gets older or younger by that",
                "back" if step < 0 else "forward",
                abs(step),
            )
        if step or now.uptime - self._kept_at >= _KEEP_EVERY:
            self._keep_time()
        return now.wall

    def time(self) -> float:
        """Return the journal's own time, from any thread: what ages beside it is stamped with this."""
        if self._machine is None or self._timeline is None:
            return time.time()
        return self._timeline.at(self._machine())

    def _keep_time(self) -> None:
        """Leave the next life what it needs, soon; losing it costs an hour's precision."""
        if self._machine is not None and self._timeline is not None:
            now = self._machine()
            self._kept_at = now.uptime
            self.note(KEPT, self._timeline.keep(now).as_text())

    # --- notes about the workspace --------------------------------------------------

    def noted(self, key: str) -> str | None:
        """Return what a life left under this key."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return rows[0][0] if rows else None

    def note(self, key: str, text: str) -> None:
        """Leave something for later lives, soon; who writes it can bear its loss."""
        self._writer.post(lambda tx: verbs.note(tx, key, text))

    # --- the life of a turn -------------------------------------------------------

    async def accept(self, new: NewTurn, *, inbox_limit: int, limit_bytes: int) -> Accepted:
        """Journal a message, or join the turn it has already.

        A turn that is there is returned also while nothing can be written.

        Args:
            inbox_limit: how many accepted turns may wait.
            limit_bytes: size of the journal at which nothing more is taken.

        Raises:
            ContentConflict: same identity, other content.
            InboxFull: naming the limit that was reached.
            BadMessage: the session belongs to another caller.
        """
        known = self.turn_by_key(new.turn_key)
        if known is not None:
            return verbs.joined(known, new)
        stamped = self._stamped(new)
        accepted = await self._with_body(
            new.message,
            lambda tx, message: verbs.accept(
                tx, stamped, message, inbox_limit=inbox_limit, limit_bytes=limit_bytes
            ),
        )
        return replace(accepted, turn=self._by_wall(accepted.turn))

    async def answer_at_once(
        self, new: NewTurn, *, answer: str, notice: str | None, limit_bytes: int
    ) -> Accepted:
        """Journal a message that no runtime sees with its answer, or join the turn it has already.

        It never waits and takes no place in the inbox.

        Args:
            notice: what the session's agent is to be told with its next prompt; it
                replaces what an earlier message left.

        Raises:
            ContentConflict, InboxFull, BadMessage: as :meth:`accept`.
        """
        known = self.turn_by_key(new.turn_key)
        if known is not None:
            return verbs.joined(known, new)
        stamped = self._stamped(new)
        accepted = await self._writer.run(
            lambda tx: verbs.answer_at_once(
                tx, stamped, answer=answer, notice=notice, limit_bytes=limit_bytes
            )
        )
        return replace(accepted, turn=self._by_wall(accepted.turn))

    async def accept_once(
        self, new: NewTurn, *, fact: str, inbox_limit: int, limit_bytes: int
    ) -> Accepted | None:
        """Journal a message of our own; ``None`` where that was done before, in whatever life.

        Args:
            fact: what is remembered of it, for as long as there is the journal.

        Raises:
            InboxFull: as :meth:`accept`.
        """
        stamped = self._stamped(new)
        accepted = await self._with_body(
            new.message,
            lambda tx, message: verbs.accept_once(
                tx, stamped, message, fact=fact, inbox_limit=inbox_limit, limit_bytes=limit_bytes
            ),
        )
        return accepted and replace(accepted, turn=self._by_wall(accepted.turn))

    def _stamped(self, new: NewTurn) -> NewTurn:
        return replace(
            new,
            accepted_at=self.own(new.accepted_at),
            expires_at=None if new.expires_at is None else self.own(new.expires_at),
        )

    async def start(
        self,
        turn_id: str,
        *,
        expect: State,
        attempt: int,
        strikes: int,
        cut: str | None,
        notice: Notice | None = None,
        with_message: bool = False,
        now: float,
    ) -> Turn:
        """Make a turn ``running``: one more attempt, charged by this very write unless it is settled.

        Args:
            expect: the state it is in, with ``attempt`` starts so far.
            strikes: charged starts since the last progress, this one not counted.
            cut: the call open at the last cut.
            notice: what its prompt tells the agent from the platform.
            with_message: that prompt holds the message, not the recovery note alone.

        Raises:
            InvalidTransition: it is not in that state any more, or may not start.
        """
        at = self.own(now)
        started = await self._writer.run(
            lambda tx: verbs.start(
                tx,
                turn_id,
                expect=expect,
                attempt=attempt,
                strikes=strikes,
                cut=cut,
                notice=notice,
                with_message=with_message,
                now=at,
            )
        )
        return self._by_wall(started)

    async def finish(
        self,
        turn_id: str,
        *,
        attempt: int,
        to: State,
        cause: str,
        outcome: Outcome | None = None,
        answer: str | None = None,
        events: Sequence[NewEvent] = (),
        now: float,
    ) -> Turn | None:
        """End the running attempt, its last log entries in the same commit.

        Returns ``None``, with nothing changed, when that attempt is not the one running.
        Permits still open count as ended where the runtime itself ended the turn.

        Raises:
            InvalidTransition: a running turn cannot become that.
        """
        encoded, at = _encoded(events), self.own(now)
        finished = await self._with_answer(
            answer,
            lambda tx, stored: verbs.finish(
                tx,
                turn_id,
                attempt=attempt,
                to=to,
                cause=cause,
                outcome=outcome,
                answer=stored,
                events=encoded,
                now=at,
            ),
        )
        return finished and self._by_wall(finished)

    async def change(
        self,
        turn_id: str,
        *,
        expect: Iterable[State],
        to: State,
        cause: str,
        outcome: Outcome | None = None,
        answer: str | None = None,
        cut: str | None = None,
        now: float,
    ) -> Turn | None:
        """Move a turn that is in one of the states expected; else return ``None``.

        Args:
            cut: remembered when given.

        Raises:
            InvalidTransition: the table does not have that move.
        """
        expected, at = frozenset(expect), self.own(now)
        changed = await self._with_answer(
            answer,
            lambda tx, stored: verbs.change(
                tx,
                turn_id,
                expect=expected,
                to=to,
                cause=cause,
                outcome=outcome,
                answer=stored,
                cut=cut,
                now=at,
            ),
        )
        return changed and self._by_wall(changed)

    async def release(self, turn_id: str, *, now: float) -> Turn | None:
        """Let a suspended turn be continued, its attempts and its age counted anew.

        Returns ``None`` when it is not suspended.
        """
        at = self.own(now)
        released = await self._writer.run(lambda tx: verbs.release(tx, turn_id, now=at))
        return released and self._by_wall(released)

    async def settle(self, turn_ids: Sequence[str]) -> None:
        """Make the next start of these turns free, where they run or are parked."""
        await self._writer.run(lambda tx: verbs.settle(tx, turn_ids))

    async def unsettle(self) -> None:
        """Charge the next start of running turns again: the gate reopened."""
        await self._writer.run(verbs.unsettle)

    async def notified(self, turn_id: str, attempt: int, *, refused: str | None = None, now: float) -> None:
        """Record that the platform took a turn's end to tell it to the user of its canvas.

        Args:
            refused: why it never will, instead.
        """
        at = self.own(now)
        await self._writer.run(lambda tx: verbs.notified(tx, turn_id, attempt, refused=refused, now=at))

    def delivered(self, turn_id: str, *, now: float, forget: bool = False) -> None:
        """Note, soon, that a turn's end, or that it is suspended, reached its asker.

        Nobody waits for it: all that come in together share a commit, and one that is
        lost costs no more than a longer retention.

        Args:
            forget: the same message sent again is to be a new turn.
        """
        at = self.own(now)
        self._writer.post(lambda tx: verbs.delivered(tx, turn_id, now=at, forget=forget))

    # --- calls, events, sessions, children ----------------------------------------

    async def permit(self, turn_id: str, attempt: int, call: ToolCall, *, now: float) -> bool:
        """Record that a call may start; ``False`` when its attempt is not the one running."""
        at = self.own(now)
        return await self._writer.run(
            lambda tx: verbs.permit(tx, turn_id, attempt, call, now=at), urgent=True
        )

    async def ask(self, turn_id: str, attempt: int, call: ToolCall, *, now: float) -> None:
        """Record that a call asked and was not permitted."""
        at = self.own(now)
        await self._writer.run(lambda tx: verbs.ask(tx, turn_id, attempt, call, now=at))

    async def withdraw(self, turn_id: str, attempt: int, call_id: str, *, now: float) -> None:
        """Take back a permit that the runtime was not told of. Harmless to repeat."""
        at = self.own(now)
        await self._writer.run(lambda tx: verbs.withdraw(tx, turn_id, attempt, call_id, now=at), urgent=True)

    async def end_call(self, turn_id: str, attempt: int, call_id: str, *, ok: bool, now: float) -> None:
        """Record that a permitted call ended. Harmless to repeat."""
        at = self.own(now)
        await self._writer.run(
            lambda tx: verbs.end_call(tx, turn_id, attempt, call_id, ok=ok, now=at), urgent=True
        )

    async def append(self, turn_id: str, attempt: int, events: Sequence[NewEvent], *, now: float) -> bool:
        """Add to a turn's log; ``False`` when that attempt is not the one running."""
        encoded, at = _encoded(events), self.own(now)
        return await self._writer.run(lambda tx: verbs.append(tx, turn_id, attempt, encoded, now=at))

    async def bind(self, session_id: str, handle: SessionHandle | None) -> None:
        """Remember the runtime's own name for a session, or that it has none any more."""
        await self._writer.run(lambda tx: verbs.bind(tx, session_id, handle))

    async def child_started(self, pid: int, what: str) -> None:
        """Record a child process; one that is gone already is not."""
        start_ticks = _start_ticks(pid)
        if start_ticks is not None:
            child = Child(pid=pid, start_ticks=start_ticks, boot_id=self.boot_id, what=what)
            await self._writer.run(lambda tx: verbs.child_started(tx, child))

    async def children_gone(self, pids: Sequence[tuple[int, int]]) -> None:
        """Forget children, named by pid and ``start_ticks``."""
        await self._writer.run(lambda tx: verbs.children_gone(tx, pids))

    # --- upkeep -------------------------------------------------------------------

    @property
    def commits(self) -> Durations:
        """What each transaction took, its fsync included."""
        return self._writer.commits

    @property
    def failures(self) -> int:
        """Transactions that came to nothing."""
        return self._writer.failures

    def check(self) -> None:
        """Return while nothing of the file was found damaged.

        Raises:
            JournalDamaged: it was, by any read or write; the next start salvages it.
        """
        self._suspicion.check()

    async def probe(self, *, room: bool = False) -> None:
        """Write the least there is, to find out whether writing works.

        Args:
            room: a large body must find a place as well, so that work does not go on for
                one commit only.
        """
        ballast = bytes(INLINE_LIMIT + 1) if room else b""
        await self._with_body(ballast, lambda tx, body: verbs.probe(tx))

    async def prune(self, *, retention: float, now: float) -> int:
        """Delete ended turns past their time, in slices that nobody has to wait for.

        Args:
            retention: seconds since delivery, or half the seconds since the end of what
                was never delivered.

        Returns:
            How many turns went.
        """
        deleted, more, at = 0, True, self.own(now)
        while more:
            count, more = await self._writer.run(partial(verbs.prune, retention=retention, now=at))
            deleted += count
        return deleted

    async def forget(self, session_id: str, *, through: int) -> int:
        """Delete a session's ended turns, in slices that nobody has to wait for; return how many.

        Their bytes may still stand in the files until :meth:`drive_out`, which the next
        life makes up for when this one does not come to it.

        Args:
            through: the ``seq`` of the last of them; later ones stay.
        """
        deleted, more = 0, True
        while more:
            count, more = await self._writer.run(
                partial(verbs.forget, session_id=session_id, through=through)
            )
            deleted += count
        gone = [c for c in self.children() if _start_ticks(c.pid) != c.start_ticks]
        await self.children_gone([(child.pid, child.start_ticks) for child in gone])
        return deleted

    @property
    def has_traces(self) -> bool:
        """Whether bytes of what was forgotten may still stand in the files."""
        return self.noted(verbs.TRACES) is not None

    async def drive_out(self) -> float:
        """Write the file anew, without what no row holds; return the seconds every write had to wait.

        That is the only way to be rid of all that was deleted: SQLite leaves copies of
        rows it moved in the unused parts of pages, also where it overwrites deleted ones.
        The copy takes as much room again, in the file system's and in that of temporary
        files; where those have none, beside the journal.

        Raises:
            JournalUnavailable: it could not be done; nothing changed.
        """

        def rewrite(connection: sqlite3.Connection) -> float:
            began = time.monotonic()
            connection.execute("PRAGMA temp_store=FILE")  # not in memory: the file may be large
            try:
                connection.execute("VACUUM")
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) not in _NO_ROOM_FOR_COPY:
                    raise
                with _temporary_files_in(connection, self._path.parent):
                    connection.execute("VACUUM")
            finally:
                connection.execute("PRAGMA temp_store=MEMORY")
            return time.monotonic() - began

        traces = self.noted(verbs.TRACES)  # what is deleted from here on has to wait for the next time
        waited = await self._writer.between(rewrite)
        await self._empty_log()
        await self._writer.run(lambda tx: verbs.has_no_traces(tx, traces))
        return waited

    def file_bytes(self) -> int:
        """Return the size of the main file and its log."""
        log = self._path.with_name(f"{self._path.name}-wal")
        return sum(path.stat().st_size for path in (self._path, log) if path.exists())

    async def vacuum(self) -> None:
        """Give unused pages back to the file system, in slices that nobody has to wait for."""
        while await self._writer.run(verbs.give_back):
            pass
        await self._empty_log()

    async def _empty_log(self) -> None:
        """Move all of the log into the main file, and cut it to nothing.

        Raises:
            JournalUnavailable: somebody else read the journal all the while.
        """
        await self._writer.between(self._checkpoints.begin)  # most of it, beside the writer
        with anyio.move_on_after(_LOG_PATIENCE):
            while not await self._writer.between(self._checkpoints.empty):  # noqa: ASYNC110  readers ring no bell
                await anyio.sleep(_LOG_POLL)
            return
        raise JournalUnavailable(
            f"{self._path}-wal could not be emptied for {_LOG_PATIENCE:g} s, because somebody reads the"
            " journal: end that, then say it again"
        )

    # --- bodies -------------------------------------------------------------------

    async def _with_answer(self, answer: str | None, verb: Callable[[Transaction, Answer | None], T]) -> T:
        if answer is None:
            return await self._writer.run(lambda tx: verb(tx, None))
        text = verbs.storable(answer)
        return await self._with_body(text.encode(), lambda tx, body: verb(tx, Answer(text, body)))

    async def _with_body(self, data: bytes, verb: Callable[[Transaction, Body], T]) -> T:
        """Run a verb that stores a body; a large one is on disk before the writer hears of it."""
        if len(data) <= INLINE_LIMIT:
            return await self._writer.run(lambda tx: verb(tx, data))
        staged = self._blobs.stage(data)

        def request(tx: Transaction) -> T:
            try:
                return verb(tx, staged)
            finally:
                staged.discard()

        with ExitStack() as undo:
            undo.callback(staged.discard)
            try:
                await anyio.to_thread.run_sync(staged.write)
            except OSError as error:
                raise JournalUnavailable(f"{staged.path} cannot be written: {error.strerror}") from error
            undo.pop_all()
        try:
            return await self._writer.run(request)
        except JournalError:  # the request may not have been reached
            staged.discard()
            raise


@contextmanager
def _temporary_files_in(connection: sqlite3.Connection, directory: Path) -> Iterator[None]:
    """Have SQLite put its temporary files there; ours are the only ones it writes."""
    quoted = str(directory).replace("'", "''")
    connection.execute(f"PRAGMA temp_store_directory = '{quoted}'")
    try:
        yield
    finally:
        connection.execute("PRAGMA temp_store_directory = ''")


def _encoded(events: Sequence[NewEvent]) -> verbs.EncodedEvents:
    return [(event.kind, json.dumps(event.body)) for event in events]


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, a name in parentheses, may hold spaces and parentheses itself.
    return int(stat.rpartition(b")")[2].split()[19])


class _Files(NamedTuple):
    """An open journal."""

    journal_id: str
    salvaged: dict[str, Any] | None
    kept: Kept | None
    timeline: Timeline | None
    writing: sqlite3.Connection
    passing: sqlite3.Connection
    reading: sqlite3.Connection


def _open_files(
    path: Path, blobs: Blobs, *, boot_id: str, now: float, machine: Machine | None, believed: float
) -> _Files:
    """Make, examine, repair and migrate the file, and make it ours."""
    try:
        salvage.resume(path, now=now)
        log = path.with_name(path.name + "-wal")
        if not path.exists() and not log.exists():
            schema.create(path)
        try:
            if (why := told(path)) is not None:
                raise salvage.Damaged(f"an earlier life found: {why}")
            salvage.examine(path)
            files = _connect(path, blobs, boot_id=boot_id, now=now, salvaged=None)
        except salvage.Damaged as damage:
            salvaged = salvage.salvage(path, why=str(damage), now=now)
            files = _connect(path, blobs, boot_id=boot_id, now=now, salvaged=salvaged)
    except (sqlite3.Error, OSError) as error:
        raise JournalUnavailable(f"{path} cannot be opened now: {error}") from error
    if machine is None:
        return files
    timeline = Timeline(machine(), files.kept, believed=believed)
    if timeline.doubted:
        logger.warning(
            "%.0f s have passed since the last start if the clock is right: %.0f of them are counted",
            timeline.passed,
            timeline.passed - timeline.doubted,
        )
    return files._replace(timeline=timeline)


def _connect(
    path: Path, blobs: Blobs, *, boot_id: str, now: float, salvaged: dict[str, Any] | None
) -> _Files:
    with salvage.noticing_damage(), ExitStack() as undo:
        writing, passing, reading = (
            undo.enter_context(closing(schema.connect(path, read_only=read_only)))
            for read_only in (False, False, True)
        )
        writing.execute("PRAGMA journal_mode=WAL").fetchone()
        schema.migrate(writing, path)
        writing.execute(
            "INSERT OR REPLACE INTO owner (only, boot_id, since) VALUES (1, ?, ?)", (boot_id, now)
        )
        blobs.sweep(writing)
        # Both are in the write-ahead log from here on.
        passing.execute("SELECT 1 FROM meta").fetchone()
        (journal_id,) = reading.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        kept = kept_time(reading)
        undo.pop_all()
    return _Files(journal_id, salvaged, kept, None, writing, passing, reading)
