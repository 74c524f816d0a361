"""The commands on turns."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import anyio

from ..errors import WorkspaceAdapterError
from ..turns import State, Turn
from .asking import ask, state_dir
from .parsing import add, count
from .printing import show, table, time


def declare(commands: Any) -> None:
    """Declare them."""
    turns = add(commands, "turns", "List, show, cancel or release turns.", _list)
    verbs = turns.add_subparsers(metavar="verb")
    for listing in (turns, add(verbs, "list", "the newest turns", _list)):
        listing.add_argument("--state", choices=[str(s) for s in State], help="only in this state")
        listing.add_argument("--limit", type=count, default=50, help="at most so many (50)")
    for verb, what, command in (
        ("show", "one turn with its calls", _show),
        ("cancel", "withdraw a turn for good", _cancel),
        ("release", "let a suspended turn run again", _release),
    ):
        add(verbs, verb, what, command).add_argument("turn", metavar="TURN", help="its id")


def _list(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    states = [State(options.state)] if options.state else None
    with Reader.open(state_dir(environ)) as journal:
        turns = journal.turns(states=states, limit=options.limit)
    if options.json:
        print(json.dumps([_as_json(turn) for turn in turns]))
        return 0
    rows = [("TURN", "STATE", "ATTEMPTS", "ACCEPTED", "CONTEXT", "CAUSE")]
    rows += [
        (t.id, str(t.state), str(t.attempt), time(t.accepted_at), t.session_id, t.cause or "") for t in turns
    ]
    table(rows)
    return 0


def _show(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal:
        turn = journal.turn(options.turn)
        calls = journal.calls(options.turn)
    if turn is None:
        raise WorkspaceAdapterError(f"there is no turn {options.turn!r}; see: workspace-adapter turns list")
    shown = _as_json(turn)
    rows: list[tuple[str, object]] = list(shown.items())
    shown["calls"] = [
        {
            "attempt": call.attempt,
            "name": call.name,
            "excerpt": call.excerpt,
            "state": _call_state(call.started, call.ended_at, call.outcome),
        }
        for call in calls
    ]
    rows += [
        (f"call {c['attempt']}.{n}", f"{c['state']}: {c['name']} {c['excerpt']}")
        for n, c in enumerate(shown["calls"], 1)
    ]
    show(options, shown, rows)
    return 0


def _call_state(started: bool, ended_at: float | None, outcome: str | None) -> str:
    if not started:
        return "never started"
    return "unknown" if ended_at is None else f"finished ({outcome})"


def _cancel(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _change(options, environ, "cancel")


def _release(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _change(options, environ, "release")


def _change(options: argparse.Namespace, environ: Mapping[str, str], verb: str) -> int:
    """Ask the sidecar; with none running, change the journal ourselves."""
    from ..sidecar.control.offline import change
    from ..sidecar.control.socket import NoSidecar

    try:
        changed = ask(environ, verb, turn=options.turn)
    except NoSidecar:
        changed = anyio.run(change, state_dir(environ), verb, options.turn)
    show(options, changed, list(changed.items()))
    return 0


def _as_json(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "task_id": turn.task_id,
        "context_id": turn.session_id,
        "message_id": turn.message_id,
        "state": str(turn.state),
        "cause": turn.cause,
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
        "answer_characters": len(turn.answer) if turn.answer is not None else None,
    }
