"""What the kernel saw: on disk before the reply, on disk before the tool."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from ..conftest import require
from .workspace import answer_of, script, workspace

NORMAL = """
import sqlite3
class Lax(sqlite3.Connection):
    def execute(self, sql, *rest):
        return super().execute(sql.replace("synchronous=FULL", "synchronous=NORMAL"), *rest)
connect = sqlite3.connect
sqlite3.connect = lambda *args, **options: connect(*args, **options | {"factory": Lax})
import sys
from workspace_adapter.__main__ import main
sys.exit(main())
"""
"""The sidecar with a journal that is written and not synced."""

SYNCED = re.compile(r"f(data)?sync(\(.*\)| resumed>\)) += 0")


def synced(trace: list[str], text: str) -> bool:
    """Say whether the last journal write that holds this text was synced within the trace."""
    writes = [n for n, line in enumerate(trace) if "pwrite64" in line and "-wal" in line and text in line]
    assert writes, f"{text!r} was not written to the journal"
    return any(SYNCED.search(line) for line in trace[writes[-1] :])


@pytest.mark.parametrize("careful", [True, False])
async def test_the_journal_is_synced_before_the_reply_and_before_the_tool_starts(
    tmp_path: Path, careful: bool
) -> None:
    require(shutil.which("strace") is not None, "strace is not installed")
    trace = tmp_path / "trace"
    async with workspace(tmp_path, start=False) as ws:
        python = [sys.executable, *(["-m", "workspace_adapter"] if careful else ["-c", NORMAL])]
        calls = "trace=pwrite64,fdatasync,fsync,execve,sendto,sendmsg,write,writev"
        ws.program = ["strace", "-f", "-y", "-s", "5000", "-o", str(trace), "-e", calls, *python]
        await ws.start()
        text = script({"tool": "sh", "input": "echo the-effect >> effects"}, {"answer": "the-answer"})
        assert answer_of((await ws.send(text)).json()) == "the-answer"
        assert ws.lines() == ["the-effect"]
        ws.kill_everything()
    lines = trace.read_text(errors="replace").splitlines()
    tool = next(n for n, line in enumerate(lines) if "execve(" in line and "the-effect" in line)
    reply = max(n for n, line in enumerate(lines) if "HTTP/1.1 200" in line)
    assert synced(lines[:tool], "the-effect") is careful, "the permit, before the tool"
    assert synced(lines[:reply], "the-answer") is careful, "the answer, before the reply"
