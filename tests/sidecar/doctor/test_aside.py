from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRY = """
import sys, time, os, signal, subprocess
from workspace_adapter.sidecar.doctor.aside import Aside, Failed

def hangs(): time.sleep(60)
def raises(): raise KeyError("no such thing")
def leaves(): sys.exit(3)
def dies(): os.kill(os.getpid(), signal.SIGKILL)
def prints(): print("noise"); sys.stderr.write("noise"); os.write(1, b"noise"); return "quiet"
def secret(): return lambda: None  # cannot be copied
def starts(): subprocess.Popen(["sleep", "61"]); time.sleep(60)

aside = Aside(globals()[sys.argv[1]])
try:
    print(aside.outcome(float(sys.argv[2])))
except TimeoutError:
    print("late")
except Failed as error:
    print("failed:", error)
finally:
    aside.end()
"""


@pytest.mark.parametrize(
    ("work", "limit", "printed"),
    [
        ("prints", 20.0, "quiet"),
        ("hangs", 0.2, "late"),
        ("raises", 20.0, "failed: KeyError: 'no such thing'"),
        ("leaves", 20.0, "failed: SystemExit: 3"),
        ("dies", 20.0, "failed: its process was killed"),
        ("secret", 20.0, "failed: its process was killed"),
        ("starts", 0.5, "late"),
    ],
)
def test_whatever_is_done_aside_comes_to_an_end(work: str, limit: float, printed: str) -> None:
    mark = f"ASIDE_TEST={os.urandom(8).hex()}"
    done = subprocess.run(
        [sys.executable, "-c", TRY, work, str(limit)],
        env={**os.environ, **dict([mark.split("=")])},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == (printed, "")
    assert [path for path in Path("/proc").glob("[0-9]*/environ") if mark in environ_of(path)] == []


def environ_of(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
