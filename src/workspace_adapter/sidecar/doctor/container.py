"""What a container does not give by itself: a disk that outlives it, and an init."""

from __future__ import annotations

import re

from ..mounts import NETWORK, Mount
from .finding import Finding, broken, ok, warning

_MEMORY = frozenset({"ramfs", "tmpfs"})
_LAYERS = frozenset({"aufs", "fuse.fuse-overlayfs", "overlay"})
_ANONYMOUS = re.compile(r"/volumes/[0-9a-f]{64}/_data(/|$)")
_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"

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
