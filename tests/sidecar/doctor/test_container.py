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


def test_who_reaps_and_who_does_not() -> None:
    assert container.reaping(0.1, "tini").status is Status.OK
    never = container.reaping(None, "python")
    assert never.status is Status.WARNING
    assert "PID 1 (python) does not reap" in never.found


GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "killed", "sessions", "status"),
    [
        (None, 0, 8, Status.OK),
        (2 * GIB, 0, 8, Status.OK),
        (GIB // 2, 0, 8, Status.WARNING),
        (GIB // 2, 0, 2, Status.OK),
        (2 * GIB, 1, 8, Status.WARNING),
    ],
)
def test_the_memory_is_held_against_the_sessions_that_may_be_open(
    limit: int | None, killed: int, sessions: int, status: Status
) -> None:
    found = container.memory(limit=limit, killed=killed, sessions=sessions, session_bytes=120 << 20)
    assert found.status is status
    assert status is Status.OK or "WORKSPACE_SESSIONS_OPEN" in found.todo


@pytest.mark.parametrize(("limit", "status"), [(1024, Status.WARNING), (4096, Status.OK), (None, Status.OK)])
def test_everybody_who_may_be_held_needs_a_descriptor(limit: int | None, status: Status) -> None:
    assert container.descriptors(limit=limit, held=1000, sessions=8).status is status


def test_the_engines_patience_is_a_whole_number_not_less_than_ours() -> None:
    found = container.stopping(12.5)
    assert found.status is Status.OK
    assert "WORKSPACE_STOP_TIMEOUT=12.5" in found.found
    assert "--stop-timeout 13" in found.found


@pytest.mark.parametrize(("seconds", "status"), [(0, Status.OK), (59, Status.OK), (7200, Status.WARNING)])
def test_a_clock_that_went_back_is_noticed(seconds: float, status: Status) -> None:
    assert container.clock(seconds).status is status


@pytest.mark.parametrize(
    ("seconds", "status"), [(-5, Status.OK), (300, Status.WARNING), (-300, Status.WARNING)]
)
def test_a_clock_that_is_not_the_platforms_is_noticed(seconds: float, status: Status) -> None:
    assert container.clocks(seconds).status is status
