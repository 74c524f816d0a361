"""The commands on sessions, which A2A calls contexts.

With ``--json``, ``list`` prints a list and ``show`` one object, with the keys ``id``,
``caller``, ``handle``, ``created_at``, ``last_activity_at``, ``turns`` (by state), and
``runtime``: ``closed``, ``open``, or ``running``, ``null`` where no sidecar runs.
``show`` adds ``uploads`` (paths) and ``recent``, its newest turns as ``turns list``
prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import WorkspaceAdapterError
from ..turns import ENDED
from .asking import ask, state_dir
from .parsing import add, count
from .printing import print_json, table, time
from .turns import as_json, table_of

if TYPE_CHECKING:
    from ..sidecar.journal import SessionSummary


def declare(commands: Any) -> None:
    """Declare them."""
    sessions = add(commands, "sessions", "List or show conversations.", _list)
    verbs = sessions.add_subparsers(metavar="verb")
    for listing in (sessions, add(verbs, "list", "the sessions active last", _list)):
        listing.add_argument("--caller", metavar="CALLER", help="only of this caller")
        listing.add_argument("--limit", type=count, default=50, help="at most so many (50)")
    shown = add(verbs, "show", "one session with its turns and files", _show)
    shown.add_argument("session", metavar="SESSION", help="its id, the contextId")
    shown.add_argument("--limit", type=count, default=50, help="at most so many turns (50)")


def _list(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal:
        found = journal.sessions(caller=options.caller, limit=options.limit)
    runtimes = _runtimes(environ)
    if options.json:
        print_json([_as_json(summary, runtimes) for summary in found])
        return 0
    rows = [("SESSION", "TURNS", "UNFINISHED", "LAST ACTIVITY", "RUNTIME", "CALLER", "HANDLE")]
    rows += [
        (
            summary.session.id,
            str(sum(summary.turns.values())),
            str(sum(count for state, count in summary.turns.items() if state not in ENDED)),
            time(summary.active_at),
            _runtime(summary, runtimes) or "",
            summary.session.caller or "",
            summary.session.handle or "",
        )
        for summary in found
    ]
    table(rows)
    return 0


def _show(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal, journal.snapshot():
        found = journal.sessions(session_id=options.session)
        turns = journal.turns(session_id=options.session, limit=options.limit)
    if not found:
        raise no_such_session(options.session)
    shown = _as_json(found[0], _runtimes(environ))
    if options.json:
        print_json(shown | {"recent": [as_json(turn) for turn in turns]})
        return 0
    rows = [(name, str(value)) for name, value in shown.items() if name != "turns" and value is not None]
    rows += [(f"turns {state}", str(count)) for state, count in shown["turns"].items()]
    table(rows)
    print()
    table_of(turns)
    return 0


def no_such_session(session_id: str) -> WorkspaceAdapterError:
    """Say that there is none of that name, and how to find the right one."""
    return WorkspaceAdapterError(f"there is no session {session_id!r}; see: workspace-adapter sessions list")


def _as_json(summary: SessionSummary, runtimes: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        "id": summary.session.id,
        "caller": summary.session.caller,
        "handle": summary.session.handle,
        "created_at": time(summary.session.created_at),
        "last_activity_at": time(summary.active_at),
        "turns": {str(state): count for state, count in summary.turns.items()},
        "runtime": _runtime(summary, runtimes),
    }


def _runtime(summary: SessionSummary, runtimes: Mapping[str, str] | None) -> str | None:
    return None if runtimes is None else runtimes.get(summary.session.id, "closed")


def _runtimes(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return what the runtimes of open sessions do; ``None`` with the sidecar down."""
    from ..sidecar.control.socket import NoSidecar

    try:
        found: dict[str, str] = ask(environ, "sessions")
    except NoSidecar:
        return None
    return found
