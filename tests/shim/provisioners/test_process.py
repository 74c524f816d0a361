"""Workspaces as processes: one each, which outlives the shim and is never mistaken."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from workspace_adapter.errors import ProvisionerError
from workspace_adapter.shim.provisioners.process import ProcessProvisioner
from workspace_adapter.testing.workspace import carrying, end_all

from .conftest import Make

OBEDIENT = "trap 'exit 0' TERM; env >environ; echo up; while :; do sleep 0.02; done"
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.02; done"


@pytest.fixture
def provisioner(tmp_path: Path) -> Iterator[Callable[..., ProcessProvisioner]]:
    """Make provisioners over one directory, as one shim after another; nothing is left running."""

    def make(program: str = OBEDIENT, **environ: str) -> ProcessProvisioner:
        return ProcessProvisioner(
            tmp_path / "workspaces",
            environ={"PATH": os.environ["PATH"], **environ},
            program=["/bin/sh", "-c", program],
        )

    yield make
    for place in tmp_path.glob("workspaces/*"):
        end_all(partial(carrying, f"WORKSPACE_PROCESS={place}"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def lines(provisioner: ProcessProvisioner) -> list[str]:
    log = Path(provisioner.log("one"))
    return log.read_text().splitlines() if log.exists() else []


def pid_of(tmp_path: Path) -> int:
    return int((tmp_path / "workspaces" / "one" / "pid").read_text())


async def test_a_workspace_is_started_once_however_often_it_is_asked_for(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make
) -> None:
    first, second = provisioner(), provisioner()
    assert await first.running(workspace()) is False
    await first.start(workspace(), {}, {})
    until(lambda: lines(first))
    await first.start(workspace(), {}, {})
    await second.start(workspace(), {}, {})
    assert await second.running(workspace()) is True
    await second.stop(workspace(), 5.0)
    assert await first.running(workspace()) is False
    assert lines(first) == ["up"]


async def test_it_outlives_the_shim_and_the_next_one_knows_it(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    starter = f"""
import anyio
from pathlib import Path
from tests.shim.provisioners.test_process import OBEDIENT
from workspace_adapter.shim.provisioners.process import ProcessProvisioner
from workspace_adapter.shim.store.contract import Status, Workspace
workspace = Workspace(id="one", status=Status.ONLINE, url=None, boot_id=None, restarting=False, card=None,
    created_at=0.0, beat_at=None, active_tasks=0, max_concurrent=1, hold_until=0.0, report={{}},
    provisioner="process", spec={{}}, secret="")
provisioner = ProcessProvisioner(Path({str(tmp_path / "workspaces")!r}), environ={{}},
    program=["/bin/sh", "-c", OBEDIENT])
anyio.run(provisioner.start, workspace, {{}}, {{}})
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", starter], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    adopted = provisioner()
    until(lambda: lines(adopted))
    assert await adopted.running(workspace()) is True
    assert adopted.ended() == []
    await adopted.stop(workspace(), 5.0)
    assert await adopted.running(workspace()) is False


async def test_it_gets_its_grace_and_then_its_end(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make
) -> None:
    stubborn = provisioner(STUBBORN)
    await stubborn.start(workspace(), {}, {})
    until(lambda: lines(stubborn))
    began = time.monotonic()
    await stubborn.stop(workspace(), 0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert await stubborn.running(workspace()) is False
    await stubborn.stop(workspace(), 0.3)


async def test_a_foreign_process_is_never_taken_for_it(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    ours = provisioner()
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours))
    pid = tmp_path / "workspaces" / "one" / "pid"
    own = pid.read_text()
    # It has a handle of that number too, of something else.
    with subprocess.Popen(["/bin/sh", "-c", "exec sleep 60 9</dev/null"]) as foreign:
        try:
            until(Path(f"/proc/{foreign.pid}/fd/9").exists)
            pid.write_text(str(foreign.pid))  # as if it had ended, and its pid were another's now
            assert await ours.running(workspace()) is False
            assert ours.ended() == ["one"]
            pid.write_text(own)
            os.kill(int(own), signal.SIGKILL)
            until(lambda: ours.ended())
            pid.write_text(str(foreign.pid))
            await ours.stop(workspace(), 0.1)
            assert foreign.poll() is None
        finally:
            foreign.kill()


async def test_its_death_is_noticed_and_its_stop_is_no_death(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    ours = provisioner()
    assert ours.ended() == []
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours))
    assert ours.ended() == []
    os.kill(pid_of(tmp_path), signal.SIGKILL)
    until(lambda: ours.ended() == ["one"])
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours) == ["up", "up"])
    await ours.stop(workspace(), 5.0)
    assert ours.ended() == []


async def test_a_tool_that_got_hold_of_the_lock_does_not_keep_a_workspace_from_starting(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    ours = provisioner("setsid sleep 300 & echo up; wait")  # a shell hands its handles on
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours) == ["up"])
    os.kill(pid_of(tmp_path), signal.SIGKILL)
    until(lambda: ours.ended() == ["one"])
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours) == ["up", "up"])
    await ours.stop(workspace(), 0.0)


async def test_secrets_are_there_before_it_starts_and_are_its_own(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    reader = provisioner('cat "$CONFIGS_DIR/.auth_token"; while :; do sleep 0.02; done')
    await reader.start(workspace(), {}, {".auth_token": "first"})
    until(lambda: lines(reader) == ["first"])
    await reader.stop(workspace(), 0.0)
    await reader.start(workspace(), {}, {".auth_token": "second"})
    until(lambda: lines(reader) == ["first", "second"])
    token = tmp_path / "workspaces" / "one" / "configs" / ".auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


async def test_nothing_of_the_shims_own_environment_reaches_it_unasked(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    shim = {"SHIM_ADMIN_TOKEN": "secret-1", "AWS_SECRET_ACCESS_KEY": "secret-2", "HOME": "elsewhere"}
    ours = provisioner(**shim)
    await ours.start(workspace(), {"WORKSPACE_ID": "one"}, {})
    until(lambda: lines(ours))
    environ = (tmp_path / "workspaces" / "one" / "work" / "environ").read_text()
    assert "secret-" not in environ
    assert "WORKSPACE_ID=one" in environ.splitlines()
    assert f"HOME={tmp_path / 'workspaces' / 'one' / 'home'}" in environ.splitlines()


async def test_it_keeps_its_port_unless_somebody_took_it(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    ours = provisioner('echo "$WORKSPACE_PORT"; while :; do sleep 0.02; done')

    async def life() -> str:
        number = len(lines(ours))
        await ours.start(workspace(), {}, {})
        until(lambda: len(lines(ours)) > number)
        await ours.stop(workspace(), 0.0)
        return lines(ours)[-1]

    port = await life()
    assert await life() == port
    with socket.create_server(("127.0.0.1", int(port))):
        assert await life() != port


@pytest.mark.parametrize("left", ["", "x"])
async def test_a_port_that_a_full_disk_left_unreadable_is_another_one_then(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path, left: str
) -> None:
    ours = provisioner('echo "$WORKSPACE_PORT"; while :; do sleep 0.02; done')
    (tmp_path / "workspaces" / "one").mkdir(parents=True)
    (tmp_path / "workspaces" / "one" / "port").write_text(left)
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours))
    assert (tmp_path / "workspaces" / "one" / "port").read_text() == lines(ours)[0]


async def test_an_environment_that_no_process_can_have_fails_its_start_and_nothing_else(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make
) -> None:
    with pytest.raises(ProvisionerError, match="workspace one"):
        await provisioner().start(workspace(), {"A": "\ud800"}, {})


async def test_what_it_left_running_ends_with_it(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make
) -> None:
    ours = provisioner("setsid sleep 300 & echo $!; while :; do sleep 0.02; done")
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours))
    tool = Path("/proc") / lines(ours)[0]
    until(tool.exists)
    await ours.stop(workspace(), 0.0)
    until(lambda: not tool.exists() or ") Z" in (tool / "stat").read_text())


async def test_what_a_killed_one_left_running_ends_before_the_next_begins(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path
) -> None:
    ours = provisioner("setsid sleep 300 9>&- & echo $!; wait")
    await ours.start(workspace(), {}, {})
    until(lambda: lines(ours))
    tool = Path("/proc") / lines(ours)[0]
    os.kill(pid_of(tmp_path), signal.SIGKILL)
    until(lambda: ours.ended() == ["one"])
    assert tool.exists()
    await ours.start(workspace(), {}, {})
    assert not tool.exists() or ") Z" in (tool / "stat").read_text()
    until(lambda: len(lines(ours)) == 2)
    await ours.stop(workspace(), 0.0)


@pytest.mark.parametrize("files", ["keep", "delete"])
async def test_its_files_are_deleted_with_it_only_where_that_was_asked(
    provisioner: Callable[..., ProcessProvisioner], workspace: Make, tmp_path: Path, files: str
) -> None:
    ours = provisioner()
    one = workspace(spec={"files": files})
    await ours.start(one, {}, {})
    until(lambda: lines(ours))
    await ours.stop(one, 5.0)
    await ours.remove(one)
    await ours.remove(one)
    assert (tmp_path / "workspaces" / "one" / "work").exists() is (files == "keep")
    assert ours.ended() == []


async def test_a_directory_that_cannot_be_written_is_told(workspace: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = ProcessProvisioner(tmp_path / "file", environ={})
    with pytest.raises(ProvisionerError, match="workspace one"):
        await broken.start(workspace(), {}, {})


def test_a_spec_names_what_it_is_given_and_none_of_the_shims_variables(tmp_path: Path) -> None:
    ours = ProcessProvisioner(tmp_path, environ={})
    assert ours.problems({"environ": {"A": "b"}, "inherit": ["ANTHROPIC_API_KEY"], "files": "delete"}) == ()
    wrong = ours.problems({"image": "x", "environ": {"A": 1}, "inherit": ["SHIM_ADMIN_TOKEN"], "files": "?"})
    assert len(wrong) == 4
