"""What can be asked of the journal.

Plain calls that see the latest commit and never wait for the writer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ...errors import JournalError, JournalUnavailable
from ...turns import ENDED, Call, Notice, Outcome, OutcomeKind, State, Turn
from . import schema
from .blobs import DIRECTORY, Blobs
from .damage import Suspicion, Unreadable, shows_damage
from .records import Child, LoggedEvent, Session, SessionSummary
from .timeline import KEPT, Kept, Machine, Timeline, this_machine

Stamped = TypeVar("Stamped", Turn, Call, LoggedEvent, Session)

Row = tuple[Any, ...]

# A column has the name of the field it fills.
_TURN_FIELDS = tuple(field.name for field in fields(Turn))
_CALL_FIELDS = tuple(field.name for field in fields(Call))
_SESSION_FIELDS = tuple(field.name for field in fields(Session))
_CHILD_FIELDS = tuple(field.name for field in fields(Child))

SELECT_TURN = f"SELECT {', '.join(_TURN_FIELDS)}, answer_file FROM turns"
_SELECT_CALL = f"SELECT {', '.join(_CALL_FIELDS)} FROM calls"
_SELECT_SESSION = f"SELECT {', '.join(_SESSION_FIELDS)} FROM sessions"
_SELECT_CHILD = f"SELECT {', '.join(_CHILD_FIELDS)} FROM children"

SELECT_UNFINISHED = f"""{SELECT_TURN}
WHERE ended_at IS NULL AND state IN ('accepted', 'running', 'parked', 'interrupted') ORDER BY seq
"""
SELECT_UNDELIVERED = f"{SELECT_TURN} WHERE ended_at IS NOT NULL AND delivered_at IS NULL"

# A canceled turn is no news: whoever it concerns canceled it.
_UNTOLD = "delivered_at IS NULL AND notified_at IS NULL AND untold IS NULL AND canvas"
_SELECT_UNTOLD = f"""
SELECT seq, id FROM turns
    WHERE ended_at IS NOT NULL AND state IN ('answered', 'failed', 'expired') AND {_UNTOLD}
UNION ALL
SELECT seq, id FROM turns WHERE ended_at IS NULL AND state = 'suspended' AND {_UNTOLD}
ORDER BY seq
"""

_COUNTS = """
SELECT state, count(*) FROM turns WHERE ended_at IS NULL GROUP BY state
UNION ALL
SELECT state, count(*) FROM turns WHERE ended_at IS NOT NULL GROUP BY state
"""

_OLDEST_WAITING = "SELECT min(accepted_at) FROM turns WHERE ended_at IS NULL AND state = 'accepted'"
_MOST_ATTEMPTS = "SELECT coalesce(max(attempt), 0) FROM turns WHERE ended_at IS NULL"


def turn_of(row: Row, read: Callable[[str], bytes | None]) -> Turn:
    """Read a row of ``SELECT_TURN``.

    Args:
        read: returns a large answer by its digest.

    Raises:
        Unreadable: it holds what we never wrote.
    """
    values = dict(zip(_TURN_FIELDS, row, strict=False))
    try:
        values["state"] = State(values["state"])
    except ValueError as error:
        raise Unreadable(str(error)) from error
    values["settled"], values["canvas"] = bool(values["settled"]), bool(values["canvas"])
    values["outcome"] = outcome_of(values["outcome"])
    answer_file = row[-1]
    if answer_file is not None:
        data = read(answer_file)
        values["answer"] = (
            data.decode(errors="replace")
            if data is not None
            else f"[the answer is lost: {DIRECTORY}/{answer_file} of the state directory is gone or damaged]"
        )
    return Turn(**values)


def outcome_json(outcome: Outcome | None) -> str | None:
    """Return an outcome as its column holds it."""
    return None if outcome is None else json.dumps(asdict(outcome))


def outcome_of(text: str | None) -> Outcome | None:
    """Read an outcome's column.

    Raises:
        Unreadable: it holds what we never wrote.
    """
    if text is None:
        return None
    try:
        values = json.loads(text)
        return Outcome(**{**values, "kind": OutcomeKind(values["kind"])})
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"no outcome: {error}") from error


def notice_json(notice: Notice) -> str:
    """Return a notice as its column holds it."""
    return json.dumps(asdict(notice), ensure_ascii=False)


def notice_of(text: str | None) -> Notice | None:
    """Read a notice's column; one that is damaged is none."""
    try:
        notice = None if text is None else Notice(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return notice if notice is None or isinstance(notice.text, str) else None


def _parsed(body: str) -> Any:
    """Read the body of a log entry.

    Raises:
        Unreadable: it holds what we never wrote.
    """
    try:
        return json.loads(body)
    except ValueError as error:
        raise Unreadable(f"no log entry: {error}") from error


def _is_time(column: str) -> bool:
    return column in ("at", "since") or column.endswith("_at")


def kept_time(connection: sqlite3.Connection) -> Kept | None:
    """Return what the last life left of the journal's own time."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (KEPT,)).fetchone()
    return Kept.parse(row[0]) if row is not None else None


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the database that hold something."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


_OTHER_USER = ". Run this command as the user the sidecar runs as"


def _unreadable(suspicion: Suspicion, error: Exception) -> JournalError:
    if shows_damage(error):
        return suspicion.confirm(error)
    todo = ""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
        todo = (
            f"{_OTHER_USER}; of what can only be read, such as a backup mounted read-only, make a copy and"
            " name that in WORKSPACE_STATE_DIR"
        )
    return JournalUnavailable(f"cannot read {suspicion.path}: {error}{todo}")


class Queries:
    """Reads on one connection of their own; every call sees the latest commit.

    Each raises ``JournalUnavailable`` when the file cannot be read now, ``JournalDamaged``
    when what was asked for is damaged.
    """

    def __init__(
        self, path: Path, reading: sqlite3.Connection, blobs: Blobs, timeline: Timeline | None
    ) -> None:
        self._path = path
        self._reading = reading
        self._blobs = blobs
        self._suspicion = Suspicion(path)
        self._timeline = timeline

    def own(self, wall: float) -> float:
        """Return the journal's time at a wall-clock time, to compare columns with; see ``timeline``."""
        return wall - self._offset

    @property
    def _offset(self) -> float:
        return self._timeline.offset if self._timeline is not None else 0.0

    def _by_wall(self, record: Stamped) -> Stamped:
        """Return a record with its times as the wall clock has them."""
        offset = self._offset
        if not offset:
            return record
        values = ((field.name, getattr(record, field.name)) for field in fields(record))
        return replace(record, **{n: at + offset for n, at in values if _is_time(n) and at is not None})

    def turn(self, turn_id: str) -> Turn | None:
        """Return a turn by our id of it."""
        return self._turn(f"{SELECT_TURN} WHERE id = ?", turn_id)

    def turn_by_key(self, turn_key: str) -> Turn | None:
        """Return the turn of a message, by its identity."""
        return self._turn(f"{SELECT_TURN} WHERE turn_key = ?", turn_key)

    def turns_of_task(self, task_id: str) -> list[Turn]:
        """Return the turns of a task, oldest first."""
        return self._turns(f"{SELECT_TURN} WHERE task_id = ? ORDER BY seq", task_id)

    def turns(
        self,
        *,
        states: Iterable[State] | None = None,
        session_id: str | None = None,
        caller: str | None = None,
        limit: int = 100,
        before_seq: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[Turn]:
        """Return turns that meet every condition given, newest first.

        Args:
            before_seq: only older ones than this, to go on from an earlier answer.
            since: accepted then or later, in UTC epoch seconds; ``until``: before then.
        """
        conditions: list[str] = []
        values: list[object] = []
        if states is not None:
            wanted = tuple(states)
            conditions.append(f"state IN ({', '.join('?' * len(wanted))})")
            values += wanted
            if not ENDED.intersection(wanted):
                conditions.append("ended_at IS NULL")
        for condition, value in (
            ("session_id =", session_id),
            ("caller =", caller),
            ("seq <", before_seq),
            ("accepted_at >=", None if since is None else self.own(since)),
            ("accepted_at <", None if until is None else self.own(until)),
        ):
            if value is not None:
                conditions.append(f"{condition} ?")
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return self._turns(f"{SELECT_TURN} {where} ORDER BY seq DESC LIMIT ?", *values, limit)

    def unfinished(self) -> list[Turn]:
        """Return the turns somebody still waits for, oldest first: not ended, not suspended."""
        return self._turns(SELECT_UNFINISHED)

    def untold(self) -> list[str]:
        """Return the ids of the canvas's turns of whose end nobody was told, oldest first."""
        return [turn_id for _, turn_id in self._rows(_SELECT_UNTOLD)]

    def previous_in_session(self, turn: Turn) -> Turn | None:
        """Return the turn before this one in its session, none that the workspace answered itself."""
        return self._turn(
            f"{SELECT_TURN} WHERE session_id = ? AND seq < ? AND (attempt > 0 OR state <> 'answered')"
            " ORDER BY seq DESC LIMIT 1",
            turn.session_id,
            turn.seq,
        )

    def calls(self, turn_id: str) -> list[Call]:
        """Return the tool calls of all attempts of a turn, in the order they first asked."""
        rows = self._rows(f"{_SELECT_CALL} WHERE turn_id = ? ORDER BY n", turn_id)
        return [self._by_wall(Call(**dict(zip(_CALL_FIELDS, row, strict=True)))) for row in rows]

    def message(self, turn_id: str) -> bytes | None:
        """Return the message as it was sent; ``None`` once its turn can run no more."""
        rows = self._rows(
            "SELECT body, file FROM messages JOIN turns USING (seq) WHERE turns.id = ?", turn_id
        )
        if not rows:
            return None
        body, file = rows[0]
        try:
            return self._blobs.read(file) if body is None else body
        except OSError as error:
            raise self._unreadable(error) from error

    def events(
        self, turn_id: str, *, after: int = 0, limit: int = 1000, kind: str | None = None
    ) -> list[LoggedEvent]:
        """Return entries of a turn's log in order, those past position ``after``, of one kind or all."""
        rows = self._rows(
            "SELECT n, attempt, at, kind, body FROM events"
            " WHERE turn_id = ? AND n > ? AND kind = coalesce(?, kind) ORDER BY n LIMIT ?",
            turn_id,
            after,
            kind,
            limit,
        )
        try:
            return [
                self._by_wall(LoggedEvent(n=n, attempt=attempt, at=at, kind=kind, body=_parsed(body)))
                for n, attempt, at, kind, body in rows
            ]
        except Unreadable as error:
            raise self._unreadable(error) from error

    def last_said(self, turn_id: str) -> dict[int, float]:
        """Return when each attempt of a turn last wrote in its log."""
        rows = self._rows("SELECT attempt, max(at) FROM events WHERE turn_id = ? GROUP BY attempt", turn_id)
        return {attempt: at + self._offset for attempt, at in rows}

    def session(self, session_id: str) -> Session | None:
        """Return a conversation."""
        rows = self._rows(f"{_SELECT_SESSION} WHERE id = ?", session_id)
        if not rows:
            return None
        return self._by_wall(Session(**dict(zip(_SESSION_FIELDS, rows[0], strict=True))))

    def notice(self, session_id: str) -> Notice | None:
        """Return what the platform last wanted a session's agent to know."""
        rows = self._rows("SELECT notice FROM sessions WHERE id = ?", session_id)
        return notice_of(rows[0][0]) if rows else None

    def showed(self, turn_id: str, attempt: int) -> bool:
        """Whether the runtime of an attempt said or did something: it had read its prompt."""
        rows = self._rows(
            "SELECT 1 FROM calls WHERE turn_id = ? AND attempt = ?"
            " UNION ALL SELECT 1 FROM events WHERE turn_id = ? AND attempt = ? AND kind <> 'status' LIMIT 1",
            *(turn_id, attempt) * 2,
        )
        return bool(rows)

    def children(self) -> list[Child]:
        """Return every child process on record, of every life."""
        rows = self._rows(_SELECT_CHILD)
        return [Child(**dict(zip(_CHILD_FIELDS, row, strict=True))) for row in rows]

    def counts(self) -> dict[State, int]:
        """Return how many turns there are in each state."""
        counted: dict[str, int] = dict(self._rows(_COUNTS))
        return {state: counted.get(state, 0) for state in State}

    def oldest_waiting(self) -> float | None:
        """Return when the message was accepted that has waited longest, in the journal's own time."""
        return self._rows(_OLDEST_WAITING)[0][0]  # type: ignore[no-any-return]

    def most_attempts(self) -> int:
        """Return how often the turn was started that was started most, of those not ended."""
        return int(self._rows(_MOST_ATTEMPTS)[0][0])

    def size_bytes(self) -> int:
        """Return what the journal holds, large bodies included, in bytes."""
        try:
            return used_bytes(self._reading) + self._blobs.size
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _turn(self, sql: str, *values: object) -> Turn | None:
        turns = self._turns(sql, *values)
        return turns[0] if turns else None

    def _turns(self, sql: str, *values: object) -> list[Turn]:
        try:
            return [self._by_wall(turn_of(row, self._blobs.read)) for row in self._rows(sql, *values)]
        except (Unreadable, OSError) as error:
            raise self._unreadable(error) from error

    def _rows(self, sql: str, *values: object) -> list[Row]:
        try:
            return self._reading.execute(sql, values).fetchall()
        except UnicodeEncodeError:  # half a surrogate pair: never stored, so not there
            return []
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> JournalError:
        return _unreadable(self._suspicion, error)


_SESSIONS = f"""
WITH asked (id, caller) AS (VALUES (?, ?)), chosen AS (
    SELECT sessions.* FROM sessions, asked
    WHERE (asked.id IS NULL OR sessions.id = asked.id)
        AND (asked.caller IS NULL OR sessions.caller = asked.caller)
    ORDER BY last_turn_at DESC, sessions.id LIMIT ?
)
SELECT {", ".join(f"chosen.{name}" for name in _SESSION_FIELDS)}, turns.state, count(turns.seq),
    max(max(turns.accepted_at, coalesce(turns.last_event_at, 0), coalesce(turns.ended_at, 0)))
FROM chosen LEFT JOIN turns ON turns.session_id = chosen.id
GROUP BY chosen.id, turns.state ORDER BY chosen.last_turn_at DESC, chosen.id
"""


class Reader(Queries):
    """The journal for an operator's eyes, whether a sidecar runs or not. Close it.

    It changes nothing of it; damage it meets is noted for the next start.
    """

    state_dir: Path
    ran_back: float
    """Seconds by which the wall clock stands before the last time the journal knows."""

    @classmethod
    def open(cls, state_dir: Path, *, machine: Machine = this_machine) -> Self:
        """Open the journal of a state directory without changing anything.

        Raises:
            JournalError: there is none.
            JournalTooNew: a newer version wrote it.
            JournalUnavailable: it cannot be read now.
            JournalDamaged: it is damaged.
        """
        path = state_dir / schema.FILE
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise JournalError(
                f"there is no journal in {state_dir}: set WORKSPACE_STATE_DIR to the directory the sidecar"
                " runs on"
            ) from None
        except OSError as error:
            todo = _OTHER_USER if isinstance(error, PermissionError) else ""
            raise JournalUnavailable(f"cannot read {path}: {error.strerror}{todo}") from error
        try:
            reading = schema.connect(path, read_only=True)
            try:
                if (version := schema.check(reading, path)) == 0:
                    raise Suspicion(path).confirm(Unreadable("it holds no journal"))
                schema.show_as_newest(reading, version)
                now = machine()
                timeline = Timeline(now, kept_time(reading))
                step = timeline.look(now)
            except (JournalError, sqlite3.Error):
                reading.close()
                raise
        except sqlite3.Error as error:
            raise _unreadable(Suspicion(path), error) from error
        reader = cls(path, reading, Blobs(state_dir), timeline)
        reader.state_dir = state_dir
        reader.ran_back = max(0.0, -step, -timeline.passed)
        return reader

    def doubt(self, why: str) -> None:
        """Have the next start take the journal for damaged."""
        self._suspicion.confirm(Unreadable(why))

    def read_through(self) -> None:
        """Read every row as those who need it will, which finds what SQLite takes for sound.

        Raises:
            JournalDamaged: one cannot be read.
        """
        try:
            for row in self._reading.execute(SELECT_TURN):
                turn_of(row, lambda digest: None)
            for (body,) in self._reading.execute("SELECT body FROM events"):
                _parsed(body)
            for table in schema.TABLES:
                for _ in self._reading.execute(f"SELECT * FROM {table}"):
                    pass
        except (Unreadable, sqlite3.Error) as error:
            raise self._unreadable(error) from error

    def ids_beginning(self, prefix: str) -> list[str]:
        """Return ids of turns that begin so: the one that is it, or else a few of them."""
        if self._rows("SELECT 1 FROM turns WHERE id = ?", prefix):
            return [prefix]
        rows = self._rows(
            "SELECT id FROM turns WHERE id >= ? AND id < ? || char(1114111) LIMIT 4", prefix, prefix
        )
        return [id for (id,) in rows]

    def sessions(
        self, *, session_id: str | None = None, caller: str | None = None, limit: int = 100
    ) -> list[SessionSummary]:
        """Return conversations that meet every condition given, the latest active first."""
        found: dict[str, SessionSummary] = {}
        for *columns, state, count, active_at in self._rows(_SESSIONS, session_id, caller, limit):
            session = self._by_wall(Session(**dict(zip(_SESSION_FIELDS, columns, strict=True))))
            summary = found.setdefault(session.id, SessionSummary(session, {}, session.last_turn_at))
            if state is not None:
                summary.turns[state] = count
                summary.active_at = max(summary.active_at, active_at + self._offset)
        return list(found.values())

    def records(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Return rows as they lie there, by the names of their columns; times by the wall clock."""
        try:
            cursor = self._reading.execute(sql, values)
            names = [name for name, *_ in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        for row in rows if self._offset else ():
            row |= {n: at + self._offset for n, at in row.items() if _is_time(n) and at is not None}
        return rows

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have every read see the same commit, the latest one now."""
        self._rows("BEGIN")
        try:
            yield
        finally:
            self._rows("ROLLBACK")

    def close(self) -> None:
        """Close it."""
        self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
