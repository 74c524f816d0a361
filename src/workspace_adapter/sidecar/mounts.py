"""Which mount a path lies on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TABLE = Path("/proc/self/mountinfo")

NETWORK = frozenset(
    {
        "9p",
        "afs",
        "ceph",
        "cifs",
        "fuse.cephfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb2",
        "smb3",
        "smbfs",
    }
)
"""File system types on which more than one machine may write."""


class Mount(NamedTuple):
    """One line of the table."""

    point: str
    """Where it is mounted."""
    root: str
    """What of the file system is mounted there; of a container's volume, its path on the host's disk."""
    kind: str
    """The file system's type."""


def mount_of(path: Path, table: str) -> Mount | None:
    """Return the mount a path is on; ``None`` where the table does not say.

    Args:
        path: absolute, links resolved; it need not exist.
        table: the text of ``/proc/self/mountinfo``.
    """
    deepest, found = -1, None
    for line in table.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5 or not source:
            continue
        point = Path(_unescaped(fields[4]))
        # Of two mounts in one place the later hides the earlier.
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            deepest = len(point.parts)
            found = Mount(str(point), _unescaped(fields[3]), source.split(" ")[0])
    return found


def mount_here(path: Path) -> Mount | None:
    """Return the mount a path is on in this process's view."""
    return mount_of(path.resolve(), TABLE.read_text(errors="surrogateescape")) if TABLE.exists() else None


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
