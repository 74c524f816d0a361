"""A damaged journal costs what stood on the damage, is told of, and never stops the workspace for good."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from .workspace import DEADLINE, Workspace, answer_of, script, workspace

PAGE = 4096
INTERIOR = 5
"""First byte of a table's page that names other pages, the last of them in its bytes 8 to 12."""
WAITS = {"tool": "sh", "input": "touch begun; while [ ! -e go ]; do sleep 0.02; done"}


async def test_status_says_what_was_saved_of_a_damaged_journal(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(script({"answer": "kept"}))
        assert answer_of((await ws.post(body)).json()) == "kept"
        ws.terminate()
        assert await ws.exited() == 0
        journal = ws.state_dir / "journal.db"
        journal.write_bytes(b"not a database" + journal.read_bytes()[14:])
        await ws.start()
        status = json.loads(ws.command("status", "--json").stdout)
        assert status["journal_salvaged"]["why"]
        assert "lost" in status["journal_salvaged"]
        assert list(ws.state_dir.glob("journal.db.damaged-*"))
        assert (await ws.send(script({"answer": "works"}))).status_code == 200


def _noise_on(name: str, *, last: bool = False) -> Callable[[Path], None]:
    """Overwrite the first page of a table or an index, or the one with the table's newest rows."""

    def damage(journal: Path) -> None:
        connection = sqlite3.connect(journal)
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))
        connection.close()
        with journal.open("r+b") as file:
            while last:
                file.seek((page - 1) * PAGE)
                head = file.read(12)
                if head[0] != INTERIOR:
                    break
                page = int.from_bytes(head[8:], "big")
            file.seek((page - 1) * PAGE)
            file.write(random.Random(page).randbytes(PAGE))

    return damage


def _one_bit(text: bytes) -> Callable[[Path], None]:
    """Flip one bit of every row that holds a text, which no page of SQLite's would notice."""

    def damage(journal: Path) -> None:
        content = journal.read_bytes()
        assert text in content
        journal.write_bytes(content.replace(text, text[:-1] + bytes([text[-1] ^ 1])))

    return damage


def _torn_log(journal: Path) -> None:
    log = journal.with_name("journal.db-wal")
    content = log.read_bytes()
    log.write_bytes(content[: -PAGE - 500] + random.Random(1).randbytes(300))


def _cut(size: float) -> Callable[[Path], None]:
    """Leave so much of the main file."""
    return lambda journal: os.truncate(journal, int(journal.stat().st_size * size) // PAGE * PAGE)


KINDS: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "the index a new turn of an old session is looked up by": ("whole", _noise_on("turns_by_session"), 13),
    "the index every message is looked up by": ("whole", _noise_on("sqlite_autoindex_turns_2"), 13),
    "the log of what was said": ("whole", _noise_on("events"), 13),
    "the message of a turn that waits": ("whole", _one_bit(b'"text": "w0"}'), 13),
    "the newest turns": ("whole", _noise_on("turns", last=True), 10),
    "half of the file": ("whole", _cut(0.5), 4),
    "all of the file": ("whole", _cut(0), 4),
    "a torn write-ahead log": ("killed", _torn_log, 12),
}
"""What is damaged, of a journal checkpointed as a whole or as SIGKILL left it, how, and how many turns there
are at least when all were asked for again: four that are asked for, and of the others those kept."""


async def test_whatever_is_damaged_one_more_start_mends_it_and_what_is_intact_is_kept(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_LOG_LEVEL="error") as ws:
        asked = await _killed_with_work_to_do(ws)
        for base in ("whole", "killed"):
            shutil.copytree(ws.state_dir, tmp_path / base, ignore=shutil.ignore_patterns("*.sock"))
        connection = sqlite3.connect(tmp_path / "whole" / "journal.db")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        for what, (base, damage, turns) in KINDS.items():
            shutil.rmtree(ws.state_dir)
            shutil.copytree(tmp_path / base, ws.state_dir)
            damage(ws.state_dir / "journal.db")
            assert await _lives_until_all_answered(ws, asked) <= 2, what
            assert len(ws.turns()) >= turns, what
            ws.kill_everything()
            assert not list(ws.state_dir.glob("*.suspect")), what


async def _killed_with_work_to_do(ws: Workspace) -> dict[str, dict[str, Any]]:
    """Answer ten messages, then kill the workspace with one at work and two behind it; return those."""
    for n in range(10):
        assert (await ws.send(script({"answer": str(n)}), context_id="c")).status_code == 200
    asked = {"at work": ws.envelope(script(WAITS, {"answer": "at work"}), context_id="c")}
    asked |= {text: ws.envelope(text, context_id="c") for text in ("w0", "w1")}

    async def lose(body: dict[str, Any]) -> None:
        with pytest.raises(httpx.TransportError):
            await ws.post(body)

    async with anyio.create_task_group() as callers:
        for n, body in enumerate(asked.values()):
            callers.start_soon(lose, body)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            await ws.until(partial(_holds, ws, 11 + n), "the message on disk")
        ws.kill_everything()
    (ws.workdir / "go").touch()
    return asked


def _holds(ws: Workspace, turns: int) -> bool:
    return len(ws.turns()) == turns


async def _answer(ws: Workspace, body: dict[str, Any]) -> str | None:
    """Ask until there is an answer, ``None`` once there is nobody left to give one."""
    with anyio.fail_after(DEADLINE):
        while ws.process is not None and ws.process.poll() is None:
            try:
                reply = await ws.post(body)
                if reply.status_code == 200:
                    return answer_of(reply.json())
                assert reply.status_code in (502, 503), reply.text
            except httpx.TransportError:
                pass
            await anyio.sleep(0.05)
    return None


async def _lives_until_all_answered(ws: Workspace, asked: dict[str, dict[str, Any]]) -> int:
    """Start the sidecar again whenever it ends, as an engine does, until all have their answers."""
    for life in range(1, 5):
        ws.spawn()
        told = {
            text: await _answer(ws, body)
            for text, body in {**asked, "new": ws.envelope("new", context_id="c")}.items()
        }
        if None in told.values():
            assert await ws.exited() == 1
            assert "the next start of the sidecar saves what can be read" in ws.logged()
            assert "Traceback" not in ws.logged(), ws.logged()
            continue
        lost = [text for text, answer in told.items() if answer != text]
        assert lost in ([], ["w0"]), told
        if lost:
            assert told["w0"] == "Agent error: its message was lost with a damaged journal: send a new one"
        return life
    raise AssertionError(f"it never stays:\n{ws.logged()}")
