"""Finds the adapter that the settings name."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType

from ..adapter import Capabilities, RuntimeAdapter
from ..errors import ContractBroken, SettingsError
from ..settings import NO_FILE, Configuration, Reading, Settings, parse, read, variables
from .fence import fence

GROUP = "workspace_adapter.runtimes"
"""The entry-point group in which runtimes are registered by name."""

_OURS = ("blobs", "uploads")
"""Folders in the state directory that are cleared of what is not ours."""


_PLATFORM_NAMES = {"claude-code": "claude"}
"""What the existing platform calls a runtime that is registered here by another name."""


class UnknownAdapter(Exception):
    """What is named is no adapter; a sentence without the name."""


def load_adapter(name: str, *, registered_only: bool = False) -> type[RuntimeAdapter]:
    """Return an adapter class by its registered name, as ``module:Class``, or as the module that has it.

    Args:
        registered_only: import no module for it, because others write the file that names it.

    Raises:
        UnknownAdapter: saying what was looked for and what there is.
        ContractBroken: its module cannot be imported.
    """
    with fence("its import"):
        found = _find(name, registered_only=registered_only)
    if isinstance(found, ImportError | AttributeError):
        raise UnknownAdapter(f"{found}{_wants_the_platform(found)}") from found
    if isinstance(found, ModuleType):
        found = _only_class(found)
    if not (isinstance(found, type) and issubclass(found, RuntimeAdapter)):
        raise UnknownAdapter(f"it is not a RuntimeAdapter class{_of_the_platform(found)}")
    return found


def _find(name: str, *, registered_only: bool) -> object:
    """Import what is named; return the error where there is no such thing."""
    module, colon, attribute = name.partition(":")
    try:
        if colon and module and not registered_only:
            return getattr(import_module(module), attribute)
        registered = {entry.name: entry for entry in entry_points(group=GROUP)}
        entry = registered.get(_PLATFORM_NAMES.get(name, name))
        if entry is not None:
            return entry.load()
        if not registered_only and _is_there(name):
            return import_module(name)
    except (ImportError, AttributeError) as error:
        return error
    known = ", ".join(sorted(registered))
    return ImportError(
        f"no such runtime; registered are {known}; for another one"
        f" {'set WORKSPACE_ADAPTER=' if registered_only else 'give '}module:Class"
    )


def _is_there(module: str) -> bool:
    """Whether there is such a module: a misspelt runtime is another error than a broken import."""
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package it would be in
        return False


def _only_class(module: ModuleType) -> type[RuntimeAdapter]:
    """Return the adapter of a module that the existing platform would be given: bare, without a class."""
    named = getattr(module, "Adapter", None)
    if isinstance(named, type) and issubclass(named, RuntimeAdapter):
        return named
    classes = (value for value in vars(module).values() if isinstance(value, type))
    own = {c for c in classes if issubclass(c, RuntimeAdapter) and c.__module__ == module.__name__}
    if len(own) == 1:
        return own.pop()
    if own:
        names = ", ".join(sorted(found.__name__ for found in own))
        raise UnknownAdapter(f"it has more than one RuntimeAdapter class ({names}); give module:Class")
    theirs = [value for value in vars(module).values() if _of_the_platform(value)]
    raise UnknownAdapter(
        f"it has no RuntimeAdapter class{_of_the_platform(named or next(iter(theirs), None))}"
    )


def _of_the_platform(found: object) -> str:
    """Say what to do about an adapter that was written for the platform's own runtime."""
    if isinstance(found, type) and any(base.__name__ == "BaseAdapter" for base in found.__mro__):
        return f"; {found.__name__} {_STOCK}"
    return ""


def _wants_the_platform(error: ImportError | AttributeError) -> str:
    wanted = (error.name or "").partition(".")[0]
    return f"; an adapter that imports it {_STOCK}" if wanted == _PLATFORM_PACKAGE else ""


_PLATFORM_PACKAGE = "molecule_runtime"
_STOCK = (
    "is of the platform's own runtime: set WORKSPACE_ADAPTER to one of this sidecar's, such as claude,"
    " or write one (docs/write-an-adapter.md)"
)


def configure(environ: Mapping[str, str], config: Configuration = NO_FILE) -> tuple[Settings, RuntimeAdapter]:
    """Parse everything and build the adapter.

    Raises:
        SettingsError: naming every variable that cannot work, ours and the adapter's.
    """
    problems: list[str] = []
    settings: Settings | None = None
    adapter: RuntimeAdapter | None = None
    try:
        settings = Settings.from_env(environ, config)
    except SettingsError as error:
        problems.extend(error.problems)
    try:
        adapter = build_adapter(environ, config)
    except SettingsError as error:
        problems.extend(error.problems)
    if settings is None or adapter is None:
        raise SettingsError(tuple(problems))
    return settings, adapter


def build_adapter(environ: Mapping[str, str], config: Configuration = NO_FILE) -> RuntimeAdapter:
    """Build the adapter that the environment or the platform's file names, with its own settings.

    Raises:
        SettingsError: naming every variable that cannot work.
    """
    variable = variables(Settings)["adapter"]
    named = read(variable, environ, config) or Reading(variable.name, str(variable.default))
    if named.problem:
        raise SettingsError((named.problem,))
    try:
        adapter_class = load_adapter(named.value, registered_only=named.in_file)
        wanted = adapter_class.Settings
        given = None if wanted is None else parse(wanted, environ, config)
        with fence("its constructor"):
            adapter = adapter_class(given)
        wrong = _wrong(adapter)
    except UnknownAdapter as error:
        wrong = str(error)
    except ContractBroken as error:
        raise SettingsError((f"{named.source}={named.value!r}: {error}{_cause(error)}",)) from error
    if wrong:
        raise SettingsError((f"{named.source}={named.value!r}: {wrong}",))
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
