"""The children of one life, and the end of those another life left running.

A child carries the mark of its life in its environment, and so do the tools it starts;
that is how ``/proc`` tells them apart. A pid on record with its start time finds the one
that hides its environment.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from .insist import insist
from .journal import Child, Journal

logger = logging.getLogger(__name__)

MARK = "WORKSPACE_ADAPTER_BOOT"
"""The variable every child carries: journal id, boot id and life, joined by dots."""

_PROC = Path("/proc")
_PATIENCE = 5.0
"""Seconds a killed process gets to disappear; uninterruptible I/O may hold one longer."""


class LifeChildren:
    """What one session's children carry; a life is one open session, or the adapter's own."""

    def __init__(self, environ: Mapping[str, str], journal: Journal) -> None:
        self.mark = f"{journal.id}.{journal.boot_id}.{secrets.token_hex(6)}"
        self._environ = environ
        self._journal = journal
        self._marked = False

    def environ(self) -> dict[str, str]:
        """Return the environment for a child, with the mark of this life."""
        self._marked = True
        return {**self._environ, MARK: self.mark}

    async def started(self, pid: int, what: str) -> None:
        """Record a child; on disk before this returns."""
        await insist(lambda: self._journal.child_started(pid, what))

    async def reap(self) -> int:
        """End whatever of this life still runs; return how many processes that were."""
        if not self._marked:  # nobody was given the mark: there is nothing to look for
            return 0
        return await _end(lambda mark: mark == self.mark, ())


def alive(journal: Journal) -> int:
    """Count the processes that this process's lives have running; takes as long as reading ``/proc``."""
    this_boot = f"{journal.id}.{journal.boot_id}."
    return len(_found(lambda mark: mark.startswith(this_boot), set(), set()))


def end_this_boot(journal: Journal) -> None:
    """End everything this process's lives left running, from any thread."""
    this_boot = f"{journal.id}.{journal.boot_id}."
    _end_now(lambda mark: mark.startswith(this_boot), set())


async def reap_other_lives(journal: Journal) -> int:
    """End whatever an earlier process of this workspace left running; return how many."""
    ours, this_boot = f"{journal.id}.", f"{journal.id}.{journal.boot_id}."
    recorded = [child for child in journal.children() if child.boot_id != journal.boot_id]
    ended = await _end(lambda mark: mark.startswith(ours) and not mark.startswith(this_boot), recorded)
    if recorded:
        gone = [(child.pid, child.start_ticks) for child in recorded]
        await insist(lambda: journal.children_gone(gone))
    return ended


async def _end(is_ours: Callable[[str], bool], recorded: Iterable[Child]) -> int:
    records = {(child.pid, child.start_ticks) for child in recorded}
    return await anyio.to_thread.run_sync(_end_now, is_ours, records)


def _end_now(is_ours: Callable[[str], bool], records: set[tuple[int, int]]) -> int:
    """Stop all of them before one is killed: a shell whose command is killed goes on to the next."""
    stopped: set[tuple[int, int]] = set()
    spared: set[int] = set()
    deadline = time.monotonic() + _PATIENCE
    while targets := _found(is_ours, records | stopped, spared):
        fresh = [process for process in targets if process.identity not in stopped]
        for process in fresh:
            logger.info("ending process %d of an earlier life: %s", process.pid, process.name)
        for process in fresh or targets:
            try:
                os.kill(process.pid, signal.SIGSTOP if fresh else signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                logger.error("process %d (%s) of an earlier life cannot be ended", process.pid, process.name)
                spared.add(process.pid)
        stopped |= {process.identity for process in fresh}
        if time.monotonic() > deadline:
            logger.error("processes of an earlier life do not end: %s", [p.pid for p in targets])
            break
        if not fresh:
            time.sleep(0.005)
    return len(stopped)


def _found(is_ours: Callable[[str], bool], records: set[tuple[int, int]], spared: set[int]) -> list[_Process]:
    try:
        return [process for process in _targets(is_ours, records) if process.pid not in spared]
    except OSError as error:
        logger.error("the processes of an earlier life cannot be looked for: %s", error.strerror)
        return []


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    group: int
    start_ticks: int
    name: str

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.start_ticks


def _targets(is_ours: Callable[[str], bool], records: set[tuple[int, int]]) -> list[_Process]:
    """Find what must end: the marked, the recorded, their descendants and the groups they lead.

    Never this process and those it descends from: a tool of an earlier life may have started it.
    """
    processes = {process.pid: process for process in _processes()}
    above: int | None = os.getpid()
    while above is not None:
        process = processes.pop(above, None)
        above = process.parent if process is not None else None
    roots = {pid for pid, process in processes.items() if process.identity in records or is_ours(_mark(pid))}
    found = set(roots)
    grew = bool(found)
    while grew:
        grew = False
        for pid, process in processes.items():
            if pid not in found and (process.parent in found or process.group in found):
                found.add(pid)
                grew = True
    return [processes[pid] for pid in found]


def _processes() -> Iterator[_Process]:
    """List live processes; zombies have ended and wait only for their parent."""
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        if fields[0] in "ZX":
            continue
        yield _Process(int(entry.name), int(fields[1]), int(fields[2]), int(fields[19]), name)


def _mark(pid: int) -> str:
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    return next(
        (
            item[len(prefix) :].decode(errors="replace")
            for item in environ.split(b"\0")
            if item.startswith(prefix)
        ),
        "",
    )
