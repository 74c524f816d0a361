"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from . import __version__
from .errors import SettingsError, WorkspaceAdapterError
from .settings import Settings, effective, integer, seconds, variables
from .turns import State, Turn

EXIT_NOT_SETTLED = 3
EXIT_NO_SIDECAR = 4

_PATIENCE = 10.0
"""Seconds a sidecar gets to answer, beside what it was asked to wait."""


def run(arguments: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Run one command; return the process's exit code.

    0 done; 1 it could not be done; 2 the command line or a setting is wrong; and for
    ``drain`` 3 not everything settled, 4 no sidecar runs.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, MutableMapping[str, str]], int] = options.command
    try:
        code = command(options, environ)
        sys.stdout.flush()
        return code
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except WorkspaceAdapterError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not say so again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workspace-adapter", description="Nothing an agent in a container was asked is ever lost."
    )
    parser.add_argument("--version", action="version", version=f"workspace-adapter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, what: str, command: Callable[..., int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(command=command)
        return added

    add("serve", "Run the sidecar.", _serve)
    drain = add("drain", "Say that a restart is pending; wait until it is safe to stop.", _drain)
    drain.add_argument("--wait", type=_seconds, metavar="SECONDS", help="at most this long")
    drain.add_argument("--json", action="store_true", help="for machines")
    status = add("status", "Say how the workspace stands; works with the sidecar down.", _status)
    status.add_argument("--json", action="store_true", help="for machines")
    demo = add("demo", "Kill a workspace in front of you, and see its callers answered.", _demo)
    demo.add_argument("--keep", action="store_true", help="leave it running, and say how to talk to it")
    demo.add_argument("--json", action="store_true", help="for machines")
    config = add("config", "Print the effective configuration, secrets masked.", _config)
    config.add_argument("--json", action="store_true", help="for machines")
    turns = add("turns", "List, show, cancel or release turns.", _turns_list)
    verbs = turns.add_subparsers(metavar="verb")
    listing = verbs.add_parser("list", help="the newest turns")
    listing.set_defaults(command=_turns_list)
    for takes_list in (turns, listing):
        takes_list.add_argument("--state", choices=[str(s) for s in State], help="only in this state")
        takes_list.add_argument("--limit", type=_count, default=50, help="at most so many (50)")
        takes_list.add_argument("--json", action="store_true", help="for machines")
    for verb, what, command in (
        ("show", "one turn with its calls", _turns_show),
        ("cancel", "withdraw a turn for good", _turns_cancel),
        ("release", "let a suspended turn run again", _turns_release),
    ):
        one = verbs.add_parser(verb, help=what, description=what)
        one.add_argument("turn", metavar="TURN", help="its id")
        one.add_argument("--json", action="store_true", help="for machines")
        one.set_defaults(command=command)
    return parser


def _seconds(text: str) -> float:
    """Take seconds from the command line."""
    try:
        return seconds()(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    """Take a count from the command line."""
    try:
        return integer(1)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _serve(options: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    from .sidecar.adapters import configure
    from .sidecar.logs import set_up
    from .sidecar.serve import serve

    settings, adapter = configure(environ)
    set_up(settings.log_level, settings.log_format)
    return serve(settings, adapter, environ)


def _drain(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .sidecar.children import MARK
    from .sidecar.control_socket import NoSidecar

    try:
        cap = options.wait if options.wait is not None else _setting(environ, "drain_cap")
        mark = environ.get(MARK, "")
        report = _ask(environ, "drain", patience=cap + _PATIENCE, wait=options.wait, mark=mark)
    except NoSidecar as error:
        print(error, file=sys.stderr)
        return EXIT_NO_SIDECAR
    _show(options, report, list(report.items()))
    return 0 if report["drained"] else EXIT_NOT_SETTLED


def _status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .sidecar.control_socket import NoSidecar
    from .sidecar.journal import Reader

    try:
        status = _ask(environ, "status")
    except NoSidecar:
        with Reader.open(_state_dir(environ)) as journal:
            counts = journal.counts()
            status = {
                "state": "down",
                "turns": {str(state): counts.get(state, 0) for state in State},
                "journal_bytes": journal.size_bytes(),
            }
    rows = [(k, v) for k, v in status.items() if k != "turns"]
    rows += [(f"turns {state}", count) for state, count in status["turns"].items() if count]
    _show(options, status, rows)
    return 0


def _demo(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .testing.demo import demonstrate

    return anyio.run(partial(demonstrate, environ, keep=options.keep, machine=options.json))


def _config(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .sidecar.adapters import configure

    settings, adapter = configure(environ)
    shown = effective(settings)
    if adapter.settings is not None:
        shown |= effective(adapter.settings)
    _show(options, shown, list(shown.items()))
    return 0


def _turns_list(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .sidecar.journal import Reader

    states = [State(options.state)] if options.state else None
    with Reader.open(_state_dir(environ)) as journal:
        turns = journal.turns(states=states, limit=options.limit)
    if options.json:
        print(json.dumps([_as_json(turn) for turn in turns]))
        return 0
    rows = [("TURN", "STATE", "ATTEMPTS", "ACCEPTED", "CONTEXT", "CAUSE")]
    rows += [
        (t.id, str(t.state), str(t.attempt), _time(t.accepted_at), t.session_id, t.cause or "") for t in turns
    ]
    _table(rows)
    return 0


def _turns_show(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .sidecar.journal import Reader

    with Reader.open(_state_dir(environ)) as journal:
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
    _show(options, shown, rows)
    return 0


def _call_state(started: bool, ended_at: float | None, outcome: str | None) -> str:
    if not started:
        return "never started"
    return "unknown" if ended_at is None else f"finished ({outcome})"


def _turns_cancel(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _change(options, environ, "cancel")


def _turns_release(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _change(options, environ, "release")


def _change(options: argparse.Namespace, environ: Mapping[str, str], verb: str) -> int:
    """Ask the sidecar; with none running, change the journal ourselves."""
    from .sidecar.control_socket import NoSidecar
    from .sidecar.offline import change

    try:
        changed = _ask(environ, verb, turn=options.turn)
    except NoSidecar:
        changed = anyio.run(change, _state_dir(environ), verb, options.turn)
    _show(options, changed, list(changed.items()))
    return 0


def _state_dir(environ: Mapping[str, str]) -> Path:
    """Return the state directory, all that an operator's command needs to know."""
    return Path(_setting(environ, "state_dir"))


def _setting(environ: Mapping[str, str], name: str) -> Any:
    """Return one setting, whatever the others are."""
    variable = variables(Settings)[name]
    given = environ.get(variable.name) or str(variable.default)
    try:
        return variable.parse(given)
    except ValueError as error:
        raise SettingsError((f"{variable.name}={given!r}: {error}",)) from None


def _ask(environ: Mapping[str, str], verb: str, *, patience: float = _PATIENCE, **arguments: Any) -> Any:
    from .sidecar.control_socket import ask

    async def asking() -> Any:
        return await ask(_state_dir(environ), verb, patience=patience, **arguments)

    return anyio.run(asking)


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
        "accepted_at": _time(turn.accepted_at),
        "started_at": _time(turn.started_at),
        "last_event_at": _time(turn.last_event_at),
        "ended_at": _time(turn.ended_at),
        "delivered_at": _time(turn.delivered_at),
        "answer_characters": len(turn.answer) if turn.answer is not None else None,
    }


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _show(options: argparse.Namespace, value: Mapping[str, Any], rows: Sequence[tuple[str, object]]) -> None:
    if options.json:
        print(json.dumps(value))
    else:
        _table([(name, "" if text is None else str(text)) for name, text in rows])


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    rows = [tuple(map(_printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    """Escape what a terminal would obey: ids and causes may hold what callers sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
