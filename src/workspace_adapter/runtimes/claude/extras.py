"""What the existing platform lays out for an agent: plugins, skills and standing instructions.

It has folders of its own for them, which Claude Code does not look into. Whatever of it
cannot be used is left out and named; Claude Code itself skips what it cannot load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

_LARGEST = 64 << 10
"""Bytes of one file of instructions that are read."""

_MOST = 256 << 10
"""Bytes of all of them together; the model is sent them with every request."""

_NO_INSTRUCTIONS = frozenset({"readme", "changelog", "license", "contributing", "skill"})
"""Texts that lie in a plugin and are not for the model at all times."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What was found."""

    plugins: tuple[Path, ...] = ()
    instructions: str = ""
    left_out: tuple[str, ...] = ()
    """What could not be used, and why: a sentence each."""


def find(platform_dir: Path, shared_plugins: Path, prompt_files: Sequence[str]) -> Extras:
    """Look where the platform puts things.

    Plugins lie in ``plugins/`` of the platform's directory, which go before those of the
    same name in the shared one. Skills lie in ``skills/``, so that the directory is itself
    what Claude Code takes for a plugin. Instructions are the prompt files, ``CLAUDE.md``
    beside them, and of each plugin ``rules/*.md`` and the texts at its top.
    """
    left_out: list[str] = []
    plugins: dict[str, Path] = {}
    for folder in (platform_dir / "plugins", shared_plugins):
        for path in _listed(folder, left_out):
            if _is_folder(path) and not path.name.startswith((".", "_")):
                plugins.setdefault(path.name, path)
    texts = _Texts(left_out.append)
    for name in dict.fromkeys((*prompt_files, "CLAUDE.md")):
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            left_out.append(f"the prompt file {name} lies outside {platform_dir}")
        else:
            texts.add(platform_dir / name)
    for plugin in plugins.values():
        for path in (*_listed(plugin / "rules", left_out), *_listed(plugin, left_out)):
            if path.suffix == ".md" and path.stem.lower() not in _NO_INSTRUCTIONS:
                texts.add(path)
    own = (platform_dir,) if _is_folder(platform_dir / "skills") else ()
    return Extras((*own, *plugins.values()), texts.together, tuple(left_out))


def write(instructions: str, directory: Path) -> Path | None:
    """Put the instructions where Claude Code reads them, if given the directory; ``None`` for none.

    Raises:
        OSError: they cannot be put there.
    """
    file = directory / "CLAUDE.md"
    if not instructions:
        file.unlink(missing_ok=True)
        return None
    directory.mkdir(exist_ok=True)
    if file.exists() and file.read_bytes() == instructions.encode():
        return directory
    new = directory / "CLAUDE.md.new"
    new.write_bytes(instructions.encode())
    new.replace(file)
    return directory


class _Texts:
    """Files of instructions, one after the other."""

    def __init__(self, left_out: Callable[[str], None]) -> None:
        self.together = ""
        self._left_out = left_out

    def add(self, path: Path) -> None:
        try:
            if not path.is_file():
                return
            with path.open("rb") as file:
                text = file.read(_LARGEST + 1).decode("utf-8", "replace").strip()
        except OSError as error:
            self._left_out(f"{path} cannot be read: {error.strerror}")
            return
        if len(text.encode()) > _LARGEST or len(self.together.encode()) + len(text.encode()) > _MOST:
            self._left_out(f"{path} is too long: {_LARGEST} bytes of one file are sent, {_MOST} of all")
        elif text:
            self.together += f"{text}\n\n"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # it may not be looked into
        return False


def _listed(folder: Path, left_out: list[str]) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        left_out.append(f"{folder} cannot be read: {error.strerror}")
