"""What an import costs."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded_by(module: str) -> set[str]:
    """Return the top-level modules that importing one loads into a new process."""
    script = (
        "import sys; before = set(sys.modules);"
        f"import {module};"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_package_loads_nothing_but_the_light_part_of_the_standard_library() -> None:
    loaded = loaded_by("workspace_adapter")
    assert loaded - sys.stdlib_module_names == {"workspace_adapter"}
    assert not loaded & {"asyncio", "http", "multiprocessing", "sqlite3", "ssl", "subprocess"}


@pytest.mark.parametrize("module", ["workspace_adapter.runtimes.claude", "workspace_adapter.cli"])
def test_a_vendor_sdk_waits_until_it_is_needed(module: str) -> None:
    assert not loaded_by(module) & {"claude_agent_sdk", "a2a", "mcp"}
