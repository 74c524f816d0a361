"""The commands on a workspace as a whole."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from ..settings import effective
from ..turns import State
from .asking import PATIENCE, ask, setting, state_dir
from .parsing import add, duration
from .printing import show

logger = logging.getLogger(__name__)

EXIT_NOT_SETTLED = 3
EXIT_NO_SIDECAR = 4


def declare(commands: Any) -> None:
    """Declare them."""
    add(commands, "serve", "Run the sidecar.", _serve, json=False)
    drain = add(commands, "drain", "Say that a restart is pending; wait until it is safe to stop.", _drain)
    drain.add_argument("--wait", type=duration, metavar="SECONDS", help="at most this long")
    add(commands, "status", "Say how the workspace stands; works with the sidecar down.", _status)
    add(commands, "config", "Print the effective configuration, secrets masked.", _config)


def _serve(options: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    from ..sidecar.adapters import configure
    from ..sidecar.logs import set_up
    from ..sidecar.port import bind

    settings, adapter = configure(environ)
    set_up(settings.log_level, settings.log_format)
    try:
        listener = bind(settings)
    except OSError as error:
        logger.error(
            "WORKSPACE_HOST=%s WORKSPACE_PORT=%d cannot be listened on: %s",
            settings.host,
            settings.port,
            error.strerror,
        )
        return 2
    from ..sidecar.serve import serve

    return serve(settings, adapter, listener, environ)


def _drain(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.children import MARK
    from ..sidecar.control.socket import NoSidecar

    try:
        cap = options.wait if options.wait is not None else setting(environ, "drain_cap")
        mark = environ.get(MARK, "")
        report = ask(environ, "drain", patience=cap + PATIENCE, wait=options.wait, mark=mark)
    except NoSidecar as error:
        print(error, file=sys.stderr)
        return EXIT_NO_SIDECAR
    show(options, report, list(report.items()))
    return 0 if report["drained"] else EXIT_NOT_SETTLED


def _status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.control.socket import NoSidecar
    from ..sidecar.journal import Reader

    try:
        status = ask(environ, "status")
    except NoSidecar:
        with Reader.open(state_dir(environ)) as journal:
            counts = journal.counts()
            status = {
                "state": "down",
                "turns": {str(state): counts.get(state, 0) for state in State},
                "journal_bytes": journal.size_bytes(),
            }
    rows = [(k, v) for k, v in status.items() if k != "turns"]
    rows += [(f"turns {state}", count) for state, count in status["turns"].items() if count]
    show(options, status, rows)
    return 0


def _config(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.adapters import configure

    settings, adapter = configure(environ)
    shown = effective(settings)
    if adapter.settings is not None:
        shown |= effective(adapter.settings)
    show(options, shown, list(shown.items()))
    return 0
