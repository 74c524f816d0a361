"""What was acknowledged outlives its disk's faults, each of them real; what cannot be kept is refused."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from ..conftest import require
from . import disk
from .workspace import DEADLINE, Workspace, answer_of, script, workspace

WAITS = {"tool": "sh", "input": "touch begun; while [ ! -e go ]; do sleep 0.02; done; touch ended"}
LARGE = "x" * 300_000
"""Too large for a row of the journal."""


def ready(ws: Workspace) -> httpx.Response:
    return httpx.get(f"{ws.url}/readyz")


async def refused(ws: Workspace, text: str = script({"answer": "x"})) -> str:
    """Send a message that cannot be kept; return what its caller is told."""
    reply = await ws.send(text)
    assert reply.status_code == 503, reply.text
    assert int(reply.headers["retry-after"]) > 0
    return str(reply.json()["error"])


async def test_a_full_disk_takes_nothing_more_and_goes_on_when_it_is_freed(tmp_path: Path) -> None:
    state, runtime = tmp_path / "state", tmp_path / "state" / "scripted-ends"
    with disk.small(state), disk.small(runtime):
        async with workspace(tmp_path) as ws:
            before = ws.envelope(script({"answer": "before"}))
            assert answer_of((await ws.post(before)).json()) == "before"
            second = {"tool": "sh", "input": "echo second >> effects"}
            at_work = ws.envelope(script(WAITS, second, {"answer": "both"}))
            answers: list[str] = []

            async def call() -> None:
                answers.append(answer_of((await ws.post(at_work)).json()))

            async with anyio.create_task_group() as callers:
                callers.start_soon(call)
                await ws.until((ws.workdir / "begun").exists, "the tool")
                ballast = disk.fill(state)
                assert "journal.db cannot be written: database or disk is full" in await refused(ws)
                assert re.search("blobs/.* cannot be written: No space left", await refused(ws, LARGE))
                assert answer_of((await ws.post(before)).json()) == "before", "reading needs no room"
                assert ready(ws).json() == {"error": "the journal cannot be written"}
                (ws.workdir / "go").touch()
                await ws.until((ws.workdir / "ended").exists, "the end of the tool")
                assert ws.lines() == []
                ballast.unlink()
            assert answers == ["both"]
            assert ready(ws).status_code == 200
            disk.fill(state)
            await refused(ws)
            ws.kill_everything()
            ws.spawn()
            await ws.until(ws.serves, "the port")
            ballast.unlink()
            for body, answer in ((before, "before"), (at_work, "both")):
                assert answer_of(await ws.ask_until_answered(body)) == answer
            assert ws.lines() == ["second"]


async def test_a_file_there_is_no_room_for_fails_its_turn_alone_until_there_is(tmp_path: Path) -> None:
    state, runtime = tmp_path / "state", tmp_path / "state" / "scripted-ends"
    with disk.small(state), disk.small(runtime):
        async with workspace(tmp_path) as ws:
            content = base64.b64encode(os.urandom(250_000)).decode()
            body = ws.envelope(script({"answer": "read"}))
            file = {"kind": "file", "file": {"bytes": content, "name": "large", "mimeType": "x/y"}}
            body["params"]["message"]["parts"].append(file)
            ballast = state / "ballast"
            ballast.write_bytes(b"x" * 350_000)
            told = (await ws.post(body)).json()["result"]
            assert told["metadata"]["state"] == "failed"
            assert told["metadata"]["retryable"] is True
            assert told["parts"][0]["text"].endswith("cannot be put on disk: No space left on device")
            assert answer_of((await ws.send(script({"answer": "small"}))).json()) == "small"
            ballast.unlink()
            assert answer_of((await ws.post(body)).json()) == "read"


async def test_a_first_start_on_a_full_disk_waits_for_room(tmp_path: Path) -> None:
    with disk.small(tmp_path / "state") as state:
        ballast = disk.fill(state)
        async with workspace(tmp_path, start=False) as ws:
            ws.spawn()
            told = f"waiting for the journal: {state} cannot be written now: No space left on device"
            await ws.until(lambda: told in ws.logged(), "the reason")
            assert ready(ws).json() == {"error": "booting: the journal is not open yet"}
            ballast.unlink()
            await ws.until_ready()
            assert (state / ".gitignore").read_text() == "*\n"


async def test_a_disk_that_turns_read_only_is_named_and_after_its_repair_all_is_there(tmp_path: Path) -> None:
    image, state = tmp_path / "image", tmp_path / "state"
    async with workspace(tmp_path, start=False) as ws:
        before = ws.envelope(script({"answer": "before"}))
        with disk.ext4(image, state, ",errors=remount-ro"):
            await ws.start()
            assert answer_of((await ws.post(before)).json()) == "before"
            disk.break_down(state)
            assert "journal.db cannot be written: disk I/O error" in await refused(ws)
            assert re.search("blobs/.* cannot be written: Read-only file system", await refused(ws, LARGE))
            assert answer_of((await ws.post(before)).json()) == "before"
            assert ready(ws).json() == {"error": "the journal cannot be written"}
            ws.terminate()
            assert await ws.exited() == 0
            ws.spawn()
            assert await ws.exited() == 2
            assert f"{state} cannot be used (Read-only file system): set WORKSPACE_STATE_DIR" in ws.logged()
        subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True)
        with disk.ext4(image, state):
            await ws.start()
            assert answer_of((await ws.post(before)).json()) == "before"
            assert len(ws.turns()) == 1
            assert "is damaged" not in ws.logged()
            ws.kill_everything()


def failing(ws: Workspace, call: str, which: str, file: str) -> Path:
    """Have the sidecar's next lives get EIO from some of the calls on a file; return where that is told."""
    require(shutil.which("strace") is not None, "strace is not installed")
    trace = ws.root / "trace"
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-P", str(ws.state_dir / file)]
    ws.program = [*strace, "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={which}", *ws.program]
    ws.state_dir.mkdir(exist_ok=True)
    return trace


@pytest.mark.parametrize(("call", "which"), [("pwrite64", "60..66"), ("fdatasync", "25..30")])
async def test_errors_of_writing_cost_time_and_nothing_else(tmp_path: Path, call: str, which: str) -> None:
    async with workspace(tmp_path, start=False, WORKSPACE_LOG_LEVEL="warning") as ws:
        plain = ws.program
        trace = failing(ws, call, which, "journal.db-wal")
        await ws.start()
        bodies = {
            str(n): ws.envelope(
                script({"tool": "sh", "input": f"echo {n} >> effects"}, {"answer": str(n)}), context_id="c"
            )
            for n in range(10)
        }
        for text, body in bodies.items():
            assert answer_of(await ws.ask_until_answered(body)) == text
        assert "(INJECTED)" in trace.read_text()
        assert "journal.db cannot be written: disk I/O error. Nothing was acknowledged" in ws.logged()
        assert "Traceback" not in ws.logged()
        ws.kill_everything()
        ws.program = plain
        await ws.start()
        for text, body in bodies.items():
            assert answer_of((await ws.post(body)).json()) == text
        assert ws.lines() == list(bodies)
        assert {turn["charges"] for turn in ws.turns()} == {1}, "our disk is no strike against the turn"


async def answered_until_it_ends(ws: Workspace) -> list[dict[str, Any]]:
    """Send messages until the sidecar has ended by itself; return those that got their number as answer."""
    answered: list[dict[str, Any]] = []
    with anyio.fail_after(DEADLINE), suppress(httpx.TransportError):
        while True:
            body = ws.envelope(script({"answer": str(len(answered))}), context_id="c")
            if (await ws.post(body)).status_code == 200:
                answered.append(body)
    assert await ws.exited() == 1
    return answered


async def test_an_error_of_reading_is_taken_for_damage_and_costs_one_life(tmp_path: Path) -> None:
    async with workspace(tmp_path, start=False, WORKSPACE_LOG_LEVEL="warning") as ws:
        plain = ws.program
        failing(ws, "pread64", "40..50", "journal.db-wal")
        await ws.start()
        answered = await answered_until_it_ends(ws)
        ws.program = plain
        await ws.start()
        for n, body in enumerate(answered):
            assert answer_of((await ws.post(body)).json()) == str(n)
        salvaged = json.loads(ws.command("status", "--json").stdout)["journal_salvaged"]
        assert not any(salvaged["lost"].values())


async def test_a_message_that_cannot_be_read_back_fails_alone(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        bodies = [ws.envelope(text) for text in (script(WAITS, {"answer": "first"}), LARGE, "last")]

        async def lose(body: dict[str, Any]) -> None:
            with pytest.raises(httpx.TransportError):
                await ws.post(body)

        async with anyio.create_task_group() as callers:
            callers.start_soon(lose, bodies[0])
            await ws.until((ws.workdir / "begun").exists, "the tool")
            for body in bodies[1:]:
                callers.start_soon(lose, body)
            await ws.until(lambda: len(ws.turns()) == len(bodies), "all messages on disk")
            ws.kill_everything()
        (ws.workdir / "go").touch()
        (blob,) = (ws.state_dir / "blobs").iterdir()
        failing(ws, "read", "1+", f"blobs/{blob.name}")
        await ws.start()
        answers = [answer_of(await ws.ask_until_answered(body)) for body in bodies]
        lost = "Agent error: its message was lost with a damaged journal: send a new one"
        assert answers == ["first", lost, "last"]


async def test_a_journal_moved_away_in_life_is_missed_and_goes_on_when_it_is_put_back(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        before = ws.envelope(script({"answer": "before"}))
        assert answer_of((await ws.post(before)).json()) == "before"
        ws.state_dir.rename(tmp_path / "away")
        assert "journal.db was removed while in use: what is written now would be lost" in await refused(ws)
        assert ready(ws).json() == {"error": "the journal cannot be written"}
        (tmp_path / "away").rename(ws.state_dir)
        await ws.until_ready()
        assert answer_of((await ws.send(script({"answer": "after"}))).json()) == "after"
        ws.kill_everything()
        await ws.start()
        assert answer_of((await ws.post(before)).json()) == "before"


async def test_a_log_that_was_cut_in_life_ends_the_life_and_the_next_one_works(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await ws.send(script({"answer": "before"}))
        os.truncate(ws.state_dir / "journal.db-wal", 0)
        await answered_until_it_ends(ws)
        assert "the next start of the sidecar saves what can be read" in ws.logged()
        await ws.start()
        assert answer_of((await ws.send(script({"answer": "after"}))).json()) == "after"
        assert list(ws.state_dir.glob("journal.db.damaged-*"))
        assert "Traceback" not in ws.logged()


async def test_a_network_file_system_is_refused_though_nobody_answers_there(tmp_path: Path) -> None:
    require(os.access("/dev/fuse", os.R_OK | os.W_OK), "there is no FUSE here")
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0"
    point = tmp_path / "net"
    try:
        with disk.mounted("host:/srv", point, "fuse.sshfs", options, descriptor=descriptor):
            os.close(descriptor)  # the far end is lost: whoever touched it would get an error
            descriptor = -1
            async with workspace(tmp_path, start=False, WORKSPACE_STATE_DIR=str(point / "state")) as ws:
                ws.spawn()
                assert await ws.exited() == 2
                told = (
                    f"{point}/state is on a network file system (fuse.sshfs), where a journal can be damaged"
                )
                assert f"{told}: set WORKSPACE_STATE_DIR to a directory on a local disk" in ws.logged()
    finally:
        if descriptor >= 0:
            os.close(descriptor)
