from __future__ import annotations

import re
import socket
from pathlib import Path

import anyio
import pytest

from workspace_adapter.errors import JournalTaken, StateDirError
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.turns import State

from .made import NOW, accept, answered, child, message, running, scalar


async def test_a_network_file_system_is_refused_by_name(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / {tmp_path} rw - nfs4 server:/export rw\n")
    monkeypatch.setattr("workspace_adapter.sidecar.mounts.TABLE", mounts)
    with pytest.raises(StateDirError, match=r"network file system \(nfs4\).*WORKSPACE_STATE_DIR"):
        await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    assert not state_dir.exists()


async def test_the_state_directory_is_made_for_us_alone_and_kept_out_of_git(tmp_path: Path) -> None:
    state_dir = tmp_path / "deep" / "state"
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    assert state_dir.stat().st_mode & 0o777 == 0o700
    assert (state_dir / ".gitignore").read_text() == "*\n"
    modes = {path.name: path.stat().st_mode & 0o077 for path in state_dir.glob("journal.*")}
    assert modes == dict.fromkeys(modes, 0)
    assert "journal.db-wal" in modes
    await journal.close()


async def test_a_directory_that_cannot_hold_a_journal_is_refused_with_the_reason(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for state_dir in (in_the_way, in_the_way / "state", Path("/proc/self/state")):
        with pytest.raises(
            StateDirError, match=rf"{state_dir} cannot be used \(.+\): set WORKSPACE_STATE_DIR"
        ):
            await Journal.open(state_dir, boot_id="boot-1", now=NOW)


async def test_a_second_process_gives_up_after_its_patience_and_names_the_owner(state_dir: Path) -> None:
    with child("own", state_dir) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        who = rf"process {owner.pid} on {socket.gethostname()} \(boot boot-{owner.pid}, since 20\d\d-"
        with pytest.raises(StateDirError, match=f"in use by {who}"):
            await Journal.open(state_dir, boot_id="second", now=NOW, patience=0.15)
        assert scalar(state_dir / "journal.db", "SELECT boot_id FROM owner") == f"boot-{owner.pid}"
        owner.communicate("leave\n")


async def test_a_second_process_waits_for_a_predecessor_that_leaves(state_dir: Path) -> None:
    with child("own", state_dir) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        owner.stdout.readline()
        opened: list[Journal] = []

        async def open_journal() -> None:
            opened.append(await Journal.open(state_dir, boot_id="second", now=NOW))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_journal)
            await anyio.sleep(0.2)  # the loop goes on while it waits
            assert opened == []
            owner.stdin.write("leave\n")
            owner.stdin.flush()
        await opened[0].probe()
        await opened[0].close()


async def test_a_predecessor_that_was_killed_is_not_waited_for(state_dir: Path) -> None:
    with child("own", state_dir) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        owner.kill()
    journal = await Journal.open(state_dir, boot_id="second", now=NOW, patience=0)
    await journal.close()


async def test_a_journal_that_was_taken_over_changes_nothing_any_more(state_dir: Path) -> None:
    health: list[bool] = []
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW, on_health=health.append)
    turn = await running(journal)
    (state_dir / "journal.lock").unlink()
    other = await Journal.open(state_dir, boot_id="boot-2", now=NOW)
    with pytest.raises(JournalTaken, match=r"owned by boot boot-2 now; this one \(boot-1\)"):
        await accept(journal, message("m2"))
    with pytest.raises(JournalTaken):
        await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", now=NOW)
    assert health == [False]
    assert other.turns() == [turn]
    await answered(other, "m3")
    await journal.close()
    await other.close()


async def test_a_lock_file_in_disorder_does_not_matter(state_dir: Path) -> None:
    state_dir.mkdir()
    lock = state_dir / "journal.lock"
    lock.write_text("not JSON, and longer than what stands here afterwards" * 9)
    journal = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    assert re.fullmatch(
        r'\{"boot_id": "boot-1", "pid": \d+, "host": ".*", "since": [\d.]+\}', lock.read_text()
    )
    lock.write_text("{}")
    with pytest.raises(StateDirError, match="in use by another process"):
        await Journal.open(state_dir, boot_id="boot-2", now=NOW, patience=0)
    await journal.close()
