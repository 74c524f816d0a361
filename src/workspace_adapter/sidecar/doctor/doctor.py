"""All looks, some at once, each with a limit."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...settings import NO_FILE, Configuration, Settings, read, variables
from ..platform.configuration import read_configuration
from . import looks
from .aside import Aside, Failed
from .finding import Finding, Status, broken

T = TypeVar("T")

_AT_ONCE = 4
"""Processes: a container may have few."""

_BEFORE = 5.0
"""Seconds for each of the two things that all looks start from."""


class Check(NamedTuple):
    """One thing that is looked at."""

    name: str
    look: Callable[[looks.View], list[Finding]]
    limit: float
    """Seconds it may take."""
    hangs: str
    """What to do where it takes longer."""


_DISK = "what it lies on does not answer: look at the mount, and at the machine's log"
_NAMES = "look at name resolution (/etc/resolv.conf) and the network of the container"
_ADAPTER = "its import or check() hangs: run the runtime's program by hand in the container"
_SIDECAR = "the sidecar takes connections and does not answer: look at its log, restart the container"
_US = "tell the authors of workspace_adapter"
_OTHERWISE = (
    "run this command as the user the sidecar runs as; if it was, mend what it says, or tell the authors"
)

CHECKS = (
    Check("settings", looks.settings, 15.0, _ADAPTER),
    Check("sidecar", looks.sidecar, 5.0, _US),
    Check("state directory", looks.state, 5.0, _DISK),
    Check("journal", looks.journal, 5.0, _DISK),
    Check("disk space", looks.space, 5.0, _DISK),
    Check("scratch directory", looks.scratch, 5.0, _DISK),
    Check("configs directory", looks.configs, 5.0, _DISK),
    Check("platform", looks.platform, 15.0, _NAMES),
    Check("address", looks.url, 15.0, _NAMES),
    Check("port", looks.port, 15.0, _SIDECAR),
    Check("authentication", looks.authentication, 15.0, _SIDECAR),
    Check("runtime", looks.runtime, 25.0, _ADAPTER),
    Check("init", looks.init, 10.0, _US),
    Check("limits", looks.limits, 15.0, _ADAPTER),
)


def examine(environ: Mapping[str, str]) -> list[tuple[str, Finding]]:
    """Look at everything; return what was found, by the check that found it.

    It changes nothing: of a live sidecar it asks what is always answered, and on the disk it
    writes a file without a name.
    """
    config, trouble = _before("the platform's file", partial(read_configuration, environ), NO_FILE)
    settings = _readable(environ, config)
    owner, more = _before("whether a sidecar runs", partial(looks.owner, Path(settings.state_dir)), None)
    view = looks.View(environ=environ, config=config, settings=settings, owner=owner)
    found = _all_found(view)
    return [("workspace", finding) for finding in (*trouble, *more)] + [
        (check.name, finding) for check in CHECKS for finding in found[check]
    ]


def verdict(found: list[tuple[str, Finding]]) -> Status:
    """Return the worst of it: ``BROKEN``, ``WARNING``, or ``OK``."""
    statuses = {finding.status for _, finding in found}
    return next((bad for bad in (Status.BROKEN, Status.WARNING) if bad in statuses), Status.OK)


def _all_found(view: looks.View) -> dict[Check, list[Finding]]:
    found: dict[Check, list[Finding]] = {}
    begun: dict[Check, Aside[list[Finding]]] = {}
    waiting = list(reversed(CHECKS))
    try:
        while waiting or begun:
            while waiting and len(begun) < _AT_ONCE:
                check = waiting.pop()
                begun[check] = Aside(partial(check.look, view))
            soonest = min(aside.left(check.limit) for check, aside in begun.items())
            done = select.select(begun.values(), [], [], soonest)[0]
            for check, aside in list(begun.items()):
                if aside in done or not aside.left(check.limit):
                    found[check] = _found(check, aside)
                    begun.pop(check).end()
    finally:
        for aside in begun.values():
            aside.end()
    return found


def _found(check: Check, aside: Aside[list[Finding]]) -> list[Finding]:
    try:
        return aside.outcome(check.limit)
    except TimeoutError:
        return [broken(f"looking at the {check.name} takes longer than {check.limit:g} s", check.hangs)]
    except Failed as error:
        return [broken(f"the {check.name} could not be looked at: {error}", _OTHERWISE)]


def _before(what: str, look: Callable[[], T], otherwise: T) -> tuple[T, list[Finding]]:
    """Find out what all looks start from; where that cannot be done, go on with something else."""
    aside = Aside(look)
    try:
        return aside.outcome(_BEFORE), []
    except TimeoutError:
        return otherwise, [broken(f"{what} cannot be found out within {_BEFORE:g} s", _DISK)]
    except Failed as error:
        return otherwise, [broken(f"{what} cannot be found out: {error}", _OTHERWISE)]
    finally:
        aside.end()


def _readable(environ: Mapping[str, str], config: Configuration) -> Settings:
    """Return the settings, those that cannot be read as if they were not given."""
    values: dict[str, object] = {"workspace_id": ""}
    for name, variable in variables(Settings).items():
        reading = read(variable, environ, config)
        if reading is not None and not reading.problem:  # which the check of the settings says
            values[name] = reading.value
    return Settings(**values)  # type: ignore[arg-type]
