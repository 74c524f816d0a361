"""The page of the existing platform's flaws, held to the tests it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "flaws.md").read_text()
THERE = {
    name for file in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())
}


def rows(table: str) -> list[list[str]]:
    text = PAGE.split(f"<!-- {table} -->")[1].split(f"<!-- /{table} -->")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.strip().splitlines()[2:]
    ]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", PAGE))))
def test_each_test_it_names_is_there(name: str) -> None:
    assert name in THERE


def test_each_of_the_twenty_flaws_is_held_by_a_test() -> None:
    flaws = rows("flaws")
    assert [row[0] for row in flaws] == [str(number) for number in range(1, 21)]
    for number, _there, _here, held in flaws:
        assert re.search(r"`test_\w+`", held), number


def test_each_of_its_own_tests_has_a_counterpart() -> None:
    for theirs, held in rows("counterparts"):
        assert re.search(r"`test_\w+`", held), theirs
