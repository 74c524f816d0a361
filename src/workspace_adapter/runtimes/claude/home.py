"""Where Claude Code keeps its conversations: its configuration directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import RuntimeUnusable

_OWN = "projects"
"""Conversations; the one thing an image's ``~/.claude`` does not bring along."""


def config_dir(given: str | None, state_dir: Path) -> Path:
    """Return the directory: the operator's, else one of ours that outlives the container."""
    return Path(given) if given else state_dir / "config"


def prepare(given: str | None, state_dir: Path, environ: Mapping[str, str]) -> Path:
    """Make the directory ready to be used, and return it.

    In ours, everything that the image has in ``~/.claude`` is linked in, so that its
    settings, skills and credentials count. What Claude Code has replaced by a file of
    its own since (a renewed token) is left alone.

    Raises:
        RuntimeUnusable: it cannot be written; conversations would be lost silently.
    """
    directory = config_dir(given, state_dir)
    conversations = directory / _OWN
    try:
        conversations.mkdir(parents=True, exist_ok=True)
        if not given and "HOME" in environ:
            _link(Path(environ["HOME"]), directory)
    except OSError as error:
        raise _unusable(directory, error.strerror or str(error)) from error
    if not os.access(conversations, os.W_OK | os.X_OK):
        raise _unusable(directory, "not writable")
    return directory


def transcript(directory: Path, session_id: str) -> Path | None:
    """Find a conversation's transcript, wherever its session worked."""
    paths = (directory / _OWN).glob("*/*.jsonl")
    return next((path for path in paths if path.stem == session_id), None)


def set_aside(path: Path) -> None:
    """Take a transcript that Claude Code cannot read out of its way, keeping it."""
    path.replace(path.with_suffix(".unreadable"))


def erase(directory: Path, session_id: str, scratch: Path) -> list[str]:
    """Remove everything that Claude Code keeps under a conversation's id; return what it was.

    That is its transcript, the folder beside it (subagents, large results of tools), and
    what other folders keep in a file or folder named after it: the shell's environment,
    checkpoints of files, lists of things to do, debug logs.

    Args:
        scratch: where tools of running conversations put their output.
    """
    found = [path for place in (directory, scratch) for path in _named(place, session_id)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return [str(path) for path in found]


def _named(place: Path, session_id: str) -> Iterator[Path]:
    """Find what bears the name one or two folders down, while other conversations come and go there.

    Raises:
        OSError: a folder cannot be read; one that has vanished meanwhile holds nothing.
    """

    def unread(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for directory, folders, files in os.walk(place, onerror=unread, followlinks=True):
        depth = len(Path(directory).relative_to(place).parts)
        if depth > 0:
            yield from (Path(directory, name) for name in (*folders, *files) if name.startswith(session_id))
        if depth == 2:
            folders.clear()


def scratch() -> Path:
    """Return where Claude Code's tools put their output, by conversation."""
    return Path(f"/tmp/claude-{os.getuid()}")


def _link(home: Path, directory: Path) -> None:
    wanted = {".claude.json": home / ".claude.json"}
    if (home / ".claude").is_dir():
        wanted |= {entry.name: entry for entry in (home / ".claude").iterdir() if entry.name != _OWN}
    for link in directory.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    for name, target in wanted.items():
        link = directory / name
        if target.exists() and not link.exists():
            link.symlink_to(target)


def _unusable(directory: Path, why: str) -> RuntimeUnusable:
    return RuntimeUnusable(
        f"Claude Code's directory {directory} cannot be used ({why}): make it writable,"
        " or name another one in CLAUDE_CONFIG_DIR"
    )
