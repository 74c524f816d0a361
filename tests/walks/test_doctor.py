"""What is wrong with the container is said: at the start, and by the doctor."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from workspace_adapter.testing import FakePlatform

from ..conftest import require
from . import disk
from .workspace import ENDS, Workspace, workspace

AS_PID_1 = (
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *(sys.executable, "-m", "workspace_adapter"),
)


class Told(NamedTuple):
    """One finding, as the doctor prints it."""

    check: str
    status: str
    found: str
    todo: str


class Examined:
    """What one run of the doctor said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stderr == ""
        printed = json.loads(done.stdout)
        self.code = done.returncode
        self.findings = [Told(**finding) for finding in printed["findings"]]
        statuses = {finding.status for finding in self.findings}
        assert printed["status"] == next((bad for bad in ("broken", "warning") if bad in statuses), "ok")
        assert self.code == ("broken" in statuses)

    def of(self, *statuses: str) -> list[Told]:
        return [finding for finding in self.findings if finding.status in statuses]

    def said(self, words: str) -> Told:
        """The one finding that says so."""
        found = [finding for finding in self.findings if words in finding.found]
        assert len(found) == 1, (words, self.findings)
        return found[0]


def examine(ws: Workspace, *before: str, **environ: str) -> Examined:
    command = [*before, sys.executable, "-m", "workspace_adapter", "doctor", "--json"]
    asked = {**ws.environ, **environ}
    done = subprocess.run(
        command, env=asked, cwd=ws.root, capture_output=True, text=True, timeout=60, check=False
    )
    return Examined(done)


async def test_a_container_without_volume_and_init_is_told_of_by_the_start_and_by_the_doctor(
    tmp_path: Path,
) -> None:
    require(os.geteuid() == 0 and shutil.which("nsenter") is not None, "only root makes a PID namespace")
    with disk.small(tmp_path / "volume", "16m") as volume:
        async with workspace(tmp_path, "echo", start=False, WORKSPACE_STATE_DIR=f"{volume}/state") as ws:
            ws.program = AS_PID_1
            await ws.start()
            lines = ws.logged().splitlines()
            assert ws.process is not None
            children = Path(f"/proc/{ws.process.pid}/task/{ws.process.pid}/children").read_text()
            told = examine(ws, "nsenter", f"--target={children.strip()}", "--pid", "--mount")
    lost = f"WORKSPACE_STATE_DIR={volume}/state is in memory (tmpfs)"
    no_init = "the sidecar is PID 1: a SIGTERM while Python starts is lost"
    assert [" error " in line and "mount a volume there" in line for line in lines if lost in line] == [True]
    assert [" warning " in line and "--init" in line for line in lines if no_init in line] == [True]
    assert told.said(lost).status == "broken"
    assert told.said(no_init).status == "warning"
    assert "--init" in told.said("does not reap").todo
    assert told.said("a sidecar runs: boot").check == "sidecar"


async def test_a_workspace_that_is_well_is_said_to_be_so_and_is_not_touched(tmp_path: Path) -> None:
    """Beside a live sidecar, on a disk, with a platform that knows it; then while it drains."""
    configs = tmp_path / "configs"
    with (
        disk.ext4(tmp_path / "image", tmp_path / "volume") as volume,
        FakePlatform(configs_dir=configs) as platform,
    ):
        platform.provision()
        inbound = configs / ".platform_inbound_secret"
        inbound.touch(mode=0o600)
        inbound.write_text(platform.tokens.inbound_secret)
        settings = {
            "PLATFORM_URL": platform.url,
            "WORKSPACE_STATE_DIR": f"{volume}/state",
            "WORKSPACE_REQUIRE_AUTH": "true",
            "WORKSPACE_JOURNAL_LIMIT_BYTES": "16MiB",
        }
        async with workspace(tmp_path, ENDS, start=True, **settings) as ws:
            ws.state_dir = volume / "state"
            ws.environ["WORKSPACE_URL"] = ws.url
            before = len(platform.received)
            names, journal = {*ws.state_dir.rglob("*")}, (ws.state_dir / "journal.db").read_bytes()
            well = examine(ws)
            assert {*ws.state_dir.rglob("*")} == names
            assert (ws.state_dir / "journal.db").read_bytes() == journal
            assert {e.method for e in platform.received[before:] if e.path.endswith("/activity")} == {"GET"}

            assert well.of("broken") == []
            assert {found.check for found in well.of("ok")} >= {"settings", "platform", "port", "runtime"}
            assert f"PLATFORM_URL={platform.url} answers, and knows our token" in well.said("PLATFORM").found
            assert well.said(f"WORKSPACE_URL={ws.url} leads to").status == "ok"
            assert well.said("tells a right bearer from a wrong one").status == "ok"
            assert well.said("the running sidecar was started with another WORKSPACE_URL").status == "warning"

            assert ws.command("drain").returncode == 0
            drained = examine(ws)
            assert drained.of("broken") == []
            assert drained.said("a sidecar runs").found.endswith(", drained")

            elsewhere = tmp_path / "elsewhere"
            elsewhere.mkdir()
            token = elsewhere / ".auth_token"
            token.write_text("another")
            token.chmod(0o644)
            (elsewhere / inbound.name).write_text("another")
            ill = examine(ws, CONFIGS_DIR=str(elsewhere), WORKSPACE_URL="http://127.0.0.1:1")
            assert ill.said("does not accept the token in CONFIGS_DIR").status == "broken"
            assert ill.said(".auth_token can be read by every user (mode 644)").todo == f"chmod 600 {token}"
            assert ill.said("answers the inbound secret of CONFIGS_DIR with 401").status == "broken"
            assert ill.said("WORKSPACE_URL=http://127.0.0.1:1 does not answer").status == "warning"
            assert "another" not in ill.said("does not accept").found


async def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """With no sidecar: settings, owner, disk, port, platform, runtime."""
    silent = socket.create_server(("127.0.0.1", 0))
    taken = socket.create_server(("127.0.0.1", 0))
    with disk.small(tmp_path / "volume", "1m") as volume, silent, taken:
        state = volume / "state"
        state.mkdir(mode=0o755)
        disk.fill(volume)
        os.chown(state, 12345, 12345)
        async with workspace(tmp_path, "echo", start=False, WORKSPACE_STATE_DIR=str(state)) as ws:
            told = examine(
                ws,
                PLATFORM_URL=f"https://127.0.0.1:{silent.getsockname()[1]}",
                WORKSPACE_PORT=str(taken.getsockname()[1]),
                WORKSPACE_ADAPTER="workspace_adapter.testing.broken:nothing",
                WORKSPACE_STOP_TIMEOUT="1",
                WORKSPACE_STOP_TIMEOUTS="20",
                WORKSPACE_REQUIRE_AUTH="true",
            )
    broken = [
        "WORKSPACE_STOP_GRACE=3 must be at least 1 s shorter",
        "'workspace_adapter.testing.broken:nothing'",
        "cannot be written: No space left on device",
        "is in memory (tmpfs)",
        "is full (0 bytes free): no message is taken",
        "CONFIGS_DIR",
        "cannot be reached: no answer within",
        "is taken by another process (no sidecar)",
    ]
    for words in broken:
        assert words in " ".join(finding.found for finding in told.of("broken"))
    assert told.said("belongs to user 12345, and this is user 0").status == "warning"
    assert "before its settings are right" in told.said("the runtime").found


async def test_a_disk_that_does_not_answer_is_said_and_passed_over(tmp_path: Path) -> None:
    require(os.access("/dev/fuse", os.R_OK | os.W_OK), "there is no FUSE here")
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0"
    with disk.mounted("dead", tmp_path / "dead", "fuse", options, descriptor=descriptor) as dead:
        try:
            async with workspace(tmp_path, "echo", start=False, WORKSPACE_STATE_DIR=f"{dead}/state") as ws:
                began = time.monotonic()
                told = examine(ws)
                took = time.monotonic() - began
        finally:
            os.close(descriptor)  # or the unmounting would wait for an answer, too
    assert took < 20
    assert "cannot be found out within" in told.said("whether a sidecar runs").found
    hanging = [finding.found for finding in told.of("broken") if "takes longer than" in finding.found]
    assert {words.split(" takes")[0] for words in hanging} == {
        "looking at the state directory",
        "looking at the journal",
        "looking at the disk space",
    }
    assert told.said("the runtime echo can be started").status == "ok"


async def test_nothing_that_is_missing_breaks_it(tmp_path: Path) -> None:
    """No environment, no directories, no output."""
    bare = [sys.executable, "-m", "workspace_adapter", "doctor"]
    done = subprocess.run(bare, env={}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "WORKSPACE_ID is required" in done.stdout
    assert done.stderr == ""
    closed = f'"{sys.executable}" -m workspace_adapter doctor >&- <&-'
    ended = subprocess.run(
        ["sh", "-c", closed], env={}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
