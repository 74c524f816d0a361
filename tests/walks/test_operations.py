"""What the operator's page tells people to do, done."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from workspace_adapter.cli import run

from ..test_operations import code, rows
from .workspace import Workspace, answer_of, script, workspace

SLOW = script(
    {"tool": "sh", "input": "echo begun >> effects; until [ -e go ]; do sleep 0.02; done"}, {"answer": "slow"}
)


async def leave(ws: Workspace, text: str, **more: str) -> None:
    """Send a message and go away."""
    body = ws.envelope(text, configuration={"blocking": False}, **more)
    assert "result" in (await ws.post(body)).json()


async def until_answered(ws: Workspace, number: int = 1) -> None:
    await ws.until(lambda: ws.logged().count(": answered, because") >= number, f"answer number {number}")


@contextmanager
def frozen(ws: Workspace) -> Iterator[None]:
    """What ``docker pause`` does to a container."""
    pids = ws.pids()

    def tell(number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # it was ending already
                os.kill(pid, number)

    tell(signal.SIGSTOP)
    try:
        yield
    finally:
        tell(signal.SIGCONT)


@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_a_backup_is_a_workspace_that_goes_on_elsewhere(tmp_path: Path, how: str) -> None:
    async with workspace(tmp_path / "here", WORKSPACE_STOP_GRACE="0.2", WORKSPACE_STOP_TIMEOUT="1.7") as ws:
        await leave(ws, script({"answer": "x" * 300_000}), message_id="large")
        await until_answered(ws)
        await leave(ws, SLOW, message_id="slow")
        await ws.until_effect("begun")
        await leave(ws, script({"answer": "next"}), message_id="next")
        there = Workspace(tmp_path / "there", ws.environ["WORKSPACE_ADAPTER"])
        there.state_dir.mkdir(mode=0o700)
        copy = ["cp", "-a", f"{ws.state_dir}/.", str(there.state_dir)]
        if how == "frozen":
            with frozen(ws):
                subprocess.run(copy, check=True)
            await leave(ws, script({"answer": "after the copy"}))
        else:
            ws.terminate()
            assert await ws.exited() == 0
            subprocess.run(copy, check=True)
        ws.kill_everything()
        try:
            (there.workdir / "go").touch()
            await there.start()
            await until_answered(there, 2)
            for message_id, text, answer in (
                ("large", script({"answer": "x" * 300_000}), "x" * 300_000),
                ("slow", SLOW, "slow"),
                ("next", script({"answer": "next"}), "next"),
            ):
                again = await there.post(there.envelope(text, message_id=message_id))
                assert answer_of(again.json()) == answer
            assert len(there.turns()) == 3
        finally:
            there.kill_everything()


async def test_of_an_older_copy_what_must_not_be_done_again_is_canceled_first(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await leave(ws, SLOW, message_id="slow")
        await ws.until_effect("begun")
        ws.kill_everything()
        (turn,) = ws.turns()
        assert ws.command("turns", "cancel", turn["id"]).returncode == 0
        (ws.workdir / "go").touch()
        await ws.start()
        again = answer_of((await ws.post(ws.envelope(SLOW, message_id="slow"))).json())
        assert again.startswith("Agent error: ")
        assert ws.lines() == ["begun"]


async def test_after_a_downgrade_nothing_is_changed_and_the_newer_version_goes_on(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await leave(ws, SLOW)
        await ws.until_effect("begun")
        ws.kill_everything()
        journal = ws.state_dir / "journal.db"

        def version(number: int) -> None:
            with closing(sqlite3.connect(journal)) as connection:
                connection.execute(f"PRAGMA user_version = {number}")

        with closing(sqlite3.connect(journal)) as connection:
            (ours,) = connection.execute("PRAGMA user_version").fetchone()
        version(99)
        before = journal.read_bytes()
        ws.spawn()
        assert await ws.exited() == 1
        assert "was written by a newer version (schema 99" in ws.logged().splitlines()[-1]
        for words in (
            ("status",),
            ("turns",),
            ("turns", "release", "x"),
            ("sessions",),
            ("journal", "check"),
        ):
            said = ws.command(*words)
            assert said.returncode == 1, words
            assert "newer version" in said.stderr
        assert journal.read_bytes() == before
        version(ours)
        (ws.workdir / "go").touch()
        await ws.start()
        await until_answered(ws)


async def test_begun_anew_the_old_state_stays_whole_where_it_was_moved(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await leave(ws, script({"answer": "x" * 300_000}), message_id="large")
        await until_answered(ws)
        ws.kill_everything()
        aside = ws.state_dir.rename(tmp_path / "aside")
        await ws.start()
        assert ws.turns() == []
        ws.kill_everything()
        shutil.rmtree(ws.state_dir)
        aside.rename(ws.state_dir)
        await ws.start()
        again = await ws.post(ws.envelope(script({"answer": "x" * 300_000}), message_id="large"))
        assert answer_of(again.json()) == "x" * 300_000


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("WORKSPACE_ID", "", "WORKSPACE_ID is required"),
        ("WORKSPACE_STATE_DIR", "/sys/state", "/sys/state cannot be used ("),
        ("WORKSPACE_HOST", "192.0.2.1", "WORKSPACE_HOST=192.0.2.1"),
        ("WORKSPACE_STOP_GRACE", "9.5", "WORKSPACE_STOP_GRACE=9.5 must be at least 1 s shorter"),
    ],
)
async def test_what_a_restart_would_not_mend_has_an_exit_code_of_its_own(
    tmp_path: Path, setting: str, value: str, said: str
) -> None:
    """Even root cannot write there, or listen there."""
    async with workspace(tmp_path, start=False) as ws:
        ws.environ[setting] = value
        ws.spawn()
        assert await ws.exited() == 2, ws.logged()
        assert said in ws.logged().splitlines()[-1]


async def test_a_draining_workspace_in_nepal_is_ready_and_takes_messages(tmp_path: Path) -> None:
    async with workspace(
        tmp_path, WORKSPACE_DRAIN_CAP="0.1", WORKSPACE_RESTART_WINDOW="9", TZ="Asia/Kathmandu"
    ) as ws:
        await leave(ws, SLOW)
        await ws.until_effect("begun")
        said = ws.command("drain")
        assert said.returncode == 3
        async with httpx.AsyncClient(base_url=ws.url) as client:
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/status")).status_code == 401
        await leave(ws, script({"answer": "taken"}))
        status = ws.command("status").stdout
        assert re.search(r"^state +drained$", status, re.M)
        assert re.search(r"^gate +closed by drain$", status, re.M)
        assert re.search(r"^turns accepted +1$", status, re.M)
        for turn in ws.turns():
            assert turn["accepted_at"].endswith("+00:00")
            assert abs(datetime.fromisoformat(turn["accepted_at"]).timestamp() - time.time()) < 60


async def test_every_command_says_with_the_sidecar_down_what_the_page_says(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        ws.environ["WORKSPACE_RESUME_MAX_ATTEMPTS"] = "1"
        await leave(ws, SLOW, context_id="one")
        await ws.until_effect("begun")
        ws.kill_everything()
        await ws.start()
        await ws.until(lambda: ": suspended, because" in ws.logged(), "the suspension")
        assert answer_of((await ws.post(ws.envelope(script({"answer": "x"})))).json()) == "x"
        ws.kill_everything()
        answered, suspended = (turn["id"] for turn in ws.turns())
        with_an_argument = {
            "turns show": suspended,
            "turns answer": answered,
            "turns release": suspended,
            "turns cancel": suspended,
            "sessions show": "one",
            "sessions forget": "one",
            "journal export": suspended,
        }
        last = ("turns cancel", "sessions forget")
        names = [code(row[0])[0] for row in rows("commands")]
        order = [name for name in names if name not in last] + [*last]
        for name in order:
            argument = [with_an_argument[name]] if name in with_an_argument else []
            said = ws.command(*name.split(), *argument)
            assert said.returncode == (4 if name == "drain" else 0), (name, said.stderr)
        assert [turn["id"] for turn in ws.turns()] == [answered]


async def test_what_commands_print_for_machines_has_the_keys_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page: dict[str, set[str]] = {}
    for name, _, keys in rows("json"):
        named = set(code(re.sub(r"\(.*?\)|; with .*", "", keys)))
        page[name] = named.union(*(page[f"`{other}`"] for other in named if " " in other))
        page[name] -= {"turns list", "sessions list", "--events"}
    async with workspace(tmp_path, WORKSPACE_DRAIN_CAP="0.1", PLATFORM_URL="http://127.0.0.1:9") as ws:
        await ws.send(script({"say": "x"}, {"tool": "sh", "input": "true"}, {"answer": "x"}), context_id="c")
        await leave(ws, SLOW, context_id="d")
        await ws.until_effect("begun")
        running, answered = (turn["id"] for turn in ws.turns())
        (ws.state_dir / "journal.db.suspect").touch()  # a problem to be told
        arguments = {
            "turns show": (answered, "--events"),
            "turns answer": (answered,),
            "turns cancel": (running,),
            "sessions show": ("c",),
            "sessions forget": ("c",),
            "journal export": (answered,),
        }
        for name in sorted(page, key=lambda name: "forget" in name):
            command, *part = code(name)
            words = [*command.split(), *arguments.get(command, ()), "--json"]
            await anyio.to_thread.run_sync(run, words, ws.environ)
            printed = json.loads(capsys.readouterr().out)
            if ", for each variable" in name:
                printed = next(iter(printed.values()))
            elif "each of" in name or ", its " in name:
                printed = printed[part[0]]
            first = printed[0] if isinstance(printed, list) else printed
            assert first.keys() == page[name], name
        ws.kill_everything()
        printed = json.loads(ws.command("status", "--json").stdout)
        assert list(printed) == ["state", "turns", "journal_bytes"]
