"""The commands on sessions, which A2A calls contexts.

With ``--json``, ``list`` prints a list and ``show`` one object, with the keys ``id``,
``caller``, ``handle``, ``created_at``, ``last_activity_at``, ``turns`` (by state), and
``runtime``: ``closed``, ``open``, or ``running``, ``null`` where no sidecar runs.
``show`` adds ``uploads`` (paths) and ``recent``, its newest turns as ``turns list``
prints them. ``forget`` prints a list, of each session erased ``session``, ``turns``,
``uploads`` (counts), ``canceled`` (ids), ``runtime`` (what its runtime erased, ``null``
where it was not asked or cannot) and ``left`` (what may still hold something of it).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import SettingsError, WorkspaceAdapterError
from ..turns import ENDED
from .asking import ask, setting, state_dir
from .parsing import MOST, add, add_verb, count
from .printing import print_json, table, time
from .turns import listed, table_of

if TYPE_CHECKING:
    from ..sidecar.journal import SessionSummary

_PATIENCE = 600.0
"""Seconds a sidecar gets to stop a turn, erase a session and write its journal anew."""


def declare(commands: Any) -> None:
    """Declare them."""
    sessions = add(commands, "sessions", "List, show or forget conversations.", _list)
    verbs = sessions.add_subparsers(metavar="verb")
    for listing in (sessions, add_verb(verbs, "list", "the sessions active last", _list)):
        listing.add_argument("--caller", metavar="CALLER", help="only of this caller")
        listing.add_argument("--limit", type=count, help=f"at most so many ({MOST})")
    sessions.set_defaults(limit=MOST)
    shown = add_verb(verbs, "show", "one session with its turns and files", _show)
    shown.add_argument("session", metavar="SESSION", help="its id, the contextId")
    shown.add_argument("--limit", type=count, help=f"at most so many turns ({MOST})")
    forget = add_verb(verbs, "forget", "erase sessions for good, with all that was said in them", _forget)
    forget.add_argument("sessions", metavar="SESSION", nargs="+", help="its id, the contextId")
    forget.add_argument("--cancel", action="store_true", help="cancel its turns that have not ended")
    forget.add_argument(
        "--journal-only",
        action="store_true",
        help="leave what the runtime itself keeps: it is not asked",
    )
    forget.set_defaults(cancel=False, journal_only=False)


def _list(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal:
        found = journal.sessions(caller=options.caller, limit=options.limit + 1)
    runtimes = _runtimes(environ)
    if len(found) > options.limit:
        print("There are more, not as lately active: give a larger --limit", file=sys.stderr)
        found.pop()
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
    from ..sidecar.door.parts import Uploads
    from ..sidecar.forgetting import unknown
    from ..sidecar.journal import Reader

    with Reader.open(state_dir(environ)) as journal, journal.snapshot():
        found = journal.sessions(session_id=options.session)
        turns, more = listed(journal, options.limit, session_id=options.session)
    if not found:
        raise unknown(options.session)
    if more:
        print(
            f"There are more turns: give a larger --limit, or see: workspace-adapter turns list"
            f" --before {turns[-1]['id']} --session {shlex.quote(options.session)}",
            file=sys.stderr,
        )
    uploads = Uploads(workdir=Path(setting(environ, "workdir")), state_dir=state_dir(environ))
    shown = _as_json(found[0], _runtimes(environ))
    shown["uploads"] = [str(path) for path in uploads.of(options.session)]
    if options.json:
        print_json(shown | {"recent": turns})
        return 0
    rows = [(name, value) for name, value in shown.items() if isinstance(value, str)]
    rows += [("upload", path) for path in shown["uploads"]]
    rows += [(f"turns {state}", str(count)) for state, count in shown["turns"].items()]
    table(rows)
    print()
    table_of(turns)
    return 0


def _forget(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.control.socket import NoSidecar
    from ..sidecar.journal import Reader

    Reader.open(state_dir(environ)).close()
    session_ids = tuple(dict.fromkeys(options.sessions))
    try:
        erased, refused = _forget_live(options, environ, session_ids)
    except NoSidecar:
        erased, refused = _forget_down(options, environ, session_ids)
    if options.json:
        print_json(erased)
    elif erased:
        rows = [("SESSION", "TURNS", "CANCELED", "UPLOADS", "RUNTIME")]
        rows += [
            (
                gone["session"],
                str(gone["turns"]),
                str(len(gone["canceled"])),
                str(gone["uploads"]),
                "" if gone["runtime"] is None else f"{len(gone['runtime'])} erased",
            )
            for gone in erased
        ]
        table(rows)
    for gone in erased:
        for left in gone["left"]:
            print(f"session {gone['session']!r}: there may still be {left}", file=sys.stderr)
    for why in refused:
        print(why, file=sys.stderr)
    return 1 if refused else 0


def _forget_live(
    options: argparse.Namespace, environ: Mapping[str, str], session_ids: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    from ..sidecar.control.socket import NoSidecar
    from ..sidecar.forgetting import STILL_THERE

    erased: list[dict[str, Any]] = []
    refused: list[str] = []
    say = partial(ask, environ, patience=_PATIENCE)
    for session_id in session_ids:
        try:
            gone = say("forget", session=session_id, cancel=options.cancel, runtime=not options.journal_only)
            erased.append(gone)
        except NoSidecar:
            raise
        except WorkspaceAdapterError as error:
            refused.append(str(error))
    try:
        say("drive_out")
    except WorkspaceAdapterError as error:
        refused.append(f"{error}. {STILL_THERE}")
    return erased, refused


def _forget_down(
    options: argparse.Namespace, environ: Mapping[str, str], session_ids: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    from ..sidecar.adapters import build_adapter
    from ..sidecar.control.offline import forget
    from ..sidecar.platform.configuration import read_configuration

    try:
        adapter = None if options.journal_only else build_adapter(environ, read_configuration(environ))
    except SettingsError as error:
        raise WorkspaceAdapterError(
            f"nothing was forgotten, because the runtime cannot be asked without the sidecar's settings:"
            f" {'; '.join(error.problems)}. Give this command the sidecar's environment; or leave what the"
            " runtime keeps: --journal-only"
        ) from error
    return anyio.run(
        partial(
            forget,
            state_dir(environ),
            session_ids,
            adapter=adapter,
            workdir=Path(setting(environ, "workdir")),
            environ=environ,
            cancel=options.cancel,
        )
    )


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
