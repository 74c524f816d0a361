"""What the README shows is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from workspace_adapter.testing import Prompts, check_adapter

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_settings_are_those_of_the_code() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "settings-table", "--check"], check=True)


def test_every_file_in_the_map_exists() -> None:
    (tree,) = re.findall(r"^src/workspace_adapter/\n((?:  \S+ .*\n)+)", README, re.M)
    rooms = re.findall(r"^  (\S+)", tree, re.M)
    package = ROOT / "src" / "workspace_adapter"
    assert [room for room in rooms if not (package / room).exists()] == []
    assert {path.name for path in package.glob("[a-z]*.py")} <= set(rooms)


async def test_the_adapter_it_shows_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    (tmp_path / "shown_in_readme.py").write_text(shown)
    monkeypatch.syspath_prepend(tmp_path)
    prompts = Prompts(
        answer="echo {word}",
        tool="echo done >> {effect}",
        slow="touch {begun}; sleep 0.6; echo done >> {effect}",
        long="sleep 60",
    )
    await check_adapter("shown_in_readme:ShellAdapter", prompts=prompts)
