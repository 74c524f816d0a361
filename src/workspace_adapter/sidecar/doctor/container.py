"""What a container gives: a disk that outlives it or not, an init, memory, files, time.

Told facts, it says what they mean; it looks at nothing itself.
"""

from __future__ import annotations

import math
import re

from ..mounts import NETWORK, Mount
from .finding import Finding, broken, ok, warning

_MEMORY = frozenset({"ramfs", "tmpfs"})
_LAYERS = frozenset({"aufs", "fuse.fuse-overlayfs", "overlay"})
_ANONYMOUS = re.compile(r"/volumes/[0-9a-f]{64}/_data(/|$)")
_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"

_SIDECAR = 96 << 20
"""Bytes the sidecar takes with some turns at work; idle, it is 60 MiB."""
_A_SESSION = 8
_FILES = 64
"""Descriptors of an open session, and of everything else."""
_CLOCKS_DIFFER = 60.0
"""Seconds."""

_MOUNT_ONE = "mount a volume there that outlives the container"


def place(state_dir: str, mount: Mount | None) -> Finding:
    """Say whether what is written there outlives the container."""
    if mount is None:
        return warning(
            f"nobody can say what file system WORKSPACE_STATE_DIR={state_dir} is on",
            "have /proc mounted in the container",
        )
    if mount.kind in _MEMORY:
        return broken(
            f"WORKSPACE_STATE_DIR={state_dir} is in memory ({mount.kind}): what was accepted goes with"
            " the container",
            _MOUNT_ONE,
        )
    if mount.kind in _LAYERS and mount.point == "/":
        return broken(
            f"WORKSPACE_STATE_DIR={state_dir} is in the container's own layer ({mount.kind}): what was"
            " accepted goes with the container",
            _MOUNT_ONE,
        )
    if mount.kind in NETWORK:
        return broken(
            f"WORKSPACE_STATE_DIR={state_dir} is on a network file system ({mount.kind}), where a journal can"
            " be damaged",
            "set it to a directory on a local disk or a block volume",
        )
    if _ANONYMOUS.search(mount.root):
        return warning(
            f"WORKSPACE_STATE_DIR={state_dir} is on an anonymous volume, which no other container gets: what"
            " was accepted stays behind when the container is replaced",
            "give the volume a name, as in: docker run -v my-workspace:/workspace",
        )
    if _EMPTY_DIR in mount.root:
        return warning(
            f"WORKSPACE_STATE_DIR={state_dir} is on an emptyDir: what was accepted goes with the pod",
            "claim a persistent volume",
        )
    return ok(f"WORKSPACE_STATE_DIR={state_dir} is on {mount.kind}, mounted at {mount.point}")


def init(sidecar_pid: int) -> Finding:
    """Say whether the sidecar has an init before it.

    Args:
        sidecar_pid: as its own container counts.
    """
    if sidecar_pid == 1:
        return warning(
            "the sidecar is PID 1: a SIGTERM while Python starts is lost, and nobody reaps orphaned"
            " processes",
            "start it under an init: docker run --init, or tini as the image's entry point",
        )
    return ok("the sidecar is not PID 1")


def reaping(seconds: float | None, first: str) -> Finding:
    """Say whether orphans that have ended are reaped.

    Args:
        seconds: how long one that ended was still there; ``None``, it still is.
        first: the name of PID 1's program.
    """
    if seconds is None:
        return warning(
            f"PID 1 ({first}) does not reap: a process that lost its parent stays a zombie after its end",
            "start the container under an init: docker run --init, or tini as the image's entry point",
        )
    return ok(f"PID 1 ({first}) reaped an orphan within {seconds:.1f} s")


def memory(*, limit: int | None, killed: int, sessions: int, session_bytes: int) -> Finding:
    """Say whether the memory suffices.

    Args:
        limit: of the control group, in bytes; ``None`` where there is none.
        killed: processes of it that the kernel ended because it was full.
        sessions: that may be kept open.
        session_bytes: what one of them takes outside the sidecar, as its adapter says.
    """
    need = _SIDECAR + sessions * session_bytes
    if killed:
        return warning(
            f"the kernel has ended {killed} processes of this container for want of memory"
            f" (limit {_mib(limit)})",
            "raise the limit, or lower WORKSPACE_SESSIONS_OPEN",
        )
    if limit is not None and limit < need:
        return warning(
            f"the memory limit is {_mib(limit)}; the sidecar with WORKSPACE_SESSIONS_OPEN={sessions} needs"
            f" about {_mib(need)}",
            "raise the limit, or lower WORKSPACE_SESSIONS_OPEN",
        )
    return ok(f"memory limit {_mib(limit)}, need about {_mib(need)} beside what tools take")


def descriptors(*, limit: int | None, held: int, sessions: int) -> Finding:
    """Say whether there are file descriptors for everybody who may be held at once."""
    need = held + sessions * _A_SESSION + _FILES
    if limit is not None and limit < need:
        return warning(
            f"the sidecar may open {limit} files; WORKSPACE_HELD_LIMIT={held} callers and what else it needs"
            f" are {need}",
            "raise the limit (docker run --ulimit nofile=4096), or lower WORKSPACE_HELD_LIMIT",
        )
    return ok(f"{'any number of' if limit is None else limit} open files allowed, {need} needed at most")


def stopping(stop_timeout: float) -> Finding:
    """Say what the engine must be told; nothing inside a container shows what it was told."""
    return ok(
        f"WORKSPACE_STOP_TIMEOUT={stop_timeout:g}: see that the engine waits at least as long"
        f" (docker run --stop-timeout {math.ceil(stop_timeout)}; in Kubernetes terminationGracePeriodSeconds,"
        " after what preStop takes); nothing in here shows it"
    )


def clock(ran_back: float) -> Finding:
    """Say whether the wall clock goes forward.

    Args:
        ran_back: seconds by which it stands before the last time the journal knows.
    """
    if ran_back > _CLOCKS_DIFFER:
        return warning(
            f"the clock stands {ran_back:.0f} s before the last time the journal knows: it was set back",
            "see that the machine's time synchronisation works; nothing in the journal ages by it",
        )
    return ok("the clock has not gone back")


def clocks(platform_ahead: float) -> Finding:
    """Say whether the platform's clock and ours agree; ``platform_ahead`` in seconds."""
    if abs(platform_ahead) > _CLOCKS_DIFFER:
        return warning(
            f"the platform's clock and this one are {abs(platform_ahead):.0f} s apart",
            "see that time synchronisation works on both machines: certificates and tokens depend on it",
        )
    return ok("the platform's clock and this one agree")


def _mib(size: int | None) -> str:
    return "none" if size is None else f"{size >> 20} MiB"
