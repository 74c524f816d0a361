"""Your own program as provisioner: verb and id as arguments, the rest as JSON, exit codes as answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from workspace_adapter.errors import ProvisionerError
from workspace_adapter.shim.provisioners import command
from workspace_adapter.shim.provisioners.command import CommandProvisioner

from .conftest import Make

Script = Callable[..., CommandProvisioner]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def make(body: str, **environ: str) -> CommandProvisioner:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{body}\n")
        program.chmod(0o700)
        return CommandProvisioner(str(program), environ={"PATH": "/usr/bin:/bin", **environ})

    return make


async def test_it_is_told_verb_workspace_and_what_to_start_it_with(
    script: Script, workspace: Make, tmp_path: Path
) -> None:
    ours = script('echo "$1 $2" >>said; cat >"$1.json"')
    one = workspace(spec={"size": "small"})
    await ours.prepare(one)
    await ours.start(one, {"WORKSPACE_ID": "one"}, {".auth_token": "t"})
    await ours.stop(one, 7.0)
    await ours.remove(one)
    assert (tmp_path / "said").read_text().splitlines() == [
        "prepare one",
        "start one",
        "stop one",
        "remove one",
    ]
    started = json.loads((tmp_path / "start.json").read_text())
    assert started["spec"] == {"size": "small"}
    assert (started["environ"], started["secrets"]) == ({"WORKSPACE_ID": "one"}, {".auth_token": "t"})
    assert json.loads((tmp_path / "stop.json").read_text())["grace"] == 7.0


async def test_a_failure_is_told_with_what_the_program_said(script: Script, workspace: Make) -> None:
    with pytest.raises(ProvisionerError, match=r"start one` exited with 3: no such cluster"):
        await script("echo no such cluster >&2; exit 3").start(workspace(), {}, {})


@pytest.mark.parametrize(("code", "runs"), [(0, True), (1, False), (2, None), (127, None)])
async def test_whether_it_runs_is_an_exit_code(
    script: Script, workspace: Make, code: int, runs: bool | None
) -> None:
    assert await script(f"exit {code}").running(workspace()) is runs


async def test_a_program_that_hangs_is_ended_with_its_children(
    script: Script, workspace: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command._LIMITS, "stop", 1.5)
    with pytest.raises(ProvisionerError, match="longer than"):
        await script("sleep 300 & echo $! >child; wait").stop(workspace(), 0.0)
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    assert not child.exists() or ") Z" in (child / "stat").read_text()


async def test_what_a_program_starts_in_the_background_goes_on_without_it(
    script: Script, workspace: Make, tmp_path: Path
) -> None:
    """It has the program's standard error still, where nobody sent that elsewhere."""
    ours = script("sleep 300 & echo $! >child; echo it starts >&2; exit $(cat code 2>/dev/null || echo 0)")
    try:
        with anyio.fail_after(10):
            await ours.start(workspace(), {}, {})
        child = int((tmp_path / "child").read_text())
        assert ") S" in Path(f"/proc/{child}/stat").read_text()
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    (tmp_path / "code").write_text("3")
    try:
        with pytest.raises(ProvisionerError, match="exited with 3: it starts"):
            await ours.start(workspace(), {}, {})
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


async def test_a_program_that_is_not_there_names_the_setting(workspace: Make) -> None:
    ours = CommandProvisioner("/nowhere/program", environ={})
    with pytest.raises(ProvisionerError, match="SHIM_PROVISIONER_COMMAND=/nowhere/program"):
        await ours.start(workspace(), {}, {})
    assert await ours.running(workspace()) is None


async def test_it_does_not_see_the_shims_secrets(script: Script, workspace: Make, tmp_path: Path) -> None:
    await script("env >environ", SHIM_ADMIN_TOKEN="secret", KUBECONFIG="/k").prepare(workspace())
    environ = (tmp_path / "environ").read_text()
    assert "KUBECONFIG=/k" in environ
    assert "secret" not in environ
