"""What each verb reads, refuses and writes within the writer's transaction."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import BadMessage, ContentConflict, InboxFull, InvalidTransition
from ...events import SessionHandle, ToolCall
from ...turns import ENDED, Notice, Outcome, OutcomeKind, State, Turn, check
from .blobs import Body, Staged
from .queries import SELECT_TURN, notice_json, notice_of, outcome_json, turn_of
from .records import Accepted, Child, NewTurn
from .writer import Transaction

EXCERPT = 200
"""Characters of a call's arguments that are kept for people."""

SLICE_TURNS = 50
"""Turns one transaction of retention deletes at most; a large answer frees many pages."""

SLICE_ROWS = 400
"""Calls and log entries one transaction of retention deletes at most."""

SLICE_PAGES = 200
"""Pages one transaction gives back to the file system at most."""

TRACES = "traces"
"""The key in ``meta`` that stands while deleted bytes must still be driven out of the file; each
deletion gives it another value."""

EncodedEvents = Sequence[tuple[str, str]]
"""Kind and JSON body of each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is stored."""

    text: str
    body: Body
    """The same as bytes, or on disk already."""


# --- the life of a turn -----------------------------------------------------------------


def joined(turn: Turn, new: NewTurn) -> Accepted:
    """Answer a message that was here before."""
    if turn.content_hash != new.content_hash:
        raise ContentConflict(
            "a message with this messageId was accepted before with other content;"
            " send new content under a new messageId"
        )
    return Accepted(turn=turn, joined=True)


def accept(tx: Transaction, new: NewTurn, message: Body, *, inbox_limit: int, limit_bytes: int) -> Accepted:
    """Journal a message, or join the turn it has already."""
    row = tx.execute(f"{SELECT_TURN} WHERE turn_key = ?", (new.turn_key,)).fetchone()
    if row is not None:
        return joined(turn_of(row, tx.blobs.read), new)
    _check_inbox(tx, inbox_limit)
    turn = _new_turn(tx, new, limit_bytes)
    tx.execute("INSERT INTO messages VALUES (?, ?, ?)", (turn.seq, *_stored(tx, message)))
    return Accepted(turn=turn, joined=False)


def answer_at_once(
    tx: Transaction, new: NewTurn, *, answer: str, notice: str | None, limit_bytes: int
) -> Accepted:
    """Journal a message with its answer, and what its session's agent is to know of it."""
    row = tx.execute(f"{SELECT_TURN} WHERE turn_key = ?", (new.turn_key,)).fetchone()
    if row is not None:
        return joined(turn_of(row, tx.blobs.read), new)
    turn = replace(
        _new_turn(tx, new, limit_bytes),
        state=State.ANSWERED,
        cause="answered by the workspace itself",
        outcome=Outcome(kind=OutcomeKind.ANSWERED),
        answer=answer,
        ended_at=new.accepted_at,
    )
    # Not a move of the table: it was never accepted to be worked on.
    tx.execute(
        "UPDATE turns SET state = ?, cause = ?, outcome = ?, answer = ?, ended_at = ? WHERE seq = ?",
        (turn.state.value, turn.cause, outcome_json(turn.outcome), answer, turn.ended_at, turn.seq),
    )
    if notice is not None:
        _notify_agent(tx, new.session_id, Notice(text=storable(notice), of=new.turn_id))
    return Accepted(turn=turn, joined=False)


def accept_once(
    tx: Transaction, new: NewTurn, message: Body, *, fact: str, inbox_limit: int, limit_bytes: int
) -> Accepted | None:
    """Journal a message, unless this was done before: the fact outlives the turn."""
    if tx.execute("SELECT 1 FROM meta WHERE key = ?", (fact,)).fetchone() is not None:
        return None
    accepted = accept(tx, new, message, inbox_limit=inbox_limit, limit_bytes=limit_bytes)
    note(tx, fact, new.turn_id)
    return accepted


def _notify_agent(tx: Transaction, session_id: str, notice: Notice) -> None:
    tx.execute("UPDATE sessions SET notice = ? WHERE id = ?", (notice_json(notice), session_id))


def _new_turn(tx: Transaction, new: NewTurn, limit_bytes: int) -> Turn:
    """Write the row of a turn that is new, and its session's."""
    _check_size(tx, limit_bytes)
    _join_session(tx, new)
    seq = tx.execute(
        "INSERT INTO turns (id, task_id, turn_key, content_hash, message_id, session_id, caller, source,"
        " state, accepted_at, expires_at, canvas) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'accepted', ?, ?, ?)",
        (
            new.turn_id,
            new.task_id,
            new.turn_key,
            new.content_hash,
            new.message_id,
            new.session_id,
            new.caller,
            new.source,
            new.accepted_at,
            new.expires_at,
            new.canvas,
        ),
    ).lastrowid
    assert seq is not None
    tx.changed.append(new.turn_id)
    return Turn(
        id=new.turn_id,
        seq=seq,
        task_id=new.task_id,
        turn_key=new.turn_key,
        content_hash=new.content_hash,
        message_id=new.message_id,
        session_id=new.session_id,
        caller=new.caller,
        source=new.source,
        state=State.ACCEPTED,
        attempt=0,
        strikes=0,
        charges=0,
        settled=False,
        cut=None,
        cause=None,
        outcome=None,
        answer=None,
        accepted_at=new.accepted_at,
        started_at=None,
        last_event_at=None,
        ended_at=None,
        delivered_at=None,
        expires_at=new.expires_at,
        notified_at=None,
        canvas=new.canvas,
    )


def _check_inbox(tx: Transaction, inbox_limit: int) -> None:
    (waiting,) = tx.execute(
        "SELECT count(*) FROM (SELECT 1 FROM turns WHERE ended_at IS NULL AND state = 'accepted' LIMIT ?)",
        (inbox_limit,),
    ).fetchone()
    if waiting >= inbox_limit:
        raise InboxFull(
            f"the inbox is full: {waiting} messages wait, WORKSPACE_INBOX_LIMIT allows {inbox_limit}"
        )


def _check_size(tx: Transaction, limit_bytes: int) -> None:
    if tx.size >= limit_bytes:
        raise InboxFull(
            f"the journal is full: it holds {tx.size} bytes,"
            f" WORKSPACE_JOURNAL_LIMIT_BYTES allows {limit_bytes}"
        )


def _join_session(tx: Transaction, new: NewTurn) -> None:
    owner = tx.execute("SELECT caller FROM sessions WHERE id = ?", (new.session_id,)).fetchone()
    if owner is None:
        tx.execute(
            "INSERT INTO sessions (id, caller, created_at, last_turn_at) VALUES (?, ?, ?, ?)",
            (new.session_id, new.caller, new.accepted_at, new.accepted_at),
        )
    elif owner[0] != new.caller:
        raise BadMessage("this contextId belongs to another caller")
    else:
        tx.execute("UPDATE sessions SET last_turn_at = ? WHERE id = ?", (new.accepted_at, new.session_id))


def start(
    tx: Transaction,
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
    """Make a turn ``running``, which is what charges the attempt; its prompt gives the notice."""
    turn = _get(tx, turn_id)
    if turn is None:
        raise InvalidTransition(f"there is no turn {turn_id} to start")
    if (turn.state, turn.attempt) != (expect, attempt):
        raise InvalidTransition(
            f"turn {turn_id} is {turn.state} after {turn.attempt} attempts,"
            f" no longer {expect} after {attempt}"
        )
    charge = 0 if turn.settled else 1
    started = _move(
        tx,
        turn,
        State.RUNNING,
        attempt=attempt + 1,
        strikes=strikes + charge,
        charges=turn.charges + charge,
        settled=False,
        cut=cut,
        cause=None,
        outcome=None,
        answer=None,
        started_at=now,
        last_event_at=now,
        ended_at=None,
        delivered_at=None,
        notified_at=None,
        untold=None,
    )
    tx.execute("UPDATE turns SET boot_id = ? WHERE seq = ?", (tx.boot_id, turn.seq))
    if notice is not None:
        (stored,) = tx.execute("SELECT notice FROM sessions WHERE id = ?", (turn.session_id,)).fetchone()
        if notice_of(stored) == notice:  # one that came since waits for the next prompt
            given = replace(notice, given_to=turn_id, attempt=started.attempt, with_message=with_message)
            _notify_agent(tx, turn.session_id, given)
    return started


def finish(
    tx: Transaction,
    turn_id: str,
    *,
    attempt: int,
    to: State,
    cause: str,
    outcome: Outcome | None,
    answer: Answer | None,
    events: EncodedEvents,
    now: float,
) -> Turn | None:
    """End an attempt, unless it is not the one that runs."""
    turn = _get(tx, turn_id)
    if turn is None or (turn.state, turn.attempt) != (State.RUNNING, attempt):
        return None
    if to in (State.ANSWERED, State.FAILED, State.PARKED):
        # A runtime that ends its turn in good order has no tool running any more.
        tx.execute(
            "UPDATE calls SET ended_at = ?, outcome = 'ok' WHERE turn_id = ? AND attempt = ?"
            " AND permitted_at IS NOT NULL AND ended_at IS NULL AND withdrawn_at IS NULL",
            (now, turn_id, attempt),
        )
    _log(tx, turn_id, attempt, events, now)
    return _end(tx, turn, to, cause=cause, outcome=outcome, answer=answer, now=now)


def change(
    tx: Transaction,
    turn_id: str,
    *,
    expect: Iterable[State],
    to: State,
    cause: str,
    outcome: Outcome | None,
    answer: Answer | None,
    cut: str | None,
    now: float,
) -> Turn | None:
    """Move a turn that is in one of the states expected."""
    turn = _get(tx, turn_id)
    if turn is None or turn.state not in expect:
        return None
    if cut is not None:
        turn = replace(turn, cut=cut)
    return _end(tx, turn, to, cause=cause, outcome=outcome, answer=answer, now=now)


def release(tx: Transaction, turn_id: str, *, now: float) -> Turn | None:
    """Let the plan continue a suspended turn: counted anew, its age forgotten, the next start free."""
    turn = _get(tx, turn_id)
    if turn is None or turn.state is not State.SUSPENDED:
        return None
    return _move(
        tx,
        turn,
        State.INTERRUPTED,
        strikes=0,
        charges=0,
        settled=True,
        cause="released by a person",
        outcome=None,
        last_event_at=now,
        delivered_at=None,
        notified_at=None,
        untold=None,
    )


def settle(tx: Transaction, turn_ids: Iterable[str]) -> None:
    """Make the next start of these turns free, where they run or are parked."""
    for turn_id in turn_ids:
        tx.execute("UPDATE turns SET settled = 1 WHERE id = ? AND state IN ('running', 'parked')", (turn_id,))


def unsettle(tx: Transaction) -> None:
    """Running turns go on working: their next start is charged again."""
    tx.execute("UPDATE turns SET settled = 0 WHERE ended_at IS NULL AND state = 'running'")


def delivered(tx: Transaction, turn_id: str, *, now: float, forget: bool) -> None:
    """Note that the end reached its asker; forget the message's identity if so told."""
    tx.execute(
        "UPDATE turns SET delivered_at = ? WHERE id = ? AND (ended_at IS NOT NULL OR state = 'suspended')"
        " AND delivered_at IS NULL",
        (now, turn_id),
    )
    if forget:
        tx.execute(
            "UPDATE turns SET turn_key = 'forgotten ' || id WHERE id = ? AND ended_at IS NOT NULL", (turn_id,)
        )


def notified(tx: Transaction, turn_id: str, attempt: int, *, refused: str | None, now: float) -> None:
    """Note that the platform took a turn's end to tell it to the user, or that it never will."""
    tx.execute(
        "UPDATE turns SET notified_at = ?, untold = ? WHERE id = ? AND attempt = ?"
        " AND (ended_at IS NOT NULL OR state = 'suspended')",
        (now if refused is None else None, refused, turn_id, attempt),
    )


def _end(
    tx: Transaction,
    turn: Turn,
    to: State,
    *,
    cause: str,
    outcome: Outcome | None,
    answer: Answer | None,
    now: float,
) -> Turn:
    file = None
    if answer is not None:
        _, file = _stored(tx, answer.body)
    moved = _move(
        tx,
        turn,
        to,
        answer_file=file,
        cause=storable(cause),
        outcome=outcome,
        answer=answer.text if answer is not None else None,
        ended_at=now if to in ENDED else None,
        # What ends by dying gives no sign of life.
        last_event_at=turn.last_event_at
        if turn.state is not State.RUNNING or to is State.INTERRUPTED
        else now,
    )
    if to in (State.ANSWERED, State.CANCELED) or (
        to is State.FAILED and not (outcome is not None and outcome.retryable)
    ):
        _drop_messages(tx, [turn.seq])
    return moved


def _get(tx: Transaction, turn_id: str) -> Turn | None:
    row = tx.execute(f"{SELECT_TURN} WHERE id = ?", (turn_id,)).fetchone()
    if row is None:
        return None
    *_, answer_file = row
    if answer_file is not None:
        tx.loosened.add(answer_file)  # what is moved from here on has another answer, or none
    return turn_of(row, tx.blobs.read)


def _move(tx: Transaction, turn: Turn, to: State, *, answer_file: str | None = None, **changes: Any) -> Turn:
    check(turn.id, turn.state, to, retryable=turn.outcome is not None and turn.outcome.retryable)
    moved = replace(turn, state=to, **changes)
    tx.execute(
        "UPDATE turns SET state = ?, attempt = ?, strikes = ?, charges = ?, settled = ?, cut = ?, cause = ?,"
        " outcome = ?, answer = ?, answer_file = ?, started_at = ?, last_event_at = ?, ended_at = ?,"
        " delivered_at = ?, notified_at = ?, untold = ? WHERE seq = ?",
        (
            moved.state.value,
            moved.attempt,
            moved.strikes,
            moved.charges,
            moved.settled,
            moved.cut,
            moved.cause,
            outcome_json(moved.outcome),
            moved.answer if answer_file is None else None,
            answer_file,
            moved.started_at,
            moved.last_event_at,
            moved.ended_at,
            moved.delivered_at,
            moved.notified_at,
            moved.untold,
            moved.seq,
        ),
    )
    if to is not State.RUNNING:  # its log will say so
        tx.changed.append(turn.id)
    return moved


def _stored(tx: Transaction, body: Body) -> tuple[bytes | None, str | None]:
    """Return a body's two columns: itself, or the name of its file."""
    if not isinstance(body, Staged):
        return body, None
    tx.blobs.keep(body)
    tx.loosened.add(body.digest)
    return None, body.digest


def _drop_messages(tx: Transaction, seqs: Sequence[int]) -> None:
    for seq in seqs:
        row = tx.execute("SELECT file FROM messages WHERE seq = ?", (seq,)).fetchone()
        if row is not None:
            tx.loosened.update(file for file in row if file is not None)
            tx.execute("DELETE FROM messages WHERE seq = ?", (seq,))


# --- calls, events, sessions, children --------------------------------------------------


def permit(tx: Transaction, turn_id: str, attempt: int, call: ToolCall, *, now: float) -> bool:
    """Record that a call may start; say no where its attempt is not the one that runs."""
    if not _sign_of_life(tx, turn_id, attempt, now):
        return False
    tx.execute(
        "INSERT INTO calls (turn_id, attempt, id, name, digest, excerpt, asked_at, permitted_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (turn_id, attempt, id) DO UPDATE SET"
        " name = excluded.name, digest = excluded.digest, excerpt = excluded.excerpt,"
        " permitted_at = excluded.permitted_at, ended_at = NULL, withdrawn_at = NULL, outcome = NULL",
        (turn_id, attempt, *_call_columns(call), now, now),
    )
    return True


def ask(tx: Transaction, turn_id: str, attempt: int, call: ToolCall, *, now: float) -> None:
    """Record that a call asked and got no permit yet."""
    if _runs(tx, turn_id, attempt):
        tx.execute(
            "INSERT INTO calls (turn_id, attempt, id, name, digest, excerpt, asked_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (turn_id, attempt, *_call_columns(call), now),
        )


def withdraw(tx: Transaction, turn_id: str, attempt: int, call_id: str, *, now: float) -> None:
    """Take back a permit that nobody was told of."""
    if _runs(tx, turn_id, attempt):
        tx.execute(
            "UPDATE calls SET withdrawn_at = ? WHERE turn_id = ? AND attempt = ? AND id = ?"
            " AND permitted_at IS NOT NULL AND ended_at IS NULL AND withdrawn_at IS NULL",
            (now, turn_id, attempt, call_id),
        )


def end_call(tx: Transaction, turn_id: str, attempt: int, call_id: str, *, ok: bool, now: float) -> None:
    """Record that a permitted call ended."""
    if _sign_of_life(tx, turn_id, attempt, now):
        tx.execute(
            "UPDATE calls SET ended_at = ?, outcome = ? WHERE turn_id = ? AND attempt = ? AND id = ?"
            " AND permitted_at IS NOT NULL AND ended_at IS NULL AND withdrawn_at IS NULL",
            (now, "ok" if ok else "error", turn_id, attempt, call_id),
        )


def append(tx: Transaction, turn_id: str, attempt: int, events: EncodedEvents, *, now: float) -> bool:
    """Add to a turn's log; say no where its attempt is not the one that runs."""
    if not _sign_of_life(tx, turn_id, attempt, now):
        return False
    _log(tx, turn_id, attempt, events, now)
    return True


def bind(tx: Transaction, session_id: str, handle: SessionHandle | None) -> None:
    """Remember the runtime's own name for a session."""
    tx.execute("UPDATE sessions SET handle = ? WHERE id = ?", (handle, session_id))


def child_started(tx: Transaction, child: Child) -> None:
    """Record a child process."""
    tx.execute(
        "INSERT OR REPLACE INTO children VALUES (?, ?, ?, ?)",
        (child.pid, child.start_ticks, child.boot_id, storable(child.what)),
    )


def children_gone(tx: Transaction, pids: Iterable[tuple[int, int]]) -> None:
    """Forget child processes, named by pid and start."""
    tx.connection.executemany("DELETE FROM children WHERE pid = ? AND start_ticks = ?", pids)


def probe(tx: Transaction) -> None:
    """Write the least there is."""
    tx.execute("UPDATE owner SET probes = probes + 1")


def note(tx: Transaction, key: str, value: str) -> None:
    """Remember a fact about the journal itself."""
    tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def has_no_traces(tx: Transaction, traces: str | None) -> None:
    """What was deleted when ``TRACES`` had this value stands in no file of the journal any more."""
    tx.execute("DELETE FROM meta WHERE key = ? AND value = ?", (TRACES, traces))


def _runs(tx: Transaction, turn_id: str, attempt: int) -> bool:
    return (
        tx.execute(
            "SELECT 1 FROM turns WHERE id = ? AND state = 'running' AND attempt = ?", (turn_id, attempt)
        ).fetchone()
        is not None
    )


def _sign_of_life(tx: Transaction, turn_id: str, attempt: int, now: float) -> bool:
    return (
        tx.execute(
            "UPDATE turns SET last_event_at = ? WHERE id = ? AND state = 'running' AND attempt = ?",
            (now, turn_id, attempt),
        ).rowcount
        == 1
    )


def _log(tx: Transaction, turn_id: str, attempt: int, events: EncodedEvents, now: float) -> None:
    if not events:
        return
    (last,) = tx.execute("SELECT coalesce(max(n), 0) FROM events WHERE turn_id = ?", (turn_id,)).fetchone()
    tx.connection.executemany(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
        [(turn_id, n, attempt, now, kind, body) for n, (kind, body) in enumerate(events, last + 1)],
    )
    tx.changed.append(turn_id)


def _call_columns(call: ToolCall) -> tuple[str, str, str, str]:
    arguments = call.arguments.encode("utf-8", "surrogatepass")
    excerpt = call.arguments[:EXCERPT].replace("\r", "\\r").replace("\n", "\\n")
    return call.id, storable(call.name), hashlib.sha256(arguments).hexdigest(), storable(excerpt)


def storable(text: str) -> str:
    """Replace what UTF-8 cannot carry: halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


# --- retention --------------------------------------------------------------------------

_DUE = """
SELECT seq, id, session_id, answer_file FROM turns
    WHERE ended_at IS NOT NULL AND delivered_at < :delivered
UNION ALL
SELECT seq, id, session_id, answer_file FROM turns
    WHERE ended_at IS NOT NULL AND delivered_at IS NULL AND ended_at < :ended
LIMIT :slice
"""


def prune(tx: Transaction, *, retention: float, now: float) -> tuple[int, bool]:
    """Delete one slice of what is past its time; say how many turns, and whether there is more."""
    due = tx.execute(
        _DUE, {"delivered": now - retention, "ended": now - 2 * retention, "slice": SLICE_TURNS}
    ).fetchall()
    deleted = _delete(tx, due)
    free = give_back(tx)
    return deleted, bool(due) or free > SLICE_PAGES


def forget(tx: Transaction, session_id: str, *, through: int) -> tuple[int, bool]:
    """Delete one slice of a session's ended turns; say how many, and whether there is more.

    Args:
        through: the ``seq`` of the last of them; later ones stay, and begin a new conversation.
    """
    note(tx, TRACES, secrets.token_hex(8))
    due = tx.execute(
        "SELECT seq, id, session_id, answer_file FROM turns"
        " WHERE session_id = ? AND seq <= ? AND ended_at IS NOT NULL ORDER BY seq LIMIT ?",
        (session_id, through, SLICE_TURNS),
    ).fetchall()
    if due:
        return _delete(tx, due), True
    tx.execute(
        "DELETE FROM sessions WHERE id = :id AND NOT EXISTS (SELECT 1 FROM turns WHERE session_id = :id)",
        {"id": session_id},
    )
    tx.execute("UPDATE sessions SET handle = NULL, notice = NULL WHERE id = ?", (session_id,))
    return 0, False


def give_back(tx: Transaction) -> int:
    """Give one slice of unused pages back to the file system; return how many can still be given."""
    (free,) = tx.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free, SLICE_PAGES)):
        # One by one: sqlite3 goes no further than one step in a statement without columns.
        tx.execute("PRAGMA incremental_vacuum(1)")
    (left,) = tx.execute("PRAGMA freelist_count").fetchone()
    return int(left) if left < free else 0  # none, in a file that somebody made without that


def _delete(tx: Transaction, due: Sequence[tuple[int, str, str, str | None]]) -> int:
    """Delete turns with all that is theirs, as many as one transaction may; return how many."""
    deleted, rows = 0, SLICE_ROWS
    for seq, turn_id, session_id, answer_file in due:
        rows -= tx.execute(
            "DELETE FROM calls WHERE n IN (SELECT n FROM calls WHERE turn_id = ? LIMIT ?)", (turn_id, rows)
        ).rowcount
        rows -= tx.execute(
            "DELETE FROM events WHERE turn_id = :turn_id"
            " AND n < (SELECT min(n) FROM events WHERE turn_id = :turn_id) + :rows",
            {"turn_id": turn_id, "rows": rows},
        ).rowcount
        if rows <= 0:
            break  # the turn itself goes with the last of its rows
        _drop_messages(tx, [seq])
        tx.execute("DELETE FROM turns WHERE seq = ?", (seq,))
        tx.changed.append(turn_id)
        tx.execute(
            "DELETE FROM sessions WHERE id = :id AND NOT EXISTS (SELECT 1 FROM turns WHERE session_id = :id)",
            {"id": session_id},
        )
        if answer_file is not None:
            tx.loosened.add(answer_file)
        deleted += 1
    return deleted
