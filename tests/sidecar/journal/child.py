"""What the tests of the journal do in processes of their own; each role is a function."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

import anyio

from workspace_adapter.errors import JournalUnavailable
from workspace_adapter.sidecar.journal import Journal, NewEvent
from workspace_adapter.turns import State

from .made import ANSWERED, NOW, accept, call, message, running


def say(*words: object) -> None:
    print(*words, flush=True)


async def _open(state_dir: Path) -> Journal:
    return await Journal.open(state_dir, boot_id=f"boot-{os.getpid()}", now=NOW)


async def work(state_dir: Path) -> None:
    """Do everything to many turns at once, saying what was acknowledged, until killed."""
    journal = await _open(state_dir)
    large = "x" * 300_000

    async def one(name: str) -> None:
        turn_id = f"turn-{name}"
        big = hash(name) % 7 == 0
        await accept(journal, message(name, message=large.encode() if big else b"{}"))
        say("accepted", turn_id)
        turn = await journal.start(turn_id, expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=NOW)
        say("running", turn_id)
        assert await journal.permit(turn_id, turn.attempt, call("c"), now=NOW)
        say("permitted", turn_id)
        await journal.append(turn_id, turn.attempt, [NewEvent(kind="text", body={})] * 3, now=NOW)
        say("logged", turn_id)
        await journal.end_call(turn_id, turn.attempt, "c", ok=True, now=NOW)
        say("ended", turn_id)
        await journal.finish(
            turn_id,
            attempt=1,
            to=State.ANSWERED,
            cause="",
            outcome=ANSWERED,
            answer=large if big else name,
            now=NOW,
        )
        say("answered", turn_id)
        journal.delivered(turn_id, now=NOW)

    async def caller(lane: int) -> None:
        n = 0
        while True:
            await one(f"{os.getpid()}-{lane}-{n}")
            n += 1

    async with anyio.create_task_group() as callers:
        for lane in range(16):
            callers.start_soon(caller, lane)


async def own(state_dir: Path) -> None:
    """Own the journal until told to leave, then leave in good order."""
    journal = await _open(state_dir)
    say("ready")
    await anyio.to_thread.run_sync(sys.stdin.readline)
    await journal.close()


async def fill(state_dir: Path) -> None:
    """Run into a full disk, say how that went, and go on once there is room."""
    health: list[bool] = []
    journal = await Journal.open(state_dir, boot_id="boot", now=NOW, on_health=health.append)
    await running(journal, "before")
    files = [state_dir / "journal.db", state_dir / "journal.db-wal"]
    room = max(file.stat().st_size for file in files) + 64 * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    taken, n = 0, 0
    error: JournalUnavailable | None = None
    while error is None:
        n += 1
        try:
            await accept(journal, message(f"m{n}", message=b"x" * 8000))
            taken = n
        except JournalUnavailable as full:
            error = full
    say(taken, health, error)
    try:
        await accept(journal, message("large", message=b"x" * 300_000))
    except JournalUnavailable as full:
        say(full)
    say((await accept(journal, message("before"))).joined, journal.counts()[State.ACCEPTED])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await journal.probe()
    assert await journal.permit("turn-before", 1, call(), now=NOW)
    await accept(journal, message("after"))
    say(health)
    os.kill(os.getpid(), 9)


async def acknowledge(state_dir: Path, *, synchronous: str) -> None:
    """Accept a message and start a tool, each followed by a byte to whoever asked."""
    journal = await _open(state_dir)
    journal._files.writing.execute(f"PRAGMA synchronous={synchronous}")
    await accept(journal, message("m1"))
    os.write(1, b"A")
    turn = await journal.start("turn-m1", expect=State.ACCEPTED, attempt=0, strikes=0, cut=None, now=NOW)
    await journal.permit(turn.id, 1, call(), now=NOW)
    os.write(1, b"P")
    await accept(journal, message("m2", message=b"x" * 300_000))
    os.write(1, b"L")
    await journal.close()


ROLES: dict[str, Callable[[Path], Coroutine[None, None, None]]] = {
    "work": work,
    "own": own,
    "fill": fill,
    "acknowledge": partial(acknowledge, synchronous="FULL"),
    "acknowledge carelessly": partial(acknowledge, synchronous="NORMAL"),
}

if __name__ == "__main__":
    anyio.run(ROLES[sys.argv[1]], Path(sys.argv[2]))
