"""Every example does what it says of itself, and the adapters among them keep the contract."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from workspace_adapter.testing import Prompts, check_adapter
from workspace_adapter.testing.conformance import Outcome

from .workspace import workspace

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def commands(example: Path) -> list[tuple[str, str]]:
    """Read the commands of an example's docstring, each with what it prints: all that follows it."""
    _, *told = f"\n{ast.get_docstring(ast.parse(example.read_text()))}".split("\n$ ")
    return [(command, printed.strip()) for command, _, printed in (each.partition("\n") for each in told)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_says_how_it_is_run(example: Path) -> None:
    assert commands(example)


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        pytest.param(*told, id=f"{example.stem}-{number}")
        for example in EXAMPLES
        for number, told in enumerate(commands(example))
    ],
)
def test_it_prints_what_it_says(command: str, printed: str) -> None:
    python, *arguments = shlex.split(command)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == (printed, "", 0)


def test_the_shell_adapter_takes_thirty_lines() -> None:
    assert len((ROOT / "examples" / "shell_adapter.py").read_text().splitlines()) <= 30


async def test_the_client_carries_a_message_over_a_restart(tmp_path: Path) -> None:
    from client import ask, new_message

    async with workspace(
        tmp_path,
        "shell_adapter:ShellAdapter",
        PYTHONPATH=str(ROOT / "examples"),
        WORKSPACE_DRAIN_CAP="1.5",
        WORKSPACE_STOP_GRACE="0.3",
        WORKSPACE_STOP_TIMEOUT="2",  # after which callers are told to come again
    ) as ws:
        answers: list[str] = []

        async def call(text: str) -> None:
            with httpx.Client(base_url=ws.url, timeout=20) as caller:
                message = new_message(text)
                answers.append(await anyio.to_thread.run_sync(ask, caller, message))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call, "touch begun; sleep 0.5; touch ended; sleep 0.5; echo done")
            await ws.until((ws.workdir / "begun").exists, "the command")
            callers.start_soon(call, "echo waited")
            await ws.until((ws.workdir / "ended").exists, "its end")
            ws.terminate()
            await ws.exited()
            await ws.start()
        assert sorted(answers) == ["done\n", "waited\n"]


async def test_the_client_says_so_when_a_message_is_refused(tmp_path: Path) -> None:
    from client import ask, new_message

    async with workspace(tmp_path, "echo") as ws:
        with httpx.Client(base_url=ws.url, timeout=20) as caller:
            message = {**new_message(""), "parts": []}
            with pytest.raises(ValueError, match="the workspace refused the message"):
                await anyio.to_thread.run_sync(ask, caller, message)


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")


async def test_the_shell_adapter_keeps_the_contract() -> None:
    prompts = Prompts(
        answer="echo {word}",
        tool="echo done >> {effect}",
        slow="touch {begun}; sleep 0.6; echo done >> {effect}",
        long="sleep 60",
    )
    await check_adapter("shell_adapter:ShellAdapter", prompts=prompts)


async def test_the_function_agent_keeps_the_contract() -> None:
    prompts = Prompts(answer="say {word}", long="think for 60 s")
    await check_adapter("function_agent:FunctionAgent", prompts=prompts)


async def test_the_loop_agent_keeps_the_contract_and_disclaims_what_it_cannot_have() -> None:
    prompts = Prompts(
        answer="my word is {word}",
        recall="what did I tell you?",
        tool="deliver letter to {effect}",
        slow="deliver letter to {begun} {effect}",
        long=f"deliver letter to {' '.join(f'box-{n}' for n in range(100))}",
    )
    report = await check_adapter("loop_agent:LoopAgent", prompts=prompts)
    skipped = {result.clause for result in report.results if result.outcome is Outcome.SKIPPED}
    assert skipped == {"holds_at_the_closed_gate", "keeps_parallel_calls_apart"}
