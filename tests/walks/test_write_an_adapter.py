"""What docs/write-an-adapter.md shows is run, block by block."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import inherited
from workspace_adapter.testing import Prompts, check_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "write-an-adapter.md").read_text()
BLOCKS = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.M | re.S)
STEPS = [
    (code, test)
    for (name, code), (next_name, test) in pairwise(BLOCKS)
    if (name, next_name) == ("my_agent.py", "test_my_agent.py")
]
TRY = re.findall(r"^\$ workspace-adapter (try .*)$", PAGE, re.M)


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = inherited()
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**kept, "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_every_block_of_code_is_one_that_is_run() -> None:
    assert PAGE.count("```python\n") == len(BLOCKS) == 2 * len(STEPS) + 2
    assert len(STEPS) == 3
    assert len(TRY) == 2


@pytest.mark.parametrize("step", range(3))
def test_each_step_passes_the_test_that_is_shown_with_it(tmp_path: Path, step: int) -> None:
    for name, text in zip(("my_agent.py", "test_my_agent.py"), STEPS[step], strict=True):
        (tmp_path / name).write_text(text)
    told = run("pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert told.returncode == 0, told.stdout
    assert " passed" in told.stdout


def test_the_last_step_survives_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text(STEPS[-1][0])
    told = run("workspace_adapter", *shlex.split(TRY[-1]), cwd=tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize(
    ("name", "adapter", "prompts"),
    [
        ("one_server", "OneServerAdapter", Prompts(answer="The word is {word}.")),
        ("blocking", "BlockingAdapter", Prompts(answer="The word is {word}.", long="think for 60 s")),
    ],
)
async def test_the_other_ways_keep_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, adapter: str, prompts: Prompts
) -> None:
    (tmp_path / f"{name}.py").write_text(dict(BLOCKS)[f"{name}.py"])
    monkeypatch.syspath_prepend(tmp_path)
    await check_adapter(f"{name}:{adapter}", prompts=prompts)
