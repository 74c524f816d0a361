"""What the operator's page says is what there is, and it leaves nothing out."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace_adapter import __version__, cli
from workspace_adapter.drain import DrainState
from workspace_adapter.sidecar.door import edge
from workspace_adapter.sidecar.journal import schema
from workspace_adapter.turns import ENDED, TRANSITIONS, State

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "workspace_adapter"
PAGE = (ROOT / "docs" / "operations.md").read_text()


def rows(name: str) -> list[list[str]]:
    """The rows of every table between the page's markers of this name."""
    found = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, re.S)
    assert found, name
    return [
        [cell.strip() for cell in line.strip("| ").split(" |")]
        for table in found
        for line in table.strip().splitlines()[2:]
    ]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- the log ----------------------------------------------------------------------------

REASONS = frozenset(
    {"StateDirError", "JournalError", "JournalTooNew", "JournalUnavailable", "JournalTaken", "JournalDamaged"}
)
"""What is logged as ``%s`` alone: the sentence stands where the exception is made."""


def as_written(node: ast.expr) -> str | None:
    """A format string or sentence, with an ellipsis for whatever varies."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[-+ #0]*\d*(?:\.\d+)?[sdrfgx]", "…", text)
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            return re.sub("…+", "…", text)
    return None


def said() -> Iterator[str]:
    """Every line of level warning or error, and every reason that makes up a whole line."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr="warning" | "error" | "exception"),
                    args=[line, *_],
                ):
                    text = as_written(line)
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr="log"), args=[_, line, *_]
                ):
                    text = as_written(line)
                case ast.Call(func=ast.Name(id=name), args=[line, *_]) if name in REASONS:
                    text = as_written(line)
                case _:
                    continue
            assert text is not None, f"{path}:{node.lineno}: what it says must stand in the code"
            if text != "…":
                yield text


def test_every_line_that_asks_for_a_person_is_on_the_page_and_no_other() -> None:
    listed = [code(row[0])[0] for row in rows("log lines")]
    assert set(said()) - set(listed) == set(), "docs/operations.md does not list them"
    assert set(listed) - set(said()) == set(), "docs/operations.md lists what is never said"
    assert len(listed) == len(set(listed))


def findings() -> Iterator[tuple[str, str]]:
    """Every finding of the doctor's that is not good: its status and what it says."""
    for path in (SOURCE / "sidecar" / "doctor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="broken" | "warning" as status), args=[found, _]):
                    text = as_written(found)
                    assert text is not None, f"{path}:{node.lineno}: what it says must stand in the code"
                    yield status, text


def test_every_finding_of_the_doctor_is_on_the_page_and_no_other() -> None:
    listed = [(row[1], code(row[0])[0]) for row in rows("findings")]
    assert set(findings()) - set(listed) == set(), "docs/operations.md does not list them"
    assert set(listed) - set(findings()) == set(), "docs/operations.md lists what is never found"
    assert len(listed) == len(set(listed))


def test_every_line_says_what_happened_and_what_is_lost() -> None:
    assert [row for row in rows("log lines") if len(row) != 3 or not all(row)] == []


# --- states, settings, places -----------------------------------------------------------


def test_the_states_of_a_turn_are_those_of_the_table() -> None:
    listed = {State(code(row[0])[0]): {State(state) for state in code(row[3])} for row in rows("states")}
    assert listed == {state: set(targets) for state, targets in TRANSITIONS.items()}
    (ended,) = re.findall(r"^Ended turns \((.*?)\)", PAGE, re.M)
    assert {State(state) for state in code(ended)} == ENDED


def test_the_states_of_the_drain_are_those_of_the_code() -> None:
    assert [code(row[0])[0] for row in rows("drain states")] == [str(state) for state in DrainState]


def test_every_pair_of_settings_that_is_checked_is_on_the_page() -> None:
    settings = (SOURCE / "settings.py").read_text()
    (checks,) = re.findall(r"    def conflicts\(.*?(?=\n    @property)", settings, re.S)
    checked = set(re.findall(r"WORKSPACE_[A-Z_]*[A-Z]", checks))
    (section,) = re.findall(r"^## Settings that must fit together\n(.*?)^#", PAGE, re.M | re.S)
    assert set(re.findall(r"WORKSPACE_[A-Z_]*[A-Z]", section)) == checked


def test_the_endpoints_are_those_of_the_edge() -> None:
    listed = {code(row[0])[0].split()[1]: row[2] for row in rows("endpoints")}
    assert listed.keys() == {
        *("/", edge.HEALTH, edge.READY, edge.STATUS, edge.METRICS, edge.SIGNAL, edge.CARD),
        *(edge.TRANSCRIPT, edge.AUTH_STATUS),
    }
    assert {path for path, bearer in listed.items() if bearer == "no"} == edge._PUBLIC


def test_what_readyz_says_is_what_the_code_says() -> None:
    listed = {code(row[0])[0] for row in rows("not ready")}
    ready = (SOURCE / "sidecar" / "telemetry" / "standing.py").read_text()
    assert set(re.findall(r"return False, \"(.*?)\"", ready)) == listed
    assert len(listed) == 4


def test_the_refusals_are_those_of_the_door() -> None:
    """By status and JSON-RPC code; the table in ``refusal.py`` is held to the edge by its own tests."""
    refusals = (SOURCE / "sidecar" / "door" / "refusal.py").read_text()
    table = re.findall(r"^\S.*?\s{2,}(-\d+)?\s+(\d{3})\s+(\d{3})$", refusals, re.M)
    wanted = {(code or None, status) for code, _, status in table}
    wanted |= {(None, str(status)) for status in (400, 404, 409, 429)}  # of the routes themselves
    listed = {
        (found.group() if (found := re.search(r"-32\d+", row[0])) else None, row[3])
        for row in rows("refusals")
    }
    assert listed == wanted
    signal = (SOURCE / "sidecar" / "app.py").read_text()
    assert set(re.findall(r"status_code=(4\d\d)", signal)) == {"400", "404", "409", "429"}


def test_the_schemas_are_those_of_the_journal() -> None:
    listed = rows("schemas")
    assert [int(row[0]) for row in listed] == list(range(1, len(schema.MIGRATIONS) + 1))
    assert __version__.startswith(listed[-1][1])


def test_every_file_on_the_page_is_one_of_ours() -> None:
    names = {name.strip("/") for row in rows("files") for name in code(row[0])}
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    for name in names:
        stem = name.removesuffix("-wal").removesuffix("-shm").removesuffix("-…")
        assert f'"{stem}"' in source or stem.startswith(schema.FILE), name


def test_the_rules_to_be_woken_by_ask_for_metrics_that_there_are() -> None:
    """What there is, ``tests/walks/test_metrics.py`` compares with the page."""
    listed = {code(row[0])[0] for row in rows("metrics")}
    asked = re.findall(r"workspace_adapter_(\w+)", "\n".join(re.findall(r"expr: (.*)", PAGE)))
    assert len(asked) > 5
    assert set(asked) - listed == set()


def test_every_link_leads_to_a_heading() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) - headings == set()


# --- commands ---------------------------------------------------------------------------


def shown() -> list[list[str]]:
    """Every command of ours on the page, as its words."""
    blocks = "\n".join(re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S)).replace("\\\n", " ")
    inline = [text for text in re.findall(r"`([^`\n]+)`", PAGE) if text.startswith("workspace-adapter ")]
    lines = [line.removeprefix("$ ") for line in blocks.splitlines()] + inline
    found = [shlex.split(line) for line in lines]
    return [words[words.index("workspace-adapter") + 1 :] for words in found if "workspace-adapter" in words]


def test_there_are_commands_on_the_page() -> None:
    assert len(shown()) > 6


@pytest.mark.parametrize("words", shown(), ids=" ".join)
def test_every_command_on_the_page_is_understood(words: list[str]) -> None:
    assert isinstance(cli._parser().parse_args(words), argparse.Namespace)


def test_every_command_is_on_the_page() -> None:
    """But for what serves, which is not typed, and those for authors of adapters."""

    def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[str]:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for action in below:
            for word, deeper in action.choices.items():
                yield from commands(deeper, *words, word)
        if not below:
            yield " ".join(words)

    author = argparse.ArgumentParser()
    cli.author.declare(author.add_subparsers())
    wanted = {*commands(cli._parser())} - {*commands(author)} - {"serve", "platform serve"}
    assert {code(row[0])[0] for row in rows("commands")} == wanted


def test_the_commands_with_codes_of_their_own_exist() -> None:
    commands = {code(row[0])[0] for row in rows("exit codes") if code(row[0])}
    for command in commands:
        cli._parser().parse_args(command.split())


def test_the_engine_is_told_the_time_that_the_sidecar_is_told() -> None:
    told = re.findall(r"-e WORKSPACE_STOP_TIMEOUT=(\d+)", PAGE)
    assert re.findall(r"--stop-timeout (\d+)", PAGE) == told != []
