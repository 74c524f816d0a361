"""Finds the adapter that the settings name."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points

from ..adapter import Capabilities, RuntimeAdapter
from ..errors import ContractBroken, SettingsError
from ..settings import Settings, parse, variables
from .fence import fence

GROUP = "workspace_adapter.runtimes"
"""The entry-point group in which runtimes are registered by name."""

_OURS = ("blobs", "uploads")
"""Folders in the state directory that are cleared of what is not ours."""


def load_adapter(name: str) -> type[RuntimeAdapter]:
    """Return an adapter class by its registered name, or as ``module:Class``.

    Raises:
        SettingsError: saying what was looked for and what there is.
        ContractBroken: its module cannot be imported.
    """
    with fence("its import"):
        found = _find(name)
    if isinstance(found, ImportError | AttributeError):
        raise SettingsError((f"WORKSPACE_ADAPTER={name!r}: {found}",))
    if not (isinstance(found, type) and issubclass(found, RuntimeAdapter)):
        raise SettingsError((f"WORKSPACE_ADAPTER={name!r} is not a RuntimeAdapter class",))
    return found


def _find(name: str) -> object:
    """Import what is named; return the error where there is no such thing."""
    module, colon, attribute = name.partition(":")
    try:
        if colon and module:
            return getattr(import_module(module), attribute)
        registered = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name in registered:
            return registered[name].load()
    except (ImportError, AttributeError) as error:
        return error
    known = ", ".join(sorted(registered))
    return ImportError(f"no such runtime; registered are {known}; or give module:Class")


def configure(environ: Mapping[str, str]) -> tuple[Settings, RuntimeAdapter]:
    """Parse everything and build the adapter.

    Raises:
        SettingsError: naming every variable that cannot work, ours and the adapter's.
    """
    problems: list[str] = []
    settings: Settings | None = None
    adapter: RuntimeAdapter | None = None
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        problems.extend(error.problems)
    try:
        adapter = build_adapter(environ)
    except SettingsError as error:
        problems.extend(error.problems)
    if settings is None or adapter is None:
        raise SettingsError(tuple(problems))
    return settings, adapter


def build_adapter(environ: Mapping[str, str]) -> RuntimeAdapter:
    """Build the adapter that the environment names, with its own settings.

    Raises:
        SettingsError: naming every variable that cannot work.
    """
    try:
        adapter_class = load_adapter(_adapter_name(environ))
        wanted = adapter_class.Settings
        given = None if wanted is None else parse(wanted, environ)
        with fence("its constructor"):
            adapter = adapter_class(given)
    except ContractBroken as error:
        why = f"WORKSPACE_ADAPTER={_adapter_name(environ)!r}: {error}{_cause(error)}"
        raise SettingsError((why,)) from error
    if wrong := _wrong(adapter):
        raise SettingsError((f"WORKSPACE_ADAPTER={_adapter_name(environ)!r}: {wrong}",))
    return adapter


def _wrong(adapter: RuntimeAdapter) -> str:
    """Say what an adapter has not declared as the rest needs it, if it is so."""
    name = getattr(adapter, "name", None)
    if name is None:
        return "it has no `name`"
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name)):
        return (
            f"its `name` is {name!r}; it names a folder, so give letters, digits, dashes, such as 'my-agent'"
        )
    if name in _OURS:
        return f"its `name` {name!r} is a folder of ours in WORKSPACE_STATE_DIR; give another"
    capabilities = getattr(adapter, "capabilities", None)
    if not isinstance(capabilities, Capabilities):
        return f"its `capabilities` are {capabilities!r}; give a Capabilities"
    return ""


def _cause(error: ContractBroken) -> str:
    """Say what came out of the adapter's own code, and where it was raised."""
    cause = error.__cause__
    place = traceback.extract_tb(cause.__traceback__)[-1] if cause is not None else None
    return f" ({cause}; {place.filename}:{place.lineno})" if place is not None else ""


def _adapter_name(environ: Mapping[str, str]) -> str:
    variable = variables(Settings)["adapter"]
    given = (environ.get(name) for name in (variable.name, *variable.aliases))
    return next((name for name in given if name), str(variable.default))
