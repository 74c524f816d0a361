"""A journal that cannot be written stops new work, and loses nothing that is done."""

from __future__ import annotations

import resource
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
import pytest

from .workspace import ENDS, HOLDS, Workspace, answer_of, script, workspace

TOO_SMALL = 20_000
"""Bytes: less than the journal's files, more than the log and a transcript."""

WAITS = {"tool": "sh", "input": "touch begun; while [ ! -e go ]; do sleep 0.02; done"}


def fill_disk(ws: Workspace, full: bool = True) -> None:
    """Let no file of the sidecar grow past what the journal needs."""
    assert ws.process is not None
    most = TOO_SMALL if full else resource.RLIM_INFINITY
    resource.prlimit(ws.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


async def grown(ws: Workspace) -> None:
    """Make the journal's files larger than what the full disk allows."""
    log = ws.state_dir / "journal.db-wal"
    while log.stat().st_size < 2 * TOO_SMALL:
        await ws.send(script({"answer": "warm"}))


async def ready(ws: Workspace) -> httpx.Response:
    async with httpx.AsyncClient(base_url=ws.url) as client:
        return await client.get("/readyz")


@pytest.mark.parametrize("adapter", [ENDS, HOLDS])
async def test_calls_wait_messages_are_refused_and_it_heals_by_itself(tmp_path: Path, adapter: str) -> None:
    async with workspace(tmp_path, adapter, WORKSPACE_LOG_LEVEL="error") as ws:
        await grown(ws)
        replies: list[str] = []

        async def call() -> None:
            steps = script(WAITS, {"tool": "sh", "input": "echo two >> effects"}, {"answer": "both"})
            replies.append(answer_of((await ws.send(steps, context_id="c")).json()))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            fill_disk(ws)
            refused = await ws.send(script({"answer": "x"}))
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["busy"] is True
            unready = await ready(ws)
            assert unready.status_code == 503
            assert "the journal cannot be written" in unready.text
            assert "closed by journal" in ws.command("status").stdout
            (ws.workdir / "go").touch()
            await anyio.sleep(0.3)
            assert ws.lines() == []
            assert replies == []
            fill_disk(ws, full=False)
        assert replies == ["both"]
        assert ws.lines() == ["two"]
        assert (await ready(ws)).status_code == 200
        assert ws.turns()[0]["charges"] == 1, "our disk is no strike against the turn"


async def test_an_answer_that_comes_meanwhile_is_kept_and_delivered_when_it_heals(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_LOG_LEVEL="error") as ws:
        await grown(ws)
        replies: list[httpx.Response] = []

        async def call() -> None:
            replies.append(await ws.send(script(WAITS, {"answer": "kept"}), context_id="c"))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            (ws.workdir / "go").touch()
            fill_disk(ws)
            await anyio.sleep(0.5)
            assert replies == []
            fill_disk(ws, full=False)
        assert answer_of(replies[0].json()) == "kept"


async def test_a_runtime_that_waits_for_our_disk_is_not_silent(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_LOG_LEVEL="error", WORKSPACE_TURN_IDLE_LIMIT="0.8") as ws:
        replies: list[httpx.Response] = []
        # Three of them are more than is kept unwritten, and make the files grow.
        much: list[dict[str, object]] = [{"sleep": 0.1}, {"artifact": "x" * 40_000}] * 40

        async def call() -> None:
            replies.append(await ws.send(script(*much, {"answer": "kept"})))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            await ws.until(lambda: [turn["state"] for turn in ws.turns()] == ["running"], "the turn")
            fill_disk(ws)
            await anyio.sleep(2)
            fill_disk(ws, full=False)
        assert answer_of(replies[0].json()) == "kept"


async def test_a_stop_comes_in_time_and_the_answer_after_the_boot(tmp_path: Path) -> None:
    async with workspace(
        tmp_path, WORKSPACE_LOG_LEVEL="error", WORKSPACE_STOP_TIMEOUT="3", WORKSPACE_STOP_GRACE="0.5"
    ) as ws:
        await grown(ws)
        replies: list[int] = []
        body = ws.envelope(script(WAITS, {"answer": "after all"}))

        async def call() -> None:
            replies.append((await ws.post(body)).status_code)

        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            fill_disk(ws)
            (ws.workdir / "go").touch()
            began = time.monotonic()
            ws.terminate()
            await ws.exited()
            assert time.monotonic() - began < 3
        assert replies == [502]
        await ws.start()
        assert answer_of(await ws.ask_until_answered(body)) == "after all"


async def test_a_journal_that_was_taken_over_ends_the_process_and_what_it_started(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        async with anyio.create_task_group() as callers:

            async def call(step: dict[str, str]) -> None:
                with suppress(httpx.TransportError):  # nobody answers for a journal of somebody else's
                    await ws.send(script(step))

            callers.start_soon(call, WAITS)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            with sqlite3.connect(ws.state_dir / "journal.db") as thief:
                thief.execute("UPDATE owner SET boot_id = 'another'")
            thief.close()
            callers.start_soon(call, {"answer": "x"})
            assert await ws.exited() == 1
        assert "owned by boot another" in ws.logged().splitlines()[-1]
        assert "Traceback" not in ws.logged()
        assert ws.pids() == []
        assert ws.turns()[0]["state"] == "running", "it is the other's now"
