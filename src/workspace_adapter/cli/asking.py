"""How a command reaches a workspace: its one setting, its socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import SettingsError, UnknownTask, WorkspaceAdapterError
from ..settings import Settings, variables

if TYPE_CHECKING:
    from ..sidecar.journal import Reader

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


def whole_id(journal: Reader, given: str) -> str:
    """Return the id of the turn whose id begins so.

    Raises:
        UnknownTask: there is none.
        WorkspaceAdapterError: there is more than one.
    """
    found = journal.ids_beginning(given) if given else []
    if not found:
        raise UnknownTask(f"there is no turn {given!r}; see: workspace-adapter turns list")
    if len(found) > 1:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise WorkspaceAdapterError(
            f"more than one turn begins with {given!r} ({shown}): give more of the id"
        )
    return found[0]


def ask(environ: Mapping[str, str], verb: str, *, patience: float = PATIENCE, **arguments: Any) -> Any:
    from ..sidecar.control import socket

    async def asking() -> Any:
        return await socket.ask(state_dir(environ), verb, patience=patience, **arguments)

    return anyio.run(asking)
