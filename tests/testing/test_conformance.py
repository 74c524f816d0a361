"""The contract keeps its word: it passes who keeps it, and fails who does not, for that reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from workspace_adapter.adapter import RuntimeAdapter
from workspace_adapter.errors import SettingsError
from workspace_adapter.runtimes.echo import EchoAdapter
from workspace_adapter.settings import setting, text
from workspace_adapter.testing import NotConformant, Prompts, check_adapter, conformance_tests, proc
from workspace_adapter.testing.broken import BROKEN, LeavesAServer
from workspace_adapter.testing.clauses import CLAUSES
from workspace_adapter.testing.conformance import Outcome, check_clause, page
from workspace_adapter.testing.contract import ClauseBroken, ClauseSkipped
from workspace_adapter.testing.fakes import ScriptedEnds, ScriptedHolds
from workspace_adapter.testing.stage import build


@dataclass(frozen=True, kw_only=True)
class Greeting:
    greeting: str = setting("GREETING", text, "What is said.")


class Greeter(EchoAdapter):
    Settings = Greeting


CLAUSE = {clause.name: clause for clause in CLAUSES}


def script(*steps: dict[str, Any]) -> str:
    return f"<<<{json.dumps(steps)}>>>"


def sh(command: str) -> dict[str, Any]:
    return {"tool": "sh", "input": command}


SCRIPTED = Prompts(
    answer=script({"say": "I was told {word}"}),
    recall=script({"recall": True}),
    tool=script(sh("echo x >> {effect}"), {"say": "done"}),
    slow=script(sh("touch {begun}; sleep 0.6; echo x >> {effect}"), {"say": "done"}),
    parallel=script(
        {"tools": [sh("sleep 0.3; echo a >> {effect}"), sh("sleep 0.3; echo b >> {effect}")]},
        {"say": "done"},
    ),
    long=script(sh("sleep 60")),
)

test_ends = conformance_tests("workspace_adapter.testing.fakes:ScriptedEnds", prompts=SCRIPTED)
test_holds = conformance_tests(ScriptedHolds, prompts=SCRIPTED)
test_echo = conformance_tests(EchoAdapter, prompts=Prompts(answer="Say {word}."), environ="container")


@pytest.fixture
def container() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


@pytest.mark.parametrize(
    ("adapter", "clause", "told"),
    BROKEN,
    ids=[f"{clause}-{adapter.__name__}" for adapter, clause, _ in BROKEN],
)
async def test_a_broken_adapter_is_told_what_it_breaks(
    adapter: type[RuntimeAdapter], clause: str, told: str
) -> None:
    with pytest.raises(ClauseBroken) as broken:
        await check_clause(CLAUSE[clause], adapter, prompts=SCRIPTED, patience=10, promptness=0.5)
    said = str(broken.value)
    assert said.startswith(f"{clause}: ")
    assert told in said
    assert CLAUSE[clause].rule in said


def test_every_clause_has_an_adapter_that_breaks_it() -> None:
    assert {clause for _, clause, _ in BROKEN} == set(CLAUSE)


async def test_the_whole_contract_is_kept_or_skipped_with_a_reason() -> None:
    report = await check_adapter(EchoAdapter, prompts=Prompts(answer="Say {word}."))
    outcomes = {result.clause: result.outcome for result in report.results}
    assert outcomes.keys() == CLAUSE.keys()
    assert outcomes["ends_once"] is Outcome.KEPT
    assert outcomes["asks_before_the_effect"] is Outcome.SKIPPED
    assert "skipped asks_before_the_effect: `capabilities.gate` is None" in str(report)


async def test_the_report_of_a_broken_adapter_names_the_clauses() -> None:
    class Silent(EchoAdapter):
        async def check(self) -> Any:
            return None

    with pytest.raises(NotConformant) as refused:
        await check_adapter(Silent, prompts=Prompts(answer="Say {word}."))
    assert [result.clause for result in refused.value.report.broken] == ["can_be_started"]
    assert "1 clauses are broken" in str(refused.value)
    assert "BROKEN  can_be_started: `check` returned None" in str(refused.value)


async def test_a_claim_without_a_prompt_that_proves_it_is_a_failure() -> None:
    with pytest.raises(ClauseBroken, match=r"`Prompts.tool` is needed, or disclaim"):
        await check_clause(CLAUSE["asks_before_the_effect"], ScriptedEnds, prompts=Prompts(answer="{word}"))


async def test_what_another_process_cannot_import_is_skipped_there() -> None:
    with pytest.raises(ClauseSkipped, match="give it as `module:Class`"):
        await check_clause(CLAUSE["goes_on_after_sigkill"], lambda: ScriptedEnds(), prompts=SCRIPTED)
    await check_clause(CLAUSE["asks_before_the_effect"], lambda: ScriptedEnds(), prompts=SCRIPTED)


async def test_an_adapter_gets_the_settings_of_the_environment_it_is_tried_in() -> None:
    with pytest.raises(SettingsError, match="GREETING is required"):
        build(Greeter, {})
    assert build(f"{__name__}:Greeter", {"GREETING": "hello"}).settings.greeting == "hello"


async def test_a_turn_that_never_ends_says_what_was_seen_last() -> None:
    silent = Prompts(answer=script({"activity": "waits"}, {"hang": True}))
    with pytest.raises(
        ClauseBroken, match=r"nothing more came within 0\.2 s; the last thing seen was .*waits"
    ):
        await check_clause(CLAUSE["answers"], ScriptedEnds, prompts=silent, patience=0.2)


async def test_an_adapter_that_hangs_outside_of_a_turn_is_given_up_too() -> None:
    class Stuck(EchoAdapter):
        async def check(self) -> str:
            await anyio.sleep_forever()
            raise AssertionError

    with pytest.raises(ClauseBroken, match="nothing more came"):
        await check_clause(CLAUSE["can_be_started"], Stuck, prompts=Prompts(answer="{word}"), patience=0.01)


async def test_nothing_of_a_broken_adapter_is_left_running() -> None:
    token = uuid4().hex
    with pytest.raises(ClauseBroken, match="still runs"):
        await check_clause(
            CLAUSE["leaves_nothing_behind"],
            LeavesAServer,
            prompts=SCRIPTED,
            environ={"PATH": "/usr/bin:/bin", "TOKEN": token},
        )
    assert not proc.marked(token)


def test_the_page_on_the_contract_is_the_contract() -> None:
    written = Path(__file__).parents[2] / "docs" / "adapter-contract.md"
    assert written.read_text() == page()
