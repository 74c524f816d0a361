"""The pages for people, held to the settings that there are and to the files they point at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workspace_adapter.runtimes.claude.settings import ClaudeSettings
from workspace_adapter.settings import Settings, variables
from workspace_adapter.shim.settings import ShimSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = re.compile(r"\b(?:WORKSPACE|CLAUDE_CONFIG|CONFIGS|PLATFORM|SHIM)_[A-Z_]*[A-Z]\b")
OF_TESTS = "WORKSPACE_TEST_"
KNOWN = {
    name
    for settings in (Settings, ClaudeSettings, ShimSettings)
    for variable in variables(settings).values()
    for name in (variable.name, *variable.aliases)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_it_names_exists(page: Path) -> None:
    named = {name for name in OURS.findall(page.read_text()) if not name.startswith(OF_TESTS)}
    assert named - KNOWN == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_it_points_at_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
