"""The wall clock is set while a workspace lives, and again while it is down: nobody loses anything by it."""

from __future__ import annotations

import base64
import sqlite3
import sys
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from ..conftest import require
from .workspace import Workspace, answer_of, script, workspace

LIBRARY = next(iter(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1")), None)

HOUR, DAY, YEAR = 3600, 86400, 365 * 86400
TO_1970 = DAY - int(time.time())

BUSY_HOUSEKEEPING = """
import pathlib, sys
from workspace_adapter.sidecar import housekeeping
from workspace_adapter.sidecar.journal import Journal
prune = Journal.prune
async def told(self, **options):
    deleted = await prune(self, **options)
    with pathlib.Path("pruned").open("a") as file:
        print(deleted, file=file)
    return deleted
Journal.prune = told
housekeeping._PRUNE_EVERY = 0.1
from workspace_adapter.__main__ import main
sys.exit(main())
"""
"""The sidecar, which looks after its retention all the time and says how much went."""


class Clock:
    """The wall clock that a workspace and its commands see; the monotonic one is let alone."""

    def __init__(self, ws: Workspace) -> None:
        self._file = ws.root / "clock"
        self.set(0)
        ws.environ |= {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds; without it every look at the clock reads the file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # or Python's threads wait far too long for one another
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset: int) -> None:
        """Set it so many seconds off the right time, at one stroke."""
        self.offset = offset
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset:+d}")
        fresh.rename(self._file)


def waits_for(name: str) -> dict[str, str]:
    return {"tool": "sh", "input": f"echo {name} >> effects; until [ -e {name} ]; do sleep 0.02; done"}


async def leave(ws: Workspace, *steps: dict[str, Any], message_id: str = "", **params: Any) -> None:
    """Send a message and go away."""
    body = ws.envelope(
        script(*steps), message_id=message_id or uuid.uuid4().hex, configuration={"blocking": False}, **params
    )
    body["params"]["message"]["parts"].append(
        {"kind": "file", "file": {"name": "brought", "bytes": base64.b64encode(b"brought").decode()}}
    )
    assert "result" in (await ws.post(body)).json()


async def answers(ws: Workspace, number: int) -> None:
    await ws.until(lambda: ws.logged().count(": answered, because") >= number, f"answer number {number}")


async def states(ws: Workspace) -> dict[str, list[str]]:
    """By context, the latest turn first; as the operator's command says it."""
    found: dict[str, list[str]] = {}
    for turn in await anyio.to_thread.run_sync(ws.turns):
        found.setdefault(turn["context_id"], []).append(turn["state"])
    return found


async def pruned(ws: Workspace) -> None:
    """Wait until retention was looked after twice from now on, and see that nothing has ever gone."""
    said = ws.root / "pruned"

    def rounds() -> list[str]:
        return said.read_text().split() if said.exists() else []

    begun = len(rounds())
    await ws.until(lambda: len(rounds()) >= begun + 2, "two rounds of retention")
    assert set(rounds()) == {"0"}


async def listed(ws: Workspace) -> list[dict[str, Any]]:
    """The tasks as ListTasks has them."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {}}
    found: list[dict[str, Any]] = (await ws.post(body, **{"A2A-Version": "1.0"})).json()["result"]["tasks"]
    return found


@pytest.mark.parametrize(
    ("in_life", "between_lives"),
    [(-2 * HOUR, DAY), (DAY, -2 * HOUR), (10 * YEAR, TO_1970), (TO_1970, 10 * YEAR)],
    ids=["back, then on", "on, then back", "ten years on, then to 1970", "to 1970, then ten years on"],
)
async def test_a_clock_that_is_set_loses_delays_and_repeats_nothing(
    tmp_path: Path, in_life: int, between_lives: int
) -> None:
    require(LIBRARY is not None, "libfaketime is not installed")
    async with workspace(
        tmp_path,
        start=False,
        WORKSPACE_MAX_CONCURRENT_TURNS="2",
        WORKSPACE_RESUME_MAX_ATTEMPTS="1",
        WORKSPACE_RESTART_WINDOW="0.6",
        WORKSPACE_DRAIN_CAP="0.3",
        WORKSPACE_STOP_GRACE="0.3",
    ) as ws:
        clock = Clock(ws)
        ws.program = (sys.executable, "-c", BUSY_HOUSEKEEPING)
        await ws.start()
        await leave(ws, waits_for("never"), context_id="suspended")
        await ws.until_effect("never")
        ws.kill_everything()

        await ws.start()
        assert answer_of((await ws.send(script({"answer": "had"}), context_id="delivered")).json()) == "had"
        await leave(ws, {"answer": "kept"}, context_id="undelivered", message_id="undelivered")
        await leave(ws, waits_for("first"), waits_for("second"), {"answer": "ran"}, context_id="runs")
        await leave(ws, waits_for("third"), {"answer": "ran"}, context_id="runs too", expires_in_seconds=HOUR)
        await ws.until_effect("third")
        await leave(ws, {"answer": "next"}, context_id="waits", expires_in_seconds=HOUR)
        before = await states(ws)
        assert before["suspended"] == ["suspended"]

        clock.set(in_life)
        await ws.until(lambda: "the clock was set" in ws.logged(), "the notice")
        await pruned(ws)
        assert await states(ws) == before
        began = time.monotonic()
        report = (await ws.signal()).json()["result"]
        assert report["drained"] is False
        (ws.workdir / "first").touch()
        await ws.until(lambda: "no restart came" in ws.logged(), "the end of the window")
        assert time.monotonic() - began < 10
        await ws.until_effect("second")
        (ws.workdir / "third").touch()
        await answers(ws, 4)
        await leave(ws, {"answer": "still there"}, context_id="runs", expires_in_seconds=HOUR)
        assert await states(ws) == {
            "suspended": ["suspended"],
            "delivered": ["answered"],
            "undelivered": ["answered"],
            "runs": ["accepted", "running"],
            "runs too": ["answered"],
            "waits": ["answered"],
        }
        ws.kill_everything()

        clock.set(between_lives)
        ws.environ["WORKSPACE_RESUME_MAX_ATTEMPTS"] = "3"
        await ws.start()
        (ws.workdir / "second").touch()
        await pruned(ws)
        await answers(ws, 6)
        assert ws.lines() == ["never", "first", "third", "second", "second"]
        assert list((ws.state_dir / "uploads").glob("*/*/brought"))

        again = ws.envelope(script({"answer": "kept"}), message_id="undelivered", context_id="undelivered")
        again["params"]["message"]["parts"].append(
            {"kind": "file", "file": {"name": "brought", "bytes": base64.b64encode(b"brought").decode()}}
        )
        assert answer_of((await ws.post(again)).json()) == "kept"

        tasks = await listed(ws)
        assert [task["contextId"] for task in tasks if task["contextId"] != "runs"] == [
            "waits",
            "runs too",
            "undelivered",
            "delivered",
            "suspended",
        ]
        shown = [datetime.fromisoformat(task["status"]["timestamp"]).timestamp() for task in tasks]
        now = time.time() + between_lives
        assert all(now - 60 < at < now + 5 for at in shown), [datetime.fromtimestamp(at, UTC) for at in shown]
        assert ws.logged().count("the clock was set") == 2


async def test_on_another_machine_ten_years_on_an_answer_is_kept_and_work_goes_on_when_asked_for(
    tmp_path: Path,
) -> None:
    require(LIBRARY is not None, "libfaketime is not installed")
    async with workspace(tmp_path, start=False, WORKSPACE_MAX_CONCURRENT_TURNS="2") as ws:
        clock = Clock(ws)
        ws.program = (sys.executable, "-c", BUSY_HOUSEKEEPING)
        await ws.start()
        await leave(ws, {"answer": "kept"}, context_id="undelivered")
        await answers(ws, 1)
        steps = (waits_for("first"), {"answer": "ran"})
        await leave(ws, *steps, context_id="runs", message_id="runs")
        await ws.until_effect("first")
        ws.kill_everything()
        with closing(sqlite3.connect(ws.state_dir / "journal.db")) as journal, journal:
            journal.execute("UPDATE meta SET value = json_set(value, '$.kernel', 'x') WHERE key = 'clock'")

        clock.set(10 * YEAR)
        await ws.start()
        await ws.until(lambda: ": expired, because silent" in ws.logged(), "the end of what lay too long")
        assert "s have passed since the last start if the clock is right: 172800 of them" in ws.logged()
        await pruned(ws)
        assert await states(ws) == {"runs": ["expired"], "undelivered": ["answered"]}
        (ws.workdir / "first").touch()
        await leave(ws, *steps, context_id="runs", message_id="runs")
        await answers(ws, 2)
        assert len(await states(ws)) == 2
