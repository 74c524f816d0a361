"""Proves the contract on one adapter.

``check_adapter`` *is* the specification: it goes through every clause, on the real
runtime, and says which are broken and what to mend.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import defpath
from pathlib import Path

import anyio

from ..errors import AdapterError
from .clauses import CLAUSES
from .contract import Clause, ClauseBroken, ClauseSkipped, Prompts
from .stage import Stage, Subject, build

_WAITS = 10
"""No clause waits more often; this ends one whose adapter hangs where nobody watches the clock."""


class Outcome(StrEnum):
    """What came of one clause."""

    KEPT = "kept"
    BROKEN = "BROKEN"
    SKIPPED = "skipped"


async def check_clause(
    clause: Clause,
    adapter: Subject,
    *,
    prompts: Prompts,
    environ: Mapping[str, str] | None = None,
    patience: float = 30.0,
    promptness: float = 5.0,
) -> None:
    """Prove one clause on one adapter; for the arguments see :func:`check_adapter`.

    Raises:
        ClauseBroken: saying what was seen.
        ClauseSkipped: saying what the adapter disclaims.
    """
    environ = {"PATH": defpath} if environ is None else environ
    sample = build(adapter, environ)
    for condition in clause.conditions:
        if not condition.holds(sample, adapter, prompts):
            raise ClauseSkipped(condition.otherwise)
    for need in clause.needs:
        if not getattr(prompts, need):
            raise ClauseBroken(f"{clause.name}: `Prompts.{need}` is needed, or disclaim the capability")
    with tempfile.TemporaryDirectory() as directory:
        stage = Stage(
            subject=adapter,
            environ=environ,
            directory=Path(directory),
            patience=patience,
            promptness=promptness,
        )
        try:
            with anyio.fail_after(_WAITS * patience):
                await clause.prove(stage, prompts)
        except Exception as error:
            raise ClauseBroken(f"{clause.name}: {_in_words(error, stage)}\n({clause.rule})") from error
        finally:
            with anyio.CancelScope(shield=True):
                await stage.recovering()


def _in_words(error: Exception, stage: Stage) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error.__context__, ClauseBroken):
        # An adapter that left a scope open has spoilt ours on the way out, too.
        error = error.__context__
    match error:
        case ClauseBroken():
            return str(error)
        case TimeoutError():
            return f"nothing more came within {stage.patience:g} s; the last thing seen was {stage.last}"
        case RuntimeError() if "cancel scope" in str(error):
            return f"a `yield` stands inside a task group, a cancel scope or a timeout ({error})"
        case AdapterError():
            return f"{type(error).__name__} was raised: {error}"
    return (
        f"{type(error).__name__} came out of the adapter ({error}); only errors of the"
        " AdapterError tree may: TurnFailed, SessionLost, RuntimeLost, RuntimeUnusable"
    )


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one clause, and why."""

    clause: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of every clause."""

    results: tuple[Result, ...]

    @property
    def broken(self) -> tuple[Result, ...]:
        """The clauses that the adapter does not keep."""
        return tuple(result for result in self.results if result.outcome is Outcome.BROKEN)

    def __str__(self) -> str:
        return "\n".join(f"{r.outcome:8}{r.why or r.clause}" for r in self.results)


class NotConformant(AssertionError):
    """An adapter breaks the contract; prints the whole report."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{len(report.broken)} clauses are broken\n{report}")
        self.report = report


async def check_adapter(
    adapter: Subject,
    *,
    prompts: Prompts,
    environ: Mapping[str, str] | None = None,
    patience: float = 30.0,
    promptness: float = 5.0,
) -> Report:
    """Prove every clause of the contract on one adapter.

    Args:
        adapter: ``module:Class``, the class, or a function that makes one. Clauses that need
            a second process are skipped when it cannot be imported there by its name.
        prompts: what makes this runtime do what the clauses need to see.
        environ: the container's environment, which the adapter's settings are parsed from
            and its children get; left out, it holds a ``PATH`` and nothing else.
        patience: seconds that any turn may take.
        promptness: seconds that a stopped turn may take to end.

    Raises:
        NotConformant: with the report, when a clause is broken.
        SettingsError: the adapter's settings cannot be parsed from ``environ``.
    """
    results = []
    for clause in CLAUSES:
        try:
            await check_clause(
                clause,
                adapter,
                prompts=prompts,
                environ=environ,
                patience=patience,
                promptness=promptness,
            )
            results.append(Result(clause.name, Outcome.KEPT))
        except ClauseBroken as broken:
            results.append(Result(clause.name, Outcome.BROKEN, str(broken)))
        except ClauseSkipped as skipped:
            results.append(Result(clause.name, Outcome.SKIPPED, f"{clause.name}: {skipped}"))
    report = Report(tuple(results))
    if report.broken:
        raise NotConformant(report)
    return report


def page() -> str:
    """Return the contract as a page of Markdown."""
    lines = [
        "# The contract of an adapter",
        "",
        "Generated from the clauses of `workspace_adapter.testing.conformance`, which prove it:",
        "",
        "    python -m workspace_adapter.testing.conformance > docs/adapter-contract.md",
        "",
        "`check_adapter` goes through all of them; a clause is skipped where the adapter disclaims",
        "what it is about, and the report says so.",
        "",
        "| clause | what it asks | skipped when |",
        "|---|---|---|",
    ]
    for clause in CLAUSES:
        rule = clause.rule.replace("\n", " ").replace("``", "`")
        skipped = "; ".join(condition.otherwise for condition in clause.conditions)
        lines.append(f"| `{clause.name}` | {rule} | {skipped} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
