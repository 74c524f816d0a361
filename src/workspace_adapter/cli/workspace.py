"""The commands on a workspace as a whole."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ..settings import Settings, effective, left_out, sources
from ..turns import State
from .asking import PATIENCE, ask, setting, state_dir
from .parsing import add, duration
from .printing import print_json, show, table

if TYPE_CHECKING:
    from ..adapter import RuntimeAdapter

logger = logging.getLogger(__name__)

EXIT_NOT_SETTLED = 3
EXIT_NO_SIDECAR = 4


def declare(commands: Any) -> None:
    """Declare them."""
    add(commands, "serve", "Run the sidecar.", _serve, json=False)
    drain = add(commands, "drain", "Say that a restart is pending; wait until it is safe to stop.", _drain)
    drain.add_argument("--wait", type=duration, metavar="SECONDS", help="at most this long")
    add(commands, "status", "Say how the workspace stands; works with the sidecar down.", _status)
    add(
        commands, "doctor", "Say what is wrong with this container, and what to do; changes nothing.", _doctor
    )
    add(commands, "config", "Print the effective configuration, secrets masked.", _config)


def _serve(options: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    from ..logs import set_up
    from ..port import bind
    from ..sidecar.adapters import configure
    from ..sidecar.platform.configuration import read_configuration

    config = read_configuration(environ)
    settings, adapter = configure(environ, config)
    set_up(settings.log_level, settings.log_format)
    for why in left_out(_classes(adapter), environ, config):
        logger.warning("left out of the configuration: %s", why)
    try:
        listener = bind(settings.host, settings.port)
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
    rows = [(k, v) for k, v in status.items() if k not in ("turns", "platform")]
    rows += [(f"platform {k}", v) for k, v in (status.get("platform") or {}).items()]
    rows += [(f"turns {state}", count) for state, count in status["turns"].items() if count]
    show(options, status, rows)
    return 0


def _doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.doctor.doctor import examine, verdict
    from ..sidecar.doctor.finding import Status

    found = examine(environ)
    worst = verdict(found)
    if options.json:
        findings = [{"check": check, **finding._asdict()} for check, finding in found]
        print_json({"status": worst, "findings": findings})
    else:
        rows: list[tuple[str, ...]] = []
        for check, finding in found:
            rows.append((finding.status, check, finding.found))
            if finding.todo:
                rows.append(("", "", f"-> {finding.todo}"))
        table(rows)
    return 1 if worst is Status.BROKEN else 0


def _config(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.adapters import configure
    from ..sidecar.platform.configuration import read_configuration

    config = read_configuration(environ)
    settings, adapter = configure(environ, config)
    shown: dict[str, dict[str, str]] = {}
    for given in (settings, adapter.settings):
        if given is not None:
            origin = sources(type(given), environ, config)
            shown |= {
                name: {"value": value, "from": origin[name]} for name, value in effective(given).items()
            }
    for why in left_out(_classes(adapter), environ, config):
        print(f"left out: {why}", file=sys.stderr)
    if options.json:
        print_json(shown)
    else:
        table([(name, told["value"], told["from"]) for name, told in shown.items()])
    return 0


def _classes(adapter: RuntimeAdapter) -> list[type]:
    return [Settings] if adapter.Settings is None else [Settings, adapter.Settings]
