"""What is wrong with the container is said: at the start, and by the doctor."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ..conftest import require
from . import disk
from .workspace import workspace

AS_PID_1 = ("unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "workspace_adapter")


async def test_a_start_says_that_its_journal_will_not_last_and_that_there_is_no_init(tmp_path: Path) -> None:
    require(os.geteuid() == 0 and shutil.which("unshare") is not None, "only root makes a PID namespace")
    with disk.small(tmp_path / "volume", "16m") as volume:
        async with workspace(tmp_path, "echo", start=False, WORKSPACE_STATE_DIR=f"{volume}/state") as ws:
            ws.program = AS_PID_1
            await ws.start()
            lines = ws.logged().splitlines()
    (memory,) = [line for line in lines if f"WORKSPACE_STATE_DIR={volume}/state is in memory (tmpfs)" in line]
    (no_init,) = [line for line in lines if "the sidecar is PID 1" in line]
    assert " error " in memory
    assert "mount a volume there" in memory
    assert " warning " in no_init
    assert "docker run --init" in no_init
