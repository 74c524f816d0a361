"""Every example does what it says of itself, and the adapters among them keep the contract."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from workspace_adapter.testing import Prompts, check_adapter
from workspace_adapter.testing.conformance import Outcome

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


async def disclaimed(adapter: str, prompts: Prompts) -> set[str]:
    """Prove an adapter; return why clauses were skipped."""
    report = await check_adapter(adapter, prompts=prompts)
    return {result.why.partition(": ")[2] for result in report.results if result.outcome is Outcome.SKIPPED}


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
    assert await disclaimed("shell_adapter:ShellAdapter", prompts) == {
        "`capabilities.gate` is not HOLD",
        "`Prompts.parallel` is empty",
        "`capabilities.cancels` is false",
        "`capabilities.resumes` is false",
        "`recover` is not written: every interrupted turn counts as seen",
    }


async def test_the_function_agent_keeps_the_contract() -> None:
    prompts = Prompts(answer="say {word}", long="think for 60 s")
    assert await disclaimed("function_agent:FunctionAgent", prompts) == {
        "`capabilities.gate` is None",
        "`capabilities.gate` is not HOLD",
        "`capabilities.cancels` is false",
        "`capabilities.resumes` is false",
        "`recover` is not written: every interrupted turn counts as seen",
        "it calls no tool: `Prompts.slow` is empty and `capabilities.gate` is None",
    }


async def test_the_loop_agent_keeps_the_contract() -> None:
    prompts = Prompts(
        answer="my word is {word}",
        recall="what did I tell you?",
        tool="deliver letter to {effect}",
        slow="deliver letter to {begun} {effect}",
        long=f"deliver letter to {' '.join(f'box-{n}' for n in range(100))}",
    )
    assert await disclaimed("loop_agent:LoopAgent", prompts) == {
        "`capabilities.gate` is not HOLD",
        "`Prompts.parallel` is empty",
    }
