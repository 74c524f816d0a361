"""Children that end when we do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workspace_adapter.runtimes.process import launcher, leashed

from .claude_stand import Stand, bash, script, stand, until

__all__ = ["stand"]

PARENT = """
import os, subprocess, sys
from pathlib import Path
from workspace_adapter.runtimes.process import launcher, leashed
program = launcher(Path(sys.argv[1]), Path("/bin/sleep"))
child = subprocess.Popen([program, "60"], env=leashed({"NAME": "value"}))
print(child.pid, flush=True)
sys.stdin.read()
"""

HOLDER = """
import sys
from pathlib import Path
import anyio
from tests.runtimes.claude_stand import MarkedChildren, RecordingGate, turn
from workspace_adapter.adapter import SessionContext
from workspace_adapter.runtimes.claude import ClaudeAdapter

async def hold(root, mark, url, text):
    children = MarkedChildren({
        "PATH": "/usr/bin:/bin", "HOME": str(root / "home"),
        "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "key-of-the-test",
    }, mark)
    context = SessionContext(session_id="ctx-1", workdir=root / "work", state_dir=root / "state",
                             gate=RecordingGate(), children=children)
    async with ClaudeAdapter().open_session(context) as session:
        async for event in session.run_turn(turn(text)):
            pass

anyio.run(hold, Path(sys.argv[1]), *sys.argv[2:])
"""


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
async def test_a_child_on_the_leash_ends_with_its_parent(tmp_path: Path, sig: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        await until(lambda: Path(f"/proc/{child}/cmdline").read_bytes() == b"/bin/sleep\x0060\x00")
        parent.send_signal(sig)
    await until(lambda: not running(child), within=3)


def test_a_child_on_the_leash_gets_its_environment_exactly(tmp_path: Path) -> None:
    program = launcher(tmp_path, Path("/usr/bin/env"))
    inherited = {"A_SECRET": "s3cret", "KEPT": "kept"}
    given = leashed({"NAME": "a=b\nc", "EMPTY": ""}, also=["KEPT"])
    done = subprocess.run([program, "-0"], env=inherited | given, capture_output=True, check=True)
    assert sorted(done.stdout.decode().split("\0")) == ["", "EMPTY=", "KEPT=kept", "NAME=a=b\nc"]


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    program = launcher(tmp_path, Path("/bin/echo"))
    environ = leashed({})
    inner = f"import subprocess, sys; sys.exit(subprocess.run(['{program}', 'started']).returncode)"
    done = subprocess.run([sys.executable, "-c", inner], env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "started" not in done.stdout
    assert "parent is gone" in done.stderr


def test_a_launcher_is_written_once_and_anew_when_it_must_say_something_else(tmp_path: Path) -> None:
    program = launcher(tmp_path, Path("/bin/echo"))
    written = program.stat().st_mtime_ns
    assert launcher(tmp_path, Path("/bin/echo")) == program
    assert program.stat().st_mtime_ns == written
    assert launcher(tmp_path, Path("/usr/bin/echo")) == program
    assert "/usr/bin/echo" in program.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [program.name]


async def test_claude_and_its_tools_end_when_their_sidecar_is_killed(stand: Stand) -> None:
    text = script(bash("echo begun >> effects; sleep 30; echo ended >> effects"), {"text": "x"})
    root, mark = str(stand.root), stand.children.mark
    command = [sys.executable, "-c", HOLDER, root, mark, stand.model.url, text]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env=dict(os.environ)) as holder:
        await until(lambda: stand.effects == ["begun"], within=20)
        assert stand.children.alive()
        holder.kill()
    # Told to stop inside a tool, the CLI takes 2.1 or 3.6 s, timers of its own.
    await until(lambda: not stand.children.alive(), within=10, what="the CLI and its tool are gone")
    assert stand.effects == ["begun"]
