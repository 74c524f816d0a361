"""Whatever a life left running is ended, and nothing else."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import anyio
import pytest

from workspace_adapter.sidecar.children import MARK, LifeChildren, end_this_boot, reap_other_lives
from workspace_adapter.sidecar.journal import Journal, schema


@asynccontextmanager
async def journal(root: Path, boot_id: str) -> AsyncIterator[Journal]:
    opened = await Journal.open(root / "state", boot_id=boot_id, now=time.time())
    try:
        yield opened
    finally:
        await opened.close()


@contextmanager
def started(command: str, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a shell in a session of its own; end it at last, whatever became of it."""
    process = subprocess.Popen(
        ["sh", "-c", command], env=environ | {"PATH": os.environ["PATH"]}, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def read(file: Path) -> int:
    """Return the number that a process writes into a file."""
    with anyio.fail_after(10):
        while not (file.exists() and file.read_text().strip()):
            await anyio.sleep(0.01)
    return int(file.read_text())


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize(
    "command",
    [
        "echo $$ > pid; exec sleep 60",
        "sleep 60 & echo $! > pid; wait",
        "setsid sh -c 'echo $$ > pid; exec sleep 60' & wait",
        "(setsid sh -c 'echo $$ > pid; exec sleep 60' &) ; sleep 60",
        "env -i PATH=$PATH sh -c 'echo $$ > pid; exec sleep 60' & wait",
        "env -i PATH=$PATH setsid sh -c 'echo $$ > pid; exec sleep 60' & wait",
        "trap '' TERM INT HUP; echo $$ > pid; while :; do sleep 1; done",
    ],
)
async def test_a_child_ends_with_its_life_however_it_hides(tmp_path: Path, command: str) -> None:
    async with journal(tmp_path, "one") as now:
        life = LifeChildren({}, now)
        with started(f"cd {tmp_path}; {command}", life.environ()):
            pid = await read(tmp_path / "pid")
            assert alive(pid)
            assert await life.reap() > 0
            assert not alive(pid)


async def test_a_shell_whose_command_is_ended_does_not_go_on_to_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")  # what is said between two kills takes its time in life, too
    many = "for n in $(seq 100); do (touch $n; sleep 60; echo $n >> went-on) & done; echo $$ > pid; wait"
    async with journal(tmp_path, "one") as now:
        life = LifeChildren({}, now)
        with started(f"cd {tmp_path}; {many}", life.environ()):
            await read(tmp_path / "pid")
            with anyio.fail_after(10):
                while not all((tmp_path / str(n)).exists() for n in range(1, 101)):
                    await anyio.sleep(0.01)
            assert await life.reap() > 100
    assert not (tmp_path / "went-on").exists()


async def test_one_life_does_not_touch_another_nor_another_workspace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with journal(tmp_path / "a", "one") as ours, journal(tmp_path / "b", "one") as theirs:
        first, second = LifeChildren({}, ours), LifeChildren({}, ours)
        foreign = LifeChildren({}, theirs)
        with (
            started("sleep 60 & wait", first.environ()) as one,
            started("sleep 60 & wait", second.environ()) as two,
            started("sleep 60 & wait", foreign.environ()) as other,
            started("sleep 60 & wait", {}) as stranger,
        ):
            await first.reap()
            assert [alive(p.pid) for p in (one, two, other, stranger)] == [False, True, True, True]
            await reap_other_lives(ours)
            assert alive(two.pid), "of this boot"
            end_this_boot(ours)
            assert [alive(p.pid) for p in (two, other, stranger)] == [False, True, True]


async def test_a_life_that_gave_its_mark_to_nobody_searches_for_nobody(tmp_path: Path) -> None:
    async with journal(tmp_path, "now") as now:
        life = LifeChildren({}, now)
        with started("sleep 60", {MARK: life.mark}) as stranger:
            assert await life.reap() == 0
            assert alive(stranger.pid)


async def test_an_earlier_boot_is_ended_by_its_mark_or_by_its_record(tmp_path: Path) -> None:
    async with journal(tmp_path, "one") as before:
        life = LifeChildren({}, before)
        with started("sleep 60 & wait", life.environ()) as marked, started("sleep 60 & wait", {}) as hidden:
            await life.started(hidden.pid, "it hides its environment")
            await before.close()
            async with journal(tmp_path, "two") as after:
                assert await reap_other_lives(after) >= 4
                assert not alive(marked.pid)
                assert not alive(hidden.pid)
                assert after.children() == []


async def test_a_sidecar_started_by_a_tool_ends_neither_itself_nor_those_above_it(tmp_path: Path) -> None:
    async with journal(tmp_path, "one") as before:
        environ = LifeChildren({}, before).environ()
    reaps = f"""
import os, subprocess, sys, time
import anyio
from pathlib import Path
from workspace_adapter.sidecar.children import reap_other_lives
from workspace_adapter.sidecar.journal import Journal

async def main():
    journal = await Journal.open(Path({str(tmp_path / "state")!r}), boot_id="two", now=time.time())
    ours = subprocess.Popen(["sleep", "60"], env={{}})
    await reap_other_lives(journal)
    print("alive", ours.poll(), flush=True)
    ours.kill()
    await journal.close()

anyio.run(main)
"""
    said = subprocess.run(
        ["sh", "-c", 'sleep 60 & "$0" -c "$1"; echo "the tool goes on"; kill %1', sys.executable, reaps],
        env=environ | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=30,
        start_new_session=True,
        check=False,
    )
    assert said.stdout == "alive None\nthe tool goes on\n", said.stderr
    assert MARK in environ


async def test_children_are_recorded_and_forgotten_as_soon_as_the_journal_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it could not, the runtime's turn would fail, or the boot end."""
    monkeypatch.setattr(schema, "LOCK_PATIENCE", 0.01)
    async with journal(tmp_path, "boot-1") as opened:
        other = sqlite3.connect(tmp_path / "state" / "journal.db", isolation_level=None)
        children = LifeChildren({}, opened)
        with started("exec sleep 60", children.environ()) as process, closing(other):
            async with anyio.create_task_group() as at_once:
                other.execute("BEGIN IMMEDIATE")
                at_once.start_soon(children.started, process.pid, "sleep")
                await anyio.sleep(0.1)
                other.execute("ROLLBACK")
            assert [child.pid for child in opened.children()] == [process.pid]
    async with journal(tmp_path, "boot-2") as opened:
        other = sqlite3.connect(tmp_path / "state" / "journal.db", isolation_level=None)
        async with anyio.create_task_group() as at_once:
            with closing(other):
                other.execute("BEGIN IMMEDIATE")
                at_once.start_soon(reap_other_lives, opened)
                await anyio.sleep(0.1)
                other.execute("ROLLBACK")
        assert opened.children() == []
