from __future__ import annotations

import pytest

from workspace_adapter.sidecar.doctor import disk
from workspace_adapter.sidecar.doctor.finding import Status

OK, WARNING, BROKEN, SKIPPED = Status.OK, Status.WARNING, Status.BROKEN, Status.SKIPPED
STATE = "/workspace/.workspace_adapter"
MIB = 1 << 20


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o40700, 10001, None),
        (0o42770, 10001, None),  # as Kubernetes leaves it for its fsGroup
        (0o40755, 10001, "open to every user (mode 755)"),
        (0o40700, 0, "belongs to user 0, and this is user 10001"),
    ],
)
def test_the_state_directory_is_for_one_user(mode: int, owner: int, words: str | None) -> None:
    found = disk.keeping(STATE, mode=mode, owner=owner, user=10001)
    assert (found is None) is (words is None)
    assert found is None or (found.status is WARNING and words is not None and words in found.found)


@pytest.mark.parametrize(
    ("error", "seconds", "status"),
    [(None, 0.004, OK), (None, 0.3, WARNING), ("No space left on device", 0.0, BROKEN)],
)
def test_a_write_is_tried(error: str | None, seconds: float, status: Status) -> None:
    found = disk.writing(STATE, error=error, seconds=seconds)
    assert found.status is status
    assert error is None or error in found.found


@pytest.mark.parametrize(
    ("free", "inodes", "journal", "status", "words"),
    [
        (4096 * MIB, 100_000, 0, OK, "4096 MiB free, and the journal takes 2048 MiB more"),
        (4096 * MIB, None, 0, OK, "4096 MiB free"),
        (100 * MIB, 100_000, 2000 * MIB, OK, "100 MiB free, and the journal takes 48 MiB more"),
        (256 * 1024, 100_000, 0, BROKEN, "is full"),
        (4096 * MIB, 0, 0, BROKEN, "no more files"),
        (4096 * MIB, 100_000, 2048 * MIB, BROKEN, "WORKSPACE_JOURNAL_LIMIT_BYTES"),
        (32 * MIB, 100_000, 0, WARNING, "nearly full: 32 MiB"),
        (4096 * MIB, 10, 0, WARNING, "nearly full: 4096 MiB and 10 files"),
        (500 * MIB, None, 0, WARNING, "is full before the journal reaches"),
    ],
)
def test_the_room_is_held_against_what_may_come(
    free: int, inodes: int | None, journal: int, status: Status, words: str
) -> None:
    found = disk.space(STATE, free=free, inodes=inodes, journal=journal, limit=2048 * MIB)
    assert (found.status, words in found.found) == (status, True), found


@pytest.mark.parametrize(
    ("exists", "writable", "wanted", "status"),
    [
        (True, True, True, OK),
        (True, False, False, OK),
        (True, False, True, BROKEN),
        (False, False, True, BROKEN),
        (False, False, False, SKIPPED),
    ],
)
def test_the_platforms_directory_is_needed_where_there_is_a_platform(
    exists: bool, writable: bool, wanted: bool, status: Status
) -> None:
    assert disk.configs("/configs", exists=exists, writable=writable, wanted=wanted).status is status


def test_a_secret_that_every_user_can_read_is_none() -> None:
    found = disk.secret("/configs/.auth_token", mode=0o100644, readable=True)
    assert found is not None
    assert (found.status, found.todo) == (WARNING, "chmod 600 /configs/.auth_token")
    assert disk.secret("/configs/.auth_token", mode=0o100660, readable=True) is None
    pipe = disk.secret("/configs/.auth_token", mode=0o010600, readable=True)
    assert pipe is not None
    assert "is no file" in pipe.found
    foreign = disk.secret("/configs/.auth_token", mode=0o100600, readable=False)
    assert foreign is not None
    assert foreign.status is BROKEN
