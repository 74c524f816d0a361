"""What the state of a directory means for what is kept there.

Told facts, it says what they mean; it looks at nothing itself.
"""

from __future__ import annotations

import stat

from ..journal.blobs import INLINE_LIMIT
from .finding import Finding, broken, ok, skipped, warning

_SLOW = 0.1
"""Seconds of a write with its fsync; a message is accepted after one, a tool call after two."""

_FEW = 1000
"""Free inodes."""

_SMALL = 64 << 20
"""Bytes free."""


def keeping(state_dir: str, *, mode: int, owner: int, user: int) -> Finding | None:
    """Say who else may read the journal, or that it is another user's; ``None`` if all is well.

    Args:
        mode: of the directory, as ``stat`` has it.
        owner: whose it is.
        user: who asks; the sidecar's own user, as a rule.
    """
    if owner != user:
        return warning(
            f"WORKSPACE_STATE_DIR={state_dir} belongs to user {owner}, and this is user {user}",
            f"run this command as user {owner}, with docker exec --user; if the sidecar is to run as {user}:"
            f" chown -R {user} {state_dir}",
        )
    if mode & 0o007:
        return warning(
            f"WORKSPACE_STATE_DIR={state_dir} is open to every user (mode {mode & 0o777:o}): it holds whole"
            " conversations",
            f"chmod 700 {state_dir}",
        )
    return None


def writing(state_dir: str, *, error: str | None, seconds: float) -> Finding:
    """Say whether a file can be written there, and how fast.

    Args:
        error: why not, in the system's words.
        seconds: what writing a page and its fsync took.
    """
    if error is not None:
        return broken(
            f"WORKSPACE_STATE_DIR={state_dir} cannot be written: {error}",
            "mount a volume there that this user can write, or free space",
        )
    if seconds > _SLOW:
        return warning(
            f"a write to WORKSPACE_STATE_DIR={state_dir} takes {seconds * 1000:.0f} ms until it is on disk",
            "use a faster disk: each message and each tool call waits for such writes",
        )
    return ok(f"a write is on disk after {seconds * 1000:.1f} ms")


def space(state_dir: str, *, free: int, inodes: int | None, journal: int, limit: int) -> Finding:
    """Say whether there is room.

    Args:
        free: bytes this user may still write.
        inodes: files it may still make; ``None`` where the file system does not count.
        journal: bytes the journal takes now.
        limit: bytes at which it takes no message any more.
    """
    more = max(0, limit - journal)
    if free <= INLINE_LIMIT:
        return broken(
            f"the disk of WORKSPACE_STATE_DIR={state_dir} is full ({free} bytes free): no message is taken",
            "free space on it; work goes on by itself",
        )
    if inodes == 0:
        return broken(
            f"the disk of WORKSPACE_STATE_DIR={state_dir} can hold no more files: large messages are refused",
            "remove files from it; work goes on by itself",
        )
    if journal >= limit:
        return broken(
            f"the journal has reached WORKSPACE_JOURNAL_LIMIT_BYTES={limit}: no message is taken",
            "raise it, or lower WORKSPACE_JOURNAL_RETENTION; see: workspace-adapter journal size",
        )
    if free < min(more, _SMALL) or (inodes is not None and inodes < _FEW):
        return warning(
            f"the disk of WORKSPACE_STATE_DIR={state_dir} is nearly full: {free >> 20} MiB and"
            f" {'any number of' if inodes is None else inodes} files are free",
            "free space on it, or make the volume larger",
        )
    if free < more:
        return warning(
            f"the disk of WORKSPACE_STATE_DIR={state_dir} is full before the journal reaches"
            f" WORKSPACE_JOURNAL_LIMIT_BYTES={limit}: {free >> 20} MiB are free, and {more >> 20} MiB more"
            " may come",
            "lower the limit below what the volume holds, or make the volume larger",
        )
    return ok(f"{free >> 20} MiB free, and the journal takes {more >> 20} MiB more at most")


def scratch(path: str, *, error: str | None) -> Finding:
    """Say whether runtimes and tools have a place for what they throw away.

    Args:
        error: why nothing can be written there, in the system's words.
    """
    if error is not None:
        return warning(
            f"{path} cannot be written: {error}",
            "mount something there, as in: docker run --tmpfs /tmp; Claude Code and many tools need it",
        )
    return ok(f"{path} can be written")


def configs(configs_dir: str, *, exists: bool, writable: bool, wanted: bool) -> Finding:
    """Say whether the platform's secrets can be kept.

    Args:
        wanted: there is a platform, which hands them out.
    """
    if not exists:
        if not wanted:
            return skipped(f"there is no CONFIGS_DIR={configs_dir}, and no platform that would need it")
        return broken(
            f"there is no directory CONFIGS_DIR={configs_dir}: the platform's token is lost at each stop",
            "mount the volume that the platform writes its files to",
        )
    if wanted and not writable:
        return broken(
            f"CONFIGS_DIR={configs_dir} cannot be written by this user: a renewed token is lost at each stop",
            "give the directory to the user the sidecar runs as",
        )
    return ok(f"CONFIGS_DIR={configs_dir} is there{' and can be written' if writable else ''}")


def secret(path: str, *, mode: int, readable: bool) -> Finding | None:
    """Say whether others can read a secret, or we cannot; ``None`` if all is well."""
    if not stat.S_ISREG(mode):
        return broken(
            f"{path} is no file: it counts as missing",
            "remove it; the platform writes a token when it provisions, and hands the secret out again",
        )
    if not readable:
        return broken(
            f"{path} cannot be read by this user: it counts as missing",
            "give it to the user the sidecar runs as",
        )
    if not mode & 0o004:
        return None
    return warning(f"{path} can be read by every user (mode {mode & 0o777:o})", f"chmod 600 {path}")
