"""From a row to the table, the JSON, the picture and the exit code."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.__main__ import ROWS
from benchmarks.frame import Bench, Figure, at_least, at_most, command, never

FINE = {"counting": "tests.benchmarks.counting"}
SHORT = {"falling-short": "tests.benchmarks.falling_short"}
SVG = "{http://www.w3.org/2000/svg}"


def test_a_row_becomes_a_table_a_json_file_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, drawn = tmp_path / "figures.json", tmp_path / "figures.svg"
    assert command.run(FINE | SHORT, ["--json", str(file), "--svg", str(drawn)]) == 0

    head, rule, *lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in (head, rule, *lines)}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]][:2] == ["counting", "counted"]
    assert [line.split("|")[-2].strip() for line in lines] == ["ok", "ok", "ok", "–", "SHORT"]

    figures = json.loads(file.read_text(), parse_constant=pytest.fail)["figures"]
    assert figures[0]["measured"] == figures[0]["reference"] == [3.0, 4.0]  # the first round is left out
    assert [figure["verdict"] for figure in figures] == ["ok", "ok", "ok", "none", "short"]
    assert figures[4]["margin"] == 0

    picture = ElementTree.parse(drawn).getroot()
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert "3 of 4 limits kept" in words
    assert "counting: counted, against <&>" in words
    assert len([bar for bar in picture.iter(f"{SVG}rect") if bar.get("fill") != "#ffffff"]) == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["counting", "--check"], 0),
        (["falling-short"], 0),
        (["falling-short", "--check"], 1),
        (["counting", "falling-short", "--check"], 1),
        (["lacking"], 0),
        (["lacking", "--check"], 1),
    ],
)
def test_only_check_turns_a_missed_limit_into_an_exit_code(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "PEERS", tmp_path / "nobody")
    assert command.run(FINE | SHORT | {"lacking": "tests.benchmarks.lacking"}, arguments) == code


def test_what_a_row_lacks_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PEERS", tmp_path / "nobody")
    command.run({"lacking": "tests.benchmarks.lacking"}, [])
    assert f"lacking: not measured: {tmp_path}/nobody is missing" in capsys.readouterr().out


def test_an_unknown_row_is_refused_with_the_names_there_are() -> None:
    asked = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(asked, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such row: speed" in done.stderr
    assert ROWS[0] in done.stderr


@pytest.mark.parametrize("row", ROWS)
def test_every_row_says_what_it_measures(row: str) -> None:
    module = import_module(f"benchmarks.{row}")
    assert module.__doc__
    assert callable(module.measure)


async def test_each_round_begins_with_another_side(tmp_path: Path) -> None:
    order: list[str] = []
    bench = Bench(scratch=tmp_path, peers=tmp_path, quick=False)

    def side(name: str) -> Callable[[], Awaitable[str]]:
        async def measured() -> str:
            order.append(name)
            return name

        return measured

    await bench.interleave({name: side(name) for name in "abc"}, rounds=2)
    assert "".join(order) == "abcbcacab"


@pytest.mark.parametrize(
    ("figure", "margin"),
    [
        (Figure(what="f", unit="", measured=[3.0, 1.0, 2.0], limit=at_least(1)), 2.0),
        (Figure(what="f", unit="", measured=[3.0, 1.0, 2.0], limit=at_most(1)), 0.5),
        (
            Figure(what="f", unit="", measured=[9.0], against="r", reference=[3.0], limit=at_least(times=2)),
            1.5,
        ),
        (
            Figure(
                what="f", unit="", measured=[8.0], against="r", reference=[3.0], limit=at_most(1, times=1)
            ),
            0.5,
        ),
        (Figure(what="f", unit="", measured=[0.0, 0.0], limit=never()), math.inf),
        (Figure(what="f", unit="", measured=[0.0, 5.0, 0.0], limit=never()), 0.0),
        (Figure(what="f", unit="", measured=[1.0]), None),
    ],
)
def test_a_margin_says_how_many_times_better_than_the_limit(figure: Figure, margin: float | None) -> None:
    assert figure.margin == margin


def test_a_reference_is_of_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="one value a round"):
        Figure(what="f", unit="", measured=[1.0, 2.0], against="r", reference=[1.0])
