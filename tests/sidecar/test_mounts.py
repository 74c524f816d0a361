from __future__ import annotations

from pathlib import Path

import pytest

from workspace_adapter.sidecar.mounts import NETWORK, Mount, mount_here, mount_of

MOUNTS = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
30 22 0:40 / /workspace rw,relatime shared:9 master:1 - nfs4 server:/export rw,vers=4.2
31 30 0:41 / /workspace/local rw - ext4 /dev/vdb rw
32 22 0:42 / /mnt/with\040space rw - cifs //server/share rw
33 22 0:43 / /over rw - ext4 /dev/vdc rw
34 33 0:44 / /over rw - fuse.sshfs host:/ rw
35 22 0:45 /sub /data rw - 9p hostshare rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/srv/state", "ext4"),
        ("/workspace/.workspace_adapter", "nfs4"),
        ("/workspace", "nfs4"),
        ("/workspaces/one", "ext4"),
        ("/workspace/local/deep/down", "ext4"),
        ("/mnt/with space/x", "cifs"),
        ("/over/x", "fuse.sshfs"),
        ("/data/x", "9p"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_and_latest_mount(path: str, kind: str) -> None:
    mount = mount_of(Path(path), MOUNTS)
    assert mount is not None
    assert mount.kind == kind


def test_without_a_mount_table_the_file_system_is_not_known() -> None:
    assert mount_of(Path("/srv"), "") is None


def test_network_file_systems_are_known_by_name() -> None:
    assert {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "fuse.sshfs", "afs", "9p", "lustre"} <= NETWORK
    assert not NETWORK & {"ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs"}


def test_a_mount_says_where_it_is_and_what_is_mounted_there() -> None:
    assert mount_of(Path("/data/x"), MOUNTS) == Mount(point="/data", root="/sub", kind="9p")
    assert mount_of(Path("/mnt/with space"), MOUNTS) == Mount("/mnt/with space", "/", "cifs")


def test_the_root_is_on_something_here() -> None:
    mount = mount_here(Path("/"))
    assert mount is not None
    assert mount.point == "/"
