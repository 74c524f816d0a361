"""The platform as a command that starts and restarts a real workspace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import inherited
from workspace_adapter.testing.proc import marked

PATIENCE = 30


def test_the_command_runs_a_workspace_and_takes_it_along(tmp_path: Path) -> None:
    marks = inherited()
    environ = marks | {
        "HOME": str(tmp_path),
        "WORKSPACE_ADAPTER": "echo",
        "WORKSPACE_HOST": "127.0.0.1",
        "WORKSPACE_PORT": "0",
        "WORKSPACE_STATE_DIR": str(tmp_path / "state"),
        "WORKSPACE_WORKDIR": str(tmp_path),
    }
    platform = [sys.executable, "-m", "workspace_adapter.testing.platform", "--configs-dir", "configs"]
    workspace = [sys.executable, "-m", "workspace_adapter", "serve"]
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*platform, "--", *workspace],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as running,
    ):
        assert running.stdout is not None
        said: list[str] = []

        def until(line: str) -> None:
            assert running.stdout is not None
            for heard in running.stdout:
                said.append(heard.strip())
                if said[-1] == line:
                    return
            pytest.fail(f"never said {line}: {said}, {log.read_text()}")

        try:
            url = running.stdout.readline().strip()
            until("POST /registry/register -> 200")
            until("POST /registry/heartbeat -> 200")
            assert httpx.post(f"{url}/admin/workspaces/ws-test/restart").status_code == 202
            until("POST /registry/register -> 200")
        finally:
            running.terminate()
        assert running.wait(PATIENCE) == 0
    assert not [line for line in said if line.startswith("VIOLATION")]
    assert marked(str(tmp_path / "state")) == []
