"""What the README shows is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_settings_and_its_code_are_those_of_the_files() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "readme", "--check"], check=True)


def test_every_file_in_the_map_exists() -> None:
    (tree,) = re.findall(r"^src/workspace_adapter/\n((?:  \S+ .*\n)+)", README, re.M)
    rooms = re.findall(r"^  (\S+)", tree, re.M)
    package = ROOT / "src" / "workspace_adapter"
    assert [room for room in rooms if not (package / room).exists()] == []
    assert {path.name for path in package.glob("[a-z]*.py")} <= set(rooms)
