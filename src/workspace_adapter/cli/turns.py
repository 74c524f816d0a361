"""The commands on turns.

With ``--json``, ``list`` prints a list and ``show`` one object; a turn has the keys of
``as_json``, and ``show`` adds ``handle``, ``message``, ``answer`` (their beginnings),
``calls`` and, where asked for, ``events``. ``answer`` prints ``turn``, ``state``,
``kind``, ``answer``. ``cancel`` and ``release`` print a list of ``turn`` and ``state``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import WorkspaceAdapterError
from ..turns import Call, State, Turn
from .asking import ask, state_dir, whole_id
from .parsing import MOST, add, add_verb, count, moment
from .printing import excerpt, print_json, show, table, time

if TYPE_CHECKING:
    from ..sidecar.journal import Reader


def declare(commands: Any) -> None:
    """Declare them."""
    turns = add(commands, "turns", "List, show, cancel or release turns.", _list)
    verbs = turns.add_subparsers(metavar="verb")
    for listing in (turns, add_verb(verbs, "list", "the newest turns", _list)):
        states = [str(s) for s in State]
        listing.add_argument(
            "--state", action="append", choices=states, help="only in this state; may be repeated"
        )
        listing.add_argument("--session", metavar="SESSION", help="only of this session")
        listing.add_argument("--caller", metavar="CALLER", help="only of this caller")
        when = "an age such as 45s, 90m, 12h, 7d, or a time"
        listing.add_argument("--since", type=moment, metavar="WHEN", help=f"accepted then or later: {when}")
        listing.add_argument("--until", type=moment, metavar="WHEN", help="accepted before then")
        listing.add_argument("--before", metavar="TURN", help="older than this one: the next page")
        listing.add_argument("--limit", type=count, help=f"at most so many ({MOST})")
    turns.set_defaults(limit=MOST)
    an_id = "its id, or the beginning of it"
    shown = add_verb(verbs, "show", "one turn with its calls", _show)
    shown.add_argument("turn", metavar="TURN", help=an_id)
    shown.add_argument("--events", action="store_true", help="and everything its asker was shown")
    shown.set_defaults(events=False)
    answer = add_verb(verbs, "answer", "print a turn's stored answer", _answer)
    answer.add_argument("turn", metavar="TURN", help=an_id)
    for verb, what, command in (
        ("cancel", "withdraw turns for good", _cancel),
        ("release", "let suspended turns run again", _release),
    ):
        add_verb(verbs, verb, what, command).add_argument("turns", metavar="TURN", nargs="+", help=an_id)


def _list(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    states = [State(state) for state in options.state] if options.state else None
    with Reader.open(state_dir(environ)) as journal, journal.snapshot():
        before = journal.turn(whole_id(journal, options.before)) if options.before else None
        turns, more = listed(
            journal,
            options.limit,
            before_seq=before.seq if before else None,
            states=states,
            session_id=options.session,
            caller=options.caller,
            since=options.since,
            until=options.until,
        )
    if more:
        print(f"There are more; the next page: --before {turns[-1]['id']}", file=sys.stderr)
    if options.json:
        print_json(turns)
    else:
        table_of(turns)
    return 0


def listed(
    journal: Reader, limit: int, *, before_seq: int | None = None, **conditions: Any
) -> tuple[list[dict[str, Any]], bool]:
    """Return turns as ``--json`` prints them, and whether there are more.

    They are read one by one, since each comes with its answer, and those may be large.
    """
    found: list[dict[str, Any]] = []
    while turns := journal.turns(limit=1, before_seq=before_seq, **conditions):
        if len(found) == limit:
            return found, True
        found.append(as_json(turns[0]))
        before_seq = turns[0].seq
    return found, False


def table_of(turns: Sequence[Mapping[str, Any]]) -> None:
    """Print turns as a table."""
    rows = [("TURN", "STATE", "ATTEMPTS", "ACCEPTED", "SESSION", "CAUSE")]
    rows += [
        (
            turn["id"],
            turn["state"],
            str(turn["attempts"]),
            turn["accepted_at"],
            turn["context_id"],
            excerpt(turn["reason"] or turn["cause"] or "", 60),
        )
        for turn in turns
    ]
    table(rows)


def _show(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.boot import message_of, text_of
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal, journal.snapshot():
        turn = journal.turn(whole_id(journal, options.turn))
        assert turn is not None
        calls = journal.calls(turn.id)
        session = journal.session(turn.session_id)
        message = journal.message(turn.id)
        events = journal.events(turn.id, limit=1 << 30) if options.events else []
    shown = as_json(turn) | {
        "handle": session.handle if session else None,
        "message": None if message is None else excerpt(text_of(message_of(message))),
        "answer": None if turn.answer is None else excerpt(turn.answer),
    }
    rows: list[tuple[str, object]] = list(shown.items())
    shown["calls"] = [_call(call) for call in calls]
    rows += [
        (f"call {c['attempt']}.{n}", f"{c['state']}: {c['name']} {c['excerpt']}  {c['asked_at']}")
        for n, c in enumerate(shown["calls"], 1)
    ]
    if options.events:
        shown["events"] = [
            {"n": e.n, "attempt": e.attempt, "at": time(e.at), "kind": e.kind, "body": e.body} for e in events
        ]
        rows += [(f"event {e.n}", f"{time(e.at)}  {e.kind} {json.dumps(e.body)}") for e in events]
    show(options, shown, rows)
    return 0


def _call(call: Call) -> dict[str, Any]:
    return {
        "attempt": call.attempt,
        "name": call.name,
        "excerpt": call.excerpt,
        "state": call.fate,
        "asked_at": time(call.asked_at),
        "permitted_at": time(call.permitted_at),
        "ended_at": time(call.ended_at),
    }


def _answer(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal:
        turn = journal.turn(whole_id(journal, options.turn))
    assert turn is not None
    if turn.answer is None:
        why = turn.outcome.reason if turn.outcome and turn.outcome.reason else turn.cause
        raise WorkspaceAdapterError(
            f"turn {turn.id} is {turn.state} and has no answer{f': {why}' if why else ''};"
            f" see: workspace-adapter turns show {turn.id}"
        )
    if options.json:
        kind = str(turn.outcome.kind) if turn.outcome else None
        print_json({"turn": turn.id, "state": str(turn.state), "kind": kind, "answer": turn.answer})
    elif sys.stdout.isatty():
        table([(line,) for line in turn.answer.split("\n")])
    else:
        print(turn.answer)
    return 0


def _cancel(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _change(options, environ, "cancel")


def _release(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _change(options, environ, "release")


def _change(options: argparse.Namespace, environ: Mapping[str, str], verb: str) -> int:
    """Ask the sidecar; with none running, change the journal ourselves."""
    from ..sidecar.control.offline import change
    from ..sidecar.control.socket import NoSidecar
    from ..sidecar.journal import Reader

    changed: list[dict[str, str]] = []
    refused = 0
    with Reader.open(state_dir(environ)) as journal:
        for given in dict.fromkeys(options.turns):
            try:
                turn_id = whole_id(journal, given)
                try:
                    changed.append(ask(environ, verb, turn=turn_id))
                except NoSidecar:
                    changed.append(anyio.run(change, state_dir(environ), verb, turn_id))
            except WorkspaceAdapterError as error:
                print(error, file=sys.stderr)
                refused += 1
    if options.json:
        print_json(changed)
    elif changed:
        table([("TURN", "STATE"), *((c["turn"], c["state"]) for c in changed)])
    return 1 if refused else 0


def as_json(turn: Turn) -> dict[str, Any]:
    """Return a turn as ``--json`` prints it."""
    return {
        "id": turn.id,
        "task_id": turn.task_id,
        "context_id": turn.session_id,
        "message_id": turn.message_id,
        "caller": turn.caller,
        "source": turn.source,
        "state": str(turn.state),
        "cause": turn.cause,
        "outcome": str(turn.outcome.kind) if turn.outcome else None,
        "reason": turn.outcome.reason if turn.outcome else None,
        "retryable": turn.outcome.retryable if turn.outcome else None,
        "attempts": turn.attempt,
        "strikes": turn.strikes,
        "charges": turn.charges,
        "accepted_at": time(turn.accepted_at),
        "started_at": time(turn.started_at),
        "last_event_at": time(turn.last_event_at),
        "ended_at": time(turn.ended_at),
        "delivered_at": time(turn.delivered_at),
        "expires_at": time(turn.expires_at),
        "canvas": turn.canvas,
        "notified_at": time(turn.notified_at),
        "untold": turn.untold,
        "answer_characters": len(turn.answer) if turn.answer is not None else None,
    }
