"""Writes the package that an author begins an adapter with."""

from __future__ import annotations

import keyword
import re
import sys
import tempfile
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from string import Template

from .. import __version__
from ..errors import WorkspaceAdapterError

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = ".tmpl"


class CannotWrite(WorkspaceAdapterError):
    """The package cannot be written; nothing of it was."""


def write(name: str, directory: Path) -> list[Path]:
    """Write the package ``name`` into a new directory; return its files, sorted.

    Raises:
        CannotWrite: the name will not do, the directory is there already, or cannot be made.
    """
    words = _words(name)
    values = {
        "name": "-".join(words),
        "package": "_".join(words),
        "title": "".join(word.capitalize() for word in words),
        "variable": "_".join(words).upper(),
        "version": __version__,
    }
    _not_taken(values["name"], values["package"])
    if directory.exists():
        raise CannotWrite(f"{directory} is there already; give another --directory")
    try:
        # Made beside it and then renamed: it is there whole or not at all.
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as beside:
            package = Path(beside, "package")
            _fill(package, values)
            package.rename(directory)
    except OSError as error:
        raise CannotWrite(f"{directory} cannot be written: {error.strerror}") from error
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _words(name: str) -> list[str]:
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise CannotWrite(
            f"the name {name!r} will not do: it needs lower-case letters and digits, in words joined by"
            " dashes, such as my-agent"
        )
    return re.split("[-_]", name)


def _not_taken(name: str, package: str) -> None:
    registered = {entry.name for entry in entry_points(group="workspace_adapter.runtimes")}
    if name in registered:
        raise CannotWrite(f"a runtime {name!r} is registered already; choose another name")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or _module(package):
        raise CannotWrite(f"Python has a module or word {package!r} already; choose another name")


def _module(package: str) -> bool:
    """Whether there is a module of this name that has code; a bare directory has none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _fill(package: Path, values: dict[str, str]) -> None:
    for template in sorted(_TEMPLATES.rglob(f"*{_SUFFIX}")):
        inside = str(template.relative_to(_TEMPLATES)).removesuffix(_SUFFIX)
        target = package / inside.replace("PACKAGE", values["package"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(template.read_text()).substitute(values))
