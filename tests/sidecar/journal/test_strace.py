"""The fsync comes before the byte."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...conftest import require
from .made import child


def syscalls(role: str, state_dir: Path, trace: Path) -> Iterator[tuple[str, str]]:
    """Run a role under strace; yield each system call's name and what it was given, in order."""
    require(shutil.which("strace") is not None, "strace is not installed")
    names = "trace=write,pwrite64,fsync,fdatasync,rename,renameat,renameat2"
    strace = ("strace", "-f", "-qq", "-y", "-s", "16", "-e", names, "-o", str(trace))
    with child(role, state_dir, prefix=strace) as process:
        said, _ = process.communicate()
    require(trace.exists(), "strace may not trace here")
    assert said == "APL"
    assert process.returncode == 0
    unfinished: dict[str, tuple[str, str]] = {}
    for line in trace.read_text().splitlines():
        pid, rest = line.split(maxsplit=1)
        if match := re.match(r"<\.\.\. (\w+) resumed>", rest):
            yield unfinished.pop(pid)
        elif match := re.match(r"(\w+)\((.*)", rest):
            if rest.endswith("<unfinished ...>"):
                unfinished[pid] = match[1], match[2]
            else:
                yield match[1], match[2]


def careless(role: str, state_dir: Path, trace: Path) -> list[str]:
    """Return the bytes that left before what they acknowledge was on disk."""
    unsynced: set[str] = set()
    changed, early = False, []
    for name, given in syscalls(role, state_dir, trace):
        match = re.match(r"(\d+)<([^>]*)>", given)
        file = Path(match[2]).name if match else ""
        if name == "pwrite64" and file == "journal.db-wal":
            unsynced.add(file)
            changed = True
        elif name == "write" and match and Path(match[2]).parent.name == "blobs":
            unsynced.add(file)
        elif name.startswith("rename") and "/blobs/" in given:
            unsynced.add("blobs")
        elif name in ("fsync", "fdatasync"):
            unsynced.discard(file)
        elif name == "write" and match and match[1] == "1":
            assert changed, "the byte acknowledges nothing"
            changed = False
            if unsynced:
                early.append(given)
    return early


def test_nothing_is_acknowledged_before_it_is_on_disk(state_dir: Path, tmp_path: Path) -> None:
    assert careless("acknowledge", state_dir, tmp_path / "trace") == []


def test_the_test_above_can_fail(state_dir: Path, tmp_path: Path) -> None:
    """With ``synchronous=NORMAL`` the log is not synced by a commit."""
    assert len(careless("acknowledge carelessly", state_dir, tmp_path / "trace")) == 3
