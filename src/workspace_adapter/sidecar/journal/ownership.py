"""Who may use a state directory, and whether anybody should.

The directory must be ours to write and on a local disk: SQLite's locks and our own mean
nothing on a network file system. One process owns it, by a lock that ends with the
process however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import anyio

from ...errors import JournalUnavailable, StateDirError
from ..mounts import NETWORK, mount_here
from .schema import sync

LOCK = "journal.lock"

_POLL = 0.05
"""Seconds between two looks at a lock that somebody holds."""

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})
"""Errors that may heal while we wait."""


def prepare(state_dir: Path) -> None:
    """Make the state directory where it is missing, and make sure it can hold a journal.

    Raises:
        StateDirError: it cannot, with the reason.
        JournalUnavailable: not now.
    """
    mount = mount_here(state_dir)
    if mount is not None and mount.kind in NETWORK:
        raise StateDirError(
            f"{state_dir} is on a network file system ({mount.kind}), where a journal can be damaged:"
            " set WORKSPACE_STATE_DIR to a directory on a local disk"
        )
    try:
        missing = [directory for directory in (state_dir, *state_dir.parents) if not directory.exists()]
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in missing:
            sync(directory.parent)
        ignore = state_dir / ".gitignore"
        if not ignore.exists() or not ignore.stat().st_size:  # empty: the disk was full when it was made
            ignore.write_text("*\n")
    except OSError as error:
        raise _refused(state_dir, error) from error


class Lock:
    """The state directory's lock, held."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another process have it; harmless to repeat."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


async def take(state_dir: Path, *, boot_id: str, now: float, patience: float) -> Lock:
    """Become the one owner, waiting up to ``patience`` seconds for a predecessor that leaves.

    Raises:
        StateDirError: naming who owns it, or why nobody can.
    """
    path = state_dir / LOCK
    with anyio.move_on_after(patience):
        while True:
            lock = _try(path, boot_id=boot_id, now=now)
            if lock is not None:
                return lock
            await anyio.sleep(_POLL)
    raise StateDirError(
        f"{state_dir} is in use by {_owner(path)}: stop that one, or set WORKSPACE_STATE_DIR to another"
        " directory"
    )


def _try(path: Path, *, boot_id: str, now: float) -> Lock | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(path.parent, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise BlockingIOError  # somebody replaced it between the two calls
        # For a person: another container has pids of its own, and its host name is how to find it.
        owner = {"boot_id": boot_id, "pid": os.getpid(), "host": os.uname().nodename, "since": now}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise _refused(path.parent, error) from error
    return Lock(descriptor)


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_bytes())
        since = datetime.fromtimestamp(owner["since"], UTC).isoformat(timespec="seconds")
        return f"process {owner['pid']} on {owner['host']} (boot {owner['boot_id']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _refused(state_dir: Path, error: OSError) -> StateDirError | JournalUnavailable:
    if error.errno in _PASSING:
        return JournalUnavailable(f"{state_dir} cannot be written now: {error.strerror}")
    if error.errno == errno.EACCES:
        there = _nearest(Path(error.filename or state_dir))
        seen, user = there.stat(), os.geteuid()
        return StateDirError(
            f"{state_dir} cannot be used ({error.strerror}): {there} belongs to user {seen.st_uid}, mode"
            f" {stat.S_IMODE(seen.st_mode):o}, and this is user {user}: as root, chown -R {user}"
            f" {_nearest(state_dir)}"
        )
    return StateDirError(
        f"{state_dir} cannot be used ({error.strerror}): set WORKSPACE_STATE_DIR to a directory that"
        " can be written, on a local disk"
    )


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest above it that this user is shown."""
    return next(there for there in (path, *path.parents) if os.path.exists(there))  # noqa: PTH110  # never raises
