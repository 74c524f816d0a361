"""A conversation is forgotten for good: its rows, its files, what its runtime keeps, their bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from .workspace import Workspace, answer_of, script, workspace

FORGETFUL = "tests.walks.forgetful"
HERE = str(Path(__file__).parents[2])
NEEDLE = "needle-in-the-hay"
LARGE = f"{NEEDLE} {'x' * 300_000}"


def holding(ws: Workspace) -> list[str]:
    """The files of the state directory in which the needle stands."""
    files = (path for path in ws.state_dir.rglob("*") if path.is_file())
    return [str(path.relative_to(ws.state_dir)) for path in files if NEEDLE.encode() in path.read_bytes()]


def with_file(ws: Workspace, context_id: str) -> dict[str, Any]:
    sent = ws.envelope(script({"answer": f"seen the {NEEDLE}"}), context_id=context_id)
    content = b64encode(NEEDLE.encode()).decode()
    sent["params"]["message"]["parts"].append(
        {"kind": "file", "file": {"name": f"{NEEDLE}.txt", "bytes": content}}
    )
    return sent


async def talk(ws: Workspace) -> None:
    """Say things with a needle in one session and without in another, turn by turn."""
    for number in range(3):
        await ws.send(
            script(
                {"tool": "sh", "input": f"echo {NEEDLE}{number} >> effects"},
                {"say": f"said {NEEDLE}"},
                {"activity": NEEDLE},
                {"artifact": NEEDLE},
                {"answer": LARGE if number == 1 else f"the {NEEDLE}"},
            ),
            context_id="secret",
        )
        await ws.send(script({"say": f"hay {number}"}, {"answer": "y" * 900}), context_id="open")
    await ws.post(with_file(ws, "secret"))
    await ws.send(f"{NEEDLE} " + script({"fail": f"no {NEEDLE}", "retryable": True}), context_id="secret")


def forget(ws: Workspace, *arguments: str) -> Any:
    said = ws.command("sessions", "forget", *arguments, "--json")
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.mark.parametrize("state", ["up", "killed"])
async def test_nothing_of_a_forgotten_session_is_left_and_all_of_the_others(
    tmp_path: Path, state: str
) -> None:
    async with workspace(tmp_path) as ws:
        await talk(ws)
        assert len(holding(ws)) >= 4, "journal, transcript, blob, upload"
        shown = json.loads(ws.command("sessions", "show", "secret", "--json").stdout)
        assert [Path(path).name for path in shown["uploads"]] == [f"{NEEDLE}.txt"]
        if state == "killed":
            ws.kill_everything()
        (gone,) = forget(ws, "secret")
        assert holding(ws) == []
        assert (gone["session"], gone["turns"], gone["uploads"]) == ("secret", 5, 1)
        assert (gone["canceled"], gone["left"], len(gone["runtime"])) == ([], [], 1)
        again = ws.command("sessions", "forget", "secret")
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr == "there is no session 'secret'; see: workspace-adapter sessions list\n"
        assert ws.command("journal", "check").stdout == "The journal is whole.\n"
        if state != "up":
            await ws.start()
        recalled = await ws.send(script({"recall": True}), context_id="open")
        assert "hay 0" in answer_of(recalled.json())
        recalled = await ws.send(script({"recall": True}), context_id="secret")
        assert NEEDLE not in answer_of(recalled.json())


async def test_a_message_sent_again_after_its_session_was_forgotten_is_a_new_one(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(script({"tool": "sh", "input": "echo x >> effects"}), context_id="c")
        for _ in range(2):
            await ws.post(body)
        assert ws.lines() == ["x"]
        forget(ws, "c")
        await ws.post(body)
        assert ws.lines() == ["x", "x"]


@pytest.mark.parametrize("state", ["up", "killed"])
async def test_a_turn_that_has_not_ended_is_stopped_first_and_only_when_told(
    tmp_path: Path, state: str
) -> None:
    async with workspace(tmp_path) as ws, anyio.create_task_group() as callers:
        running = script({"tool": "sh", "input": f"echo {NEEDLE} >> effects; sleep 20"})
        bodies = [ws.envelope(text, context_id="c") for text in (running, f"{NEEDLE} waits")]
        replies: list[str] = []

        async def caller(body: dict[str, Any]) -> None:
            try:
                replies.append(answer_of((await ws.post(body)).json()))
            except httpx.TransportError as error:
                replies.append(type(error).__name__)

        for body in bodies:
            callers.start_soon(caller, body)
            await ws.until(lambda: len(ws.turns()) > bodies.index(body), "the turn")  # noqa: B023
        await ws.until_effect(NEEDLE)
        if state == "killed":
            ws.kill_sidecar()  # its tool goes on
        said = ws.command("sessions", "forget", "c")
        assert said.returncode == 1
        assert "have not ended" in said.stderr
        assert "--cancel" in said.stderr
        assert len(ws.turns()) == 2
        (gone,) = forget(ws, "c", "--cancel")
        assert (gone["turns"], len(gone["canceled"])) == (2, 2)
        assert holding(ws) == []
        assert ws.turns() == []
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in ws.pids()]
        assert not [command for command in commands if b"sleep" in command]
        if state == "up":
            await ws.until(lambda: len(replies) == 2, "the answers")
            assert all("canceled by the operator" in reply for reply in replies)


async def test_a_runtime_that_cannot_forget_is_told_of_and_one_that_fails_leaves_everything(
    tmp_path: Path,
) -> None:
    async with workspace(tmp_path, f"{FORGETFUL}:CannotForget", PYTHONPATH=HERE) as ws:
        await ws.send(script({"answer": NEEDLE}), context_id="c")
        (session,) = json.loads(ws.command("sessions", "list", "--json").stdout)
        said = ws.command("sessions", "forget", "c")
        assert said.returncode == 0
        assert f"under {session['handle']}: it was not able to forget" in said.stderr
        assert [Path(name).parent.name for name in holding(ws)] == ["scripted"]
        await ws.send(script({"answer": NEEDLE}), context_id="c")
        (session,) = json.loads(ws.command("sessions", "list", "--json").stdout)
        ws.kill_everything()
        ws.environ["WORKSPACE_ADAPTER"] = "echo"
        said = ws.command("sessions", "forget", "c")
        assert said.returncode == 0
        assert f"under {session['handle']}: it was unknown to echo" in said.stderr
    async with workspace(tmp_path / "2", f"{FORGETFUL}:Refuses", PYTHONPATH=HERE) as ws:
        await ws.send(script({"answer": NEEDLE}), context_id="c")
        for state in ("up", "down"):
            said = ws.command("sessions", "forget", "c")
            assert said.returncode == 1
            assert "the vault is sealed: unseal it. Mend that and say it again" in said.stderr
            assert len(ws.turns()) == 1
            if state == "up":
                ws.terminate()
                await ws.exited()
        ws.environ["WORKSPACE_ADAPTER"] = "no_such_module:Adapter"
        said = ws.command("sessions", "forget", "c")
        assert said.returncode == 1
        assert "nothing was forgotten" in said.stderr
        assert "no_such_module" in said.stderr
        assert len(ws.turns()) == 1
        (gone,) = forget(ws, "c", "--journal-only")
        assert (gone["turns"], gone["runtime"]) == (1, None)
        assert ws.turns() == []


async def test_nothing_that_a_forget_meets_ends_the_workspace(tmp_path: Path) -> None:
    async with workspace(tmp_path, f"{FORGETFUL}:Objects", PYTHONPATH=HERE) as ws:
        await ws.post(with_file(ws, "c"))
        (brought,) = (ws.state_dir / "uploads").iterdir()
        brought.rename(tmp_path / "elsewhere")
        brought.symlink_to(tmp_path / "elsewhere")  # as good as another user's: it cannot be removed
        said = ws.command("sessions", "forget", "c")
        assert said.returncode == 1
        assert "session 'c' could not all be removed" in said.stderr
        assert len(ws.turns()) == 1
        brought.unlink()
        (tmp_path / "elsewhere").rename(brought)
        (gone,) = forget(ws, "c")
        assert (gone["turns"], gone["uploads"]) == (1, 1)
        assert holding(ws) == []
        assert answer_of((await ws.send("on it goes")).json()) == "on it goes"


async def test_what_is_said_while_a_session_is_being_forgotten_begins_a_new_one(tmp_path: Path) -> None:
    async with workspace(tmp_path, f"{FORGETFUL}:Slow", PYTHONPATH=HERE) as ws:
        await ws.send(script({"say": NEEDLE}), context_id="c")
        replies: list[str] = []

        async def late() -> None:
            replies.append(answer_of((await ws.send(script({"recall": True}), context_id="c")).json()))

        async with anyio.create_task_group() as callers:
            command = [sys.executable, "-m", "workspace_adapter", "sessions", "forget", "c"]
            with subprocess.Popen(command, env=ws.environ, stdout=subprocess.DEVNULL) as forgetting:
                await ws.until(lambda: (ws.workdir / "erased").exists(), "the runtime's part")
                callers.start_soon(late)
                await ws.until(lambda: len(ws.turns()) == 2, "the new message")
                assert answer_of((await ws.send("elsewhere", context_id="d")).json()) == "elsewhere"
                (ws.workdir / "go-on").touch()
                await anyio.to_thread.run_sync(forgetting.wait, ws.patience)
                assert forgetting.returncode == 0
        assert NEEDLE not in replies[0]
        assert holding(ws) == []


async def test_whatever_is_killed_on_the_way_a_second_forget_finishes(tmp_path: Path) -> None:
    async with workspace(tmp_path, f"{FORGETFUL}:Slow", PYTHONPATH=HERE) as ws:
        await talk(ws)
        command = [sys.executable, "-m", "workspace_adapter", "sessions", "forget", "secret"]
        with subprocess.Popen(command, env=ws.environ, stderr=subprocess.DEVNULL):
            await ws.until(lambda: (ws.workdir / "erased").exists(), "the runtime's part")
            ws.kill_everything()
        assert holding(ws)
        (ws.workdir / "go-on").touch()
        for after in (0.3, 0.4, 0.5, 0.6):
            with subprocess.Popen(
                command, env=ws.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                await anyio.sleep(after)
                process.kill()
        ws.command("sessions", "forget", "secret")
        assert holding(ws) == []
        assert ws.command("journal", "check").stdout == "The journal is whole.\n"
        await ws.start()
        assert "hay 0" in answer_of((await ws.send(script({"recall": True}), context_id="open")).json())


async def test_room_is_given_back_beside_a_live_sidecar_and_without(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        for number in range(20):
            await ws.send(script({"answer": "x" * 200_000}), context_id=f"c{number % 2}")
        forget(ws, "c0")
        for state in ("up", "down"):
            for full in ((), ("--full",)):
                said = ws.command("journal", "vacuum", *full, "--json")
                assert said.returncode == 0, said.stderr
                assert json.loads(said.stdout).keys() == {"freed_bytes", "waited_seconds"}
            size = json.loads(ws.command("journal", "size", "--json").stdout)
            assert size["free_bytes"] == 0
            assert size["file_bytes"] < 3 << 20
            if state == "up":
                assert answer_of((await ws.send("still here")).json()) == "still here"
                ws.terminate()
                await ws.exited()
