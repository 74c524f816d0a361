"""The processes of this machine, as ``/proc`` tells of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process for ever: a pid may be used again, with its start time it may not."""

    pid: int
    parent: int
    start: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        now = _read(self.pid)
        return now is not None and now.start == self.start

    def carries(self, mark: str) -> bool:
        """Whether its environment holds this text; ``False`` where that cannot be read."""
        try:
            return mark.encode() in (_PROC / str(self.pid) / "environ").read_bytes()
        except OSError:
            return False

    def kill(self) -> None:
        """End it now; harmless when it has ended."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def marked(mark: str) -> list[Process]:
    """Return every process whose environment holds this text."""
    return [process for process in _all() if process.carries(mark)]


def descendants(pid: int) -> list[Process]:
    """Return the children of a process, their children, and so on."""
    found, processes = {pid}, list(_all())
    grew = True
    while grew:
        more = {process.pid for process in processes if process.parent in found} - found
        grew = bool(more)
        found |= more
    return [process for process in processes if process.pid in found - {pid}]


def _all() -> Iterator[Process]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (process := _read(int(entry.name))) is not None:
            yield process


def _read(pid: int) -> Process | None:
    """Read one process; ``None`` when it has ended, also while its parent does not know yet."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")[:200]
    except OSError:
        return None
    # state, parent, … of a line whose second field may itself hold blanks and brackets
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[1]), int(fields[19]), command.decode(errors="replace").strip())
