"""The page about the existing platform, held to the tests it names and the routes it tells of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workspace_adapter import heartbeat
from workspace_adapter.settings import Settings
from workspace_adapter.sidecar.door import edge
from workspace_adapter.sidecar.platform import reporter

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "platform.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))
THERE = {
    name for file in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())
}


STORIES = 43
"""Of the existing platform, as far as its sources tell them."""


def stories() -> list[list[str]]:
    table = PAGE.split("<!-- stories -->")[1].split("<!-- /stories -->")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[3:]]


@pytest.mark.parametrize("name", NAMED)
def test_each_test_it_names_is_there(name: str) -> None:
    assert name in THERE


def test_each_story_has_a_test_or_says_whose_it_is() -> None:
    assert len(stories()) == STORIES
    for story, seen, held in stories():
        assert story, seen
        assert re.search(r"`test_\w+`|the platform's", held), story


def test_its_routes_and_times_are_those_of_the_code() -> None:
    for route in (edge.SIGNAL, edge.TRANSCRIPT, edge.AUTH_STATUS, edge.INTERNAL):
        assert route in PAGE, route
    pace = heartbeat.Pace(Settings(workspace_id="one").heartbeat_interval)
    assert f"every {pace.interval:g} s at most" in PAGE
    assert f"{pace.outage:g} s without a heartbeat" in PAGE
    assert f"after {reporter.AFTER:g} s of work and then every {reporter.EVERY / 60:g} minutes" in PAGE
    assert f"within {Settings(workspace_id='one').notify_after:g} s" in PAGE
