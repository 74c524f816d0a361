"""How a command reaches a workspace: its one setting, its socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from ..errors import SettingsError
from ..settings import Settings, variables

PATIENCE = 10.0
"""Seconds a sidecar gets to answer, beside what it was asked to wait."""


def state_dir(environ: Mapping[str, str]) -> Path:
    """Return the state directory, all that an operator's command needs to know."""
    return Path(setting(environ, "state_dir"))


def setting(environ: Mapping[str, str], name: str) -> Any:
    """Return one setting, whatever the others are."""
    variable = variables(Settings)[name]
    given = environ.get(variable.name) or str(variable.default)
    try:
        return variable.parse(given)
    except ValueError as error:
        raise SettingsError((f"{variable.name}={given!r}: {error}",)) from None


def ask(environ: Mapping[str, str], verb: str, *, patience: float = PATIENCE, **arguments: Any) -> Any:
    from ..sidecar.control import socket

    async def asking() -> Any:
        return await socket.ask(state_dir(environ), verb, patience=patience, **arguments)

    return anyio.run(asking)
