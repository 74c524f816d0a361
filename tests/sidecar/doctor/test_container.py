from __future__ import annotations

import pytest

from workspace_adapter.sidecar.doctor import container
from workspace_adapter.sidecar.doctor.finding import Finding, Status
from workspace_adapter.sidecar.mounts import Mount

STATE = "/workspace/.workspace_adapter"
VOLUMES = "/var/lib/docker/volumes"


@pytest.mark.parametrize(
    ("mount", "status", "words"),
    [
        (Mount("/workspace", "/", "ext4"), Status.OK, "is on ext4, mounted at /workspace"),
        (Mount("/", "/", "ext4"), Status.OK, "mounted at /"),
        (Mount("/workspace", f"{VOLUMES}/my-workspace/_data", "xfs"), Status.OK, "xfs"),
        (Mount("/workspace", "/", "overlay"), Status.OK, "overlay"),  # somebody's own, with a disk beneath
        (Mount("/workspace", "/", "tmpfs"), Status.BROKEN, "is in memory (tmpfs)"),
        (Mount("/", "/", "overlay"), Status.BROKEN, "the container's own layer (overlay)"),
        (Mount("/", "/", "fuse.fuse-overlayfs"), Status.BROKEN, "the container's own layer"),
        (Mount("/workspace", "/export", "nfs4"), Status.BROKEN, "a network file system (nfs4)"),
        (Mount("/workspace", f"{VOLUMES}/{'0a' * 32}/_data", "ext4"), Status.WARNING, "an anonymous volume"),
        (Mount("/workspace", f"{VOLUMES}/{'0a' * 32}/_data/sub", "ext4"), Status.WARNING, "anonymous"),
        (
            Mount("/workspace", "/kubelet/pods/1-2/volumes/kubernetes.io~empty-dir/workspace", "ext4"),
            Status.WARNING,
            "an emptyDir",
        ),
        (None, Status.WARNING, "nobody can say"),
    ],
)
def test_where_the_journal_lies_says_what_becomes_of_it(
    mount: Mount | None, status: Status, words: str
) -> None:
    found = container.place(STATE, mount)
    assert (found.status, words in found.found) == (status, True), found
    assert f"WORKSPACE_STATE_DIR={STATE}" in found.found
    assert bool(found.todo) is (status is not Status.OK)


def test_a_sidecar_that_is_pid_1_has_no_init() -> None:
    assert container.init(1).status is Status.WARNING
    assert "tini" in container.init(1).todo
    assert container.init(7).status is Status.OK


def test_a_finding_is_one_sentence_for_a_log() -> None:
    assert str(Finding(Status.BROKEN, "it is full", "free space")) == "it is full: free space"
    assert str(Finding(Status.OK, "all is well")) == "all is well"
