"""What a clause of the adapter's contract is, and what an author gives so that it can be proved."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..adapter import AtClosedGate, RuntimeAdapter
from .stage import Stage, Subject, name_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What makes this runtime do what the clauses need to see.

    In each text ``{effect}`` and ``{begun}`` stand for the paths of two files and
    ``{word}`` for a word, new ones for every session. A runtime that cannot do a thing
    leaves its text out; where its capabilities claim it, that is a failure.
    """

    answer: str
    """It answers without a tool, and the answer holds ``{word}``."""

    recall: str = ""
    """It answers with the word it was last told in this session."""

    tool: str = ""
    """It makes one tool call, which appends a line to ``{effect}``, then answers."""

    slow: str = ""
    """The same; the call first makes the file ``{begun}`` and takes half a second or more."""

    parallel: str = ""
    """It makes two such slow calls at once (neither needs ``{begun}``), then answers."""

    long: str = ""
    """It works for a minute or longer."""


class ClauseBroken(AssertionError):
    """The adapter does not keep a clause; the text says what was seen and what to mend."""


class ClauseSkipped(Exception):
    """The adapter disclaims what the clause is about; the text says how."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What an adapter must have for a clause to be about it."""

    holds: Callable[[RuntimeAdapter, Subject, Prompts], bool]
    otherwise: str


GATES = Condition(lambda a, s, p: a.capabilities.gate is not None, "`capabilities.gate` is None")
HOLDS = Condition(lambda a, s, p: a.capabilities.gate is AtClosedGate.HOLD, "`capabilities.gate` is not HOLD")
RESUMES = Condition(lambda a, s, p: a.capabilities.resumes, "`capabilities.resumes` is false")
CANCELS = Condition(lambda a, s, p: a.capabilities.cancels, "`capabilities.cancels` is false")
RECOVERS = Condition(
    lambda a, s, p: type(a).recover is not RuntimeAdapter.recover,
    "`recover` is not written: every interrupted turn counts as seen",
)
FORGETS = Condition(
    lambda a, s, p: type(a).forget is not RuntimeAdapter.forget,
    "`forget` is not written: what the runtime keeps of a session stays when it is forgotten",
)
IMPORTABLE = Condition(
    lambda a, s, p: name_of(s) is not None, "another process cannot import it: give it as `module:Class`"
)
WORKS = Condition(
    lambda a, s, p: bool(p.slow) or a.capabilities.gate is not None,
    "it calls no tool: `Prompts.slow` is empty and `capabilities.gate` is None",
)
LASTS = Condition(
    lambda a, s, p: bool(p.long) or a.capabilities.cancels,
    "no turn of it lasts: `Prompts.long` is empty and `capabilities.cancels` is false",
)
PARALLEL = Condition(lambda a, s, p: bool(p.parallel), "`Prompts.parallel` is empty")


Proof = Callable[[Stage, Prompts], Awaitable[None]]
"""Works an adapter and breaks the clause when it is not as it should be."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule of the contract."""

    prove: Proof
    conditions: tuple[Condition, ...]
    needs: tuple[str, ...]
    """Prompts that must be given when the conditions hold."""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        return self.prove.__name__

    @property
    def rule(self) -> str:
        """What it asks of an adapter."""
        return inspect.cleandoc(self.prove.__doc__ or "")


CLAUSES: list[Clause] = []
"""The contract, in order."""


def clause(*conditions: Condition, needs: Sequence[str] = ()) -> Callable[[Proof], Proof]:
    """Make a function a clause of the contract."""

    def register(prove: Proof) -> Proof:
        CLAUSES.append(Clause(prove, conditions, tuple(needs)))
        return prove

    return register


def expect(fact: bool, otherwise: str) -> None:
    """Break the clause when something is not so."""
    if not fact:
        raise ClauseBroken(otherwise)
