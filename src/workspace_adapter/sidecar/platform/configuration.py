"""The platform's ``config.yaml``, read from disk.

The platform writes it anew at each start, from what people typed. So whatever is wrong
with it is told and left out, and nothing in it can make reading it slow, large or deadly.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...settings import NO_FILE, Configuration, Settings, read, variables

if TYPE_CHECKING:
    import yaml

_MAY_BE_FILES = ("initial_prompt", "idle_prompt")
"""Keys that may stand with ``_file`` instead: the name of a file beside this one."""

FILE = "config.yaml"

_LARGEST = 128 << 10
"""Bytes; a real one has a few thousand."""

_DEEPEST = 32
"""Levels; libyaml's composer ends the process at some tens of thousands."""

_DEEPEST_KEY = 3
_LONGEST_NAME = 64
"""Levels and characters of a key; what no setting's key is like is passed over."""


def read_configuration(environ: Mapping[str, str]) -> Configuration:
    """Read the file where the environment says it lies; none there is as good as an empty one."""
    path, named = _path(environ)
    if path is None:
        return NO_FILE
    try:
        text = _text(path)
        if text is None and named:
            raise _Unusable(f"there is none, though WORKSPACE_CONFIG_PATH={named} says so")
        values = dict(_values(text)) if text else {}
    except _Unusable as error:
        return Configuration(str(path), problems=(f"{path}: {error}",))
    problems = tuple(_take_from_files(values, path))
    return Configuration(str(path), values, problems)


def _take_from_files(values: dict[str, str | tuple[str, ...] | None], path: Path) -> Iterator[str]:
    """Put the text of a file where the platform's file names one instead; yield what is wrong."""
    for key in _MAY_BE_FILES:
        named = values.get(f"{key}_file")
        if not named or values.get(key):
            continue
        try:
            if not isinstance(named, str) or "\0" in named:
                raise _Unusable("must be the name of a file")
            text = _text(path.parent / named)
            if text is None:
                raise _Unusable("there is no such file")
            values[key] = text.decode("utf-8").strip()
        except UnicodeDecodeError:
            yield f"{path}: {key}_file={named!r}: it is not UTF-8"
        except _Unusable as error:
            yield f"{path}: {key}_file={named!r}: {error}"


class _Unusable(Exception):
    """The file as a whole cannot be used."""


def _path(environ: Mapping[str, str]) -> tuple[Path | None, str]:
    """Return where the file would lie, and the setting that names it; a wrong one is told elsewhere."""
    declared = variables(Settings)
    named = read(declared["config_path"], environ, NO_FILE)
    configs = read(declared["configs_dir"], environ, NO_FILE)
    if named is not None:
        if named.problem:
            return None, ""
        path = Path(named.value)
        return (path if path.suffix in (".yaml", ".yml") else path / FILE), named.value
    if configs is not None and configs.problem:
        return None, ""
    return Path(configs.value if configs is not None else str(declared["configs_dir"].default)) / FILE, ""


def _text(path: Path) -> bytes | None:
    """Return the file's bytes; ``None`` where there is none."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _Unusable("it is no file")
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unusable(error.strerror or str(error)) from error
    if len(text) > _LARGEST:
        raise _Unusable(f"it has more than {_LARGEST} bytes")
    return text


def _values(text: bytes) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
    """Yield what stands at each key.

    The document is composed and never constructed, so that a text stays what was typed,
    no tag makes an object, and aliases are not multiplied.
    """
    import yaml  # here: most workspaces without a platform have no such file

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_depth(yaml.parse(text, Loader=loader))
        root = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise _Unusable(f"it is not YAML: {error.problem or error.context}{where}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise _Unusable(f"it is not YAML: {' '.join(str(error).split())}") from error
    if root is None or _is_null(root):
        return
    if not isinstance(root, yaml.MappingNode):
        raise _Unusable("it must be a mapping")
    yield from _members(root, (), {id(root)})


def _refuse_depth(events: Any) -> None:
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise _Unusable(f"it is nested more than {_DEEPEST} deep")


def _members(
    node: yaml.MappingNode, prefix: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
    """Yield a mapping's members, and theirs; a list or mapping that has aliases, only where it is first."""
    import yaml

    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode) or len(name.value) > _LONGEST_NAME or _is_null(value):
            continue
        names = (*prefix, name.value)
        key = ".".join(names)
        if isinstance(value, yaml.ScalarNode):
            yield key, _scalar(value)
        elif id(value) not in seen:
            seen.add(id(value))
            yield key, _list(value) if isinstance(value, yaml.SequenceNode) else None
            if isinstance(value, yaml.MappingNode) and len(names) < _DEEPEST_KEY:
                yield from _members(value, names, seen)


def _list(node: yaml.SequenceNode) -> tuple[str, ...] | None:
    import yaml

    if not all(isinstance(item, yaml.ScalarNode) and not _is_null(item) for item in node.value):
        return None
    return tuple(map(_scalar, node.value))


def _scalar(node: yaml.ScalarNode) -> str:
    """Return the text, without halves of characters that an escape may have made."""
    text: str = node.value
    return text.encode(errors="replace").decode().strip()


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")
