"""The Claude runtime keeps the contract, clause by clause."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workspace_adapter.testing import Prompts, conformance_tests

from ..conftest import require


def script(*steps: dict[str, Any]) -> str:
    return f"<<<{json.dumps(steps)}>>>"


def bash(command: str) -> dict[str, Any]:
    return {"tool": "Bash", "input": {"command": command}}


PROMPTS = Prompts(
    answer="The word is {word}. " + script({"text": "I was told {word}"}),
    recall=script({"recall": r"word is ([\w-]+)"}),
    tool=script(bash("echo x >> {effect}"), {"text": "done"}),
    slow=script(bash("touch {begun}; sleep 1; echo x >> {effect}"), {"text": "done"}),
    parallel=script(
        {"tools": [bash("sleep 0.3; echo a >> {effect}"), bash("sleep 0.3; echo b >> {effect}")]},
        {"text": "done"},
    ),
    long=script(bash("true; sleep 60"), {"text": "done"}),
)


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    command = [sys.executable, "-m", "workspace_adapter.testing.scripted_model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


@pytest.fixture
def container(model: str, tmp_path: Path) -> dict[str, str]:
    require(importlib.util.find_spec("claude_agent_sdk") is not None, "claude-agent-sdk is not installed")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "ANTHROPIC_BASE_URL": model,
        "ANTHROPIC_API_KEY": "key-of-the-test",
    }


test_claude = conformance_tests(
    "workspace_adapter.runtimes.claude:ClaudeAdapter", prompts=PROMPTS, environ="container"
)
