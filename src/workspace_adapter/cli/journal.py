"""The commands on the journal.

With ``--json``, ``size`` prints what ``sidecar.journal.measure`` says, ``check`` an
object with ``whole`` and ``problems`` (each with ``kind``, ``what``, ``todo``), ``vacuum``
``freed_bytes`` and ``waited_seconds``. ``export`` prints JSON always; its shape stands in
``sidecar.journal.export``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import anyio

from ..errors import JournalDamaged
from . import printing
from .asking import ask, setting, state_dir, whole_id
from .parsing import add, add_verb
from .printing import size

_PATIENCE = 600.0
"""Seconds a sidecar gets to write its journal anew."""


def declare(commands: Any) -> None:
    """Declare them."""
    journal = add(
        commands,
        "journal",
        "Say how large the journal is; check it, export from it, or give room back.",
        _size,
    )
    verbs = journal.add_subparsers(metavar="verb")
    add_verb(verbs, "size", "how large it is, and how much of it is due to go", _size)
    export = add_verb(verbs, "export", "one turn, with everything that is known about it, as JSON", _export)
    export.add_argument("turn", metavar="TURN", help="its id, or the beginning of it")
    add_verb(verbs, "check", "whether it is whole; exit code 1 if not", _check)
    vacuum = add_verb(verbs, "vacuum", "give room that it does not use back to the file system", _vacuum)
    vacuum.add_argument(
        "--full", action="store_true", help="write the whole file anew, while every write has to wait"
    )
    vacuum.set_defaults(full=False)


def _size(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader
    from ..sidecar.journal.measure import measure

    limit, retention = setting(environ, "journal_limit_bytes"), setting(environ, "journal_retention")
    with Reader.open(state_dir(environ)) as journal:
        found = measure(journal, limit_bytes=limit, retention=retention, now=time.time())
    oldest, due = found["oldest"], found["due"]
    rows: list[tuple[str, object]] = [
        ("state directory", found["state_dir"]),
        ("file", f"{size(found['file_bytes'])}, {size(found['free_bytes'])} of it unused"),
        ("write-ahead log", size(found["log_bytes"])),
        ("large bodies", f"{size(found['blobs']['bytes'])} in {found['blobs']['files']} files"),
        ("uploads", f"{size(found['uploads']['bytes'])} in {found['uploads']['files']} files"),
        (
            "of its limit",
            f"{size(found['counted_bytes'])} of {size(limit)} (WORKSPACE_JOURNAL_LIMIT_BYTES)",
        ),
        *((f"rows of {table}", count) for table, count in found["rows"].items()),
        ("oldest turn", f"{oldest['id']}, {printing.time(oldest['accepted_at'])}" if oldest else "none"),
        ("due to go", f"{due['turns']} turns, about {size(due['characters'])} (WORKSPACE_JOURNAL_RETENTION)"),
    ]
    printing.show(options, found, rows)
    return 0


def _export(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader
    from ..sidecar.journal.export import document

    with Reader.open(state_dir(environ)) as journal:
        exported = document(journal, whole_id(journal, options.turn), now=time.time())
    print(json.dumps(exported, indent=None if options.json else 2))
    return 0


def _vacuum(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.control.offline import vacuum_file
    from ..sidecar.control.socket import NoSidecar

    try:
        done = ask(environ, "vacuum", full=options.full, patience=_PATIENCE)
    except NoSidecar:
        done = anyio.run(partial(vacuum_file, state_dir(environ), full=options.full))
    printing.show(options, done, [("freed", size(max(0, done["freed_bytes"])))])
    return 0


def _check(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader
    from ..sidecar.journal.check import RESTART, Problem, problems

    try:
        with Reader.open(state_dir(environ)) as journal:
            found = list(problems(journal))
    except JournalDamaged as error:  # so badly that it cannot be opened
        found = [Problem("file", str(error), RESTART)]
    if options.json:
        printing.print_json({"whole": not found, "problems": [asdict(problem) for problem in found]})
    elif found:
        printing.table([("WHAT", "TO DO"), *((problem.what, problem.todo) for problem in found)])
    else:
        print("The journal is whole.")
    return 1 if found else 0
