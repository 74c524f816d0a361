"""The kill matrix of the real Claude CLI, through the whole sidecar.

Asserted is what the caller gets and what the tools left, whoever was killed and when.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from workspace_adapter.testing import ScriptedModel

from ..conftest import require
from .workspace import Workspace, answer_of, script

CHUNKS, CHUNK_DELAY = 30, 0.1


def bash(command: str) -> dict[str, Any]:
    return {"tool": "Bash", "input": {"command": command}}


MOMENTS = {
    "before the model answers": script({"delay": 1.5}, bash("echo effect >> effects"), {"text": "done"}),
    "while it writes": script(
        {"text": "word " * CHUNKS + "done", "chunks": CHUNKS, "chunk_delay": CHUNK_DELAY}
    ),
    "in a tool": script(bash("touch begun; sleep 1.5; echo effect >> effects"), {"text": "done"}),
    "while it writes after a tool": script(
        bash("echo effect >> effects"),
        {"text": "word " * CHUNKS + "done", "chunks": CHUNKS, "chunk_delay": CHUNK_DELAY},
    ),
}


@asynccontextmanager
async def claude(root: Path, **settings: str) -> AsyncIterator[tuple[Workspace, ScriptedModel]]:
    """Hold a workspace with the real CLI and the model it talks to."""
    require(importlib.util.find_spec("claude_agent_sdk") is not None, "the extra [claude] is not installed")
    async with ScriptedModel() as model:
        ws = Workspace(
            root,
            "claude",
            ANTHROPIC_BASE_URL=model.url,
            ANTHROPIC_API_KEY="scripted",
            WORKSPACE_CLAUDE_SETTING_SOURCES="none",
            WORKSPACE_LOG_LEVEL="info",
            **settings,
        )
        try:
            await ws.start()
            yield ws, model
        finally:
            ws.kill_everything()


def cli_pids(ws: Workspace) -> list[int]:
    """The CLI's processes: what runs in the workspace and is called claude."""
    return [pid for pid in ws.pids() if _name(pid) == "claude"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def reach(ws: Workspace, model: ScriptedModel, moment: str) -> None:
    """Wait until the turn is at this moment."""
    if moment == "in a tool":
        await ws.until((ws.workdir / "begun").exists, "the tool")
        return
    wanted = 2 if moment == "while it writes after a tool" else 1
    await ws.until(lambda: len(model.requests) >= wanted, "the model's request")
    if moment.startswith("while"):
        await anyio.sleep(3 * CHUNK_DELAY)  # some of its many pieces have left the model


@pytest.mark.parametrize("target", ["cli", "everything"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_whoever_is_killed_and_when_the_caller_is_answered(
    tmp_path: Path, moment: str, number: signal.Signals, target: str
) -> None:
    async with claude(tmp_path) as (ws, model):
        body = ws.envelope(MOMENTS[moment])
        answers: list[str] = []

        async def call() -> None:
            answers.append(answer_of(await ws.ask_until_answered(body)))

        async with anyio.create_task_group() as caller:
            caller.start_soon(call)
            await reach(ws, model, moment)
            if target == "cli":
                assert cli_pids(ws), "there was nobody to kill"
                for pid in cli_pids(ws):
                    os.kill(pid, number)
            else:
                if number is signal.SIGKILL:
                    ws.kill_everything()
                else:
                    for pid in ws.pids():
                        with suppress(ProcessLookupError):  # it may follow the one before it by itself
                            os.kill(pid, number)
                    await ws.exited()
                await ws.start()
        assert answers[0].endswith("done"), answers
        effects = [] if moment == "while it writes" else ["effect"]
        assert ws.lines() == effects, "once, whatever was cut off"


SLOW_TOOL = MOMENTS["in a tool"].replace("sleep 1.5", "sleep 5")
"""Leaves time to start again, on a busy machine too, before the surviving tool is through."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["while it writes", "in a tool"])
async def test_a_cli_off_its_leash_is_ended_before_the_turn_goes_on(
    tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    async with claude(
        tmp_path, WORKSPACE_CLAUDE_CLI=str(off_the_leash(tmp_path)), WORKSPACE_STOP_GRACE="0.1"
    ) as (ws, model):
        body = ws.envelope(SLOW_TOOL if moment == "in a tool" else MOMENTS[moment])
        answers: list[str] = []

        async def call() -> None:
            answers.append(answer_of(await ws.ask_until_answered(body)))

        async with anyio.create_task_group() as caller:
            caller.start_soon(call)
            await reach(ws, model, moment)
            assert ws.process is not None
            ws.process.send_signal(number)
            if number is signal.SIGTERM:
                ws.process.send_signal(number)
            await ws.exited()
            if number is signal.SIGKILL:
                assert cli_pids(ws), "it was to survive its sidecar"
            await ws.start()
        assert answers[0].endswith("done"), answers
        assert ws.lines() == ([] if moment == "while it writes" else ["effect"])


async def test_an_answer_that_the_cli_finished_alone_is_delivered_without_asking_the_model_again(
    tmp_path: Path,
) -> None:
    async with claude(tmp_path, WORKSPACE_CLAUDE_CLI=str(off_the_leash(tmp_path))) as (ws, model):
        body = ws.envelope(MOMENTS["in a tool"])
        async with anyio.create_task_group() as caller:
            caller.start_soon(ws.ask_until_answered, body)
            await reach(ws, model, "in a tool")
            ws.kill_sidecar()
            await ws.until(lambda: len(model.requests) == 2, "the CLI's next request")
            await ws.until(lambda: _says_done(ws), "the answer in the transcript")
            await ws.start()
        assert len(model.requests) == 2
        assert ws.lines() == ["effect"]
        assert "the runtime had answered" in ws.logged()


def _says_done(ws: Workspace) -> bool:
    return any(
        '"end_turn"' in line
        for transcript in ws.state_dir.rglob("projects/*/*.jsonl")
        for line in transcript.read_text(errors="replace").splitlines()
    )


def off_the_leash(root: Path) -> Path:
    """Write a program that takes the CLI off its leash and becomes it."""
    import claude_agent_sdk

    bundled = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
    program = root / "claude"
    program.write_text(
        f"#!{sys.executable}\nimport ctypes, os, sys\nctypes.CDLL(None).prctl(1, 0)\n"
        f"os.execv({str(bundled)!r}, [{str(bundled)!r}, *sys.argv[1:]])\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program
