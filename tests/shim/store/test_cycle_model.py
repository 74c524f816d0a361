"""Each store's cycles against a model that says in plain Python what they promise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.shim.store.conftest import RULES, Place
from workspace_adapter.shim.store.contract import Aim, Cycle, Step, Store

T = TypeVar("T")

WORKSPACES = ("v", "w")
STEPS = (Step.SIGNAL, Step.STOP, Step.START, Step.WAIT, Step.DONE, Step.DONE, Step.FAILED)


@dataclass
class Known:
    """What the model knows of a cycle."""

    id: int
    workspace: str
    aim: Aim
    requests: int = 1
    step: Step = Step.ASKED
    attempt: int = 0
    holder: Cycle | None = None
    until: float = 0.0

    @property
    def over(self) -> bool:
        return self.step in (Step.DONE, Step.FAILED)

    @property
    def runs(self) -> bool:
        return self.attempt > 0 and not self.over

    @property
    def waits(self) -> bool:
        return self.attempt == 0


class Cycles(RuleBasedStateMachine):
    """Whatever is done to a store, it says of each cycle what the model says."""

    def __init__(self, place: Place, number: int) -> None:
        super().__init__()
        self.where = Place(place.kind, f"{place.url}.{number}", "")
        if place.kind == "postgres":
            self.where = Place(place.kind, place.url, f"{place.schema}_{number}")
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.open()
        self.now = 1000.0
        self.known: dict[int, Known] = {}
        self.held: list[Cycle] = []
        for name in WORKSPACES:
            self.do(self.store.create_workspace, name, now=self.now)

    def open(self) -> None:
        self.opened = self.portal.wrap_async_context_manager(self.where.open())
        self.store: Store = self.opened.__enter__()

    def do(self, verb: Callable[..., Awaitable[T]], *values: object, **more: object) -> T:
        return self.portal.call(lambda: verb(*values, **more))

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        self.stack.close()

    def of(self, workspace: str) -> list[Known]:
        return [cycle for cycle in self.known.values() if cycle.workspace == workspace]

    # --- what is done -----------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 10.0, RULES.lease - 1, RULES.lease]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def it_is_closed_and_opened(self) -> None:
        self.opened.__exit__(None, None, None)
        self.open()

    @rule(workspace=st.sampled_from(WORKSPACES), aim=st.sampled_from(Aim), times=st.integers(1, 3))
    def a_cycle_is_asked_for(self, workspace: str, aim: Aim, times: int) -> None:
        for _ in range(times):
            waiting = next((cycle for cycle in self.of(workspace) if cycle.waits), None)
            cycle, new = self.do(self.store.ask_cycle, workspace, aim, "why", now=self.now)
            assert new is (waiting is None)
            if waiting is None:
                waiting = self.known[cycle.id] = Known(cycle.id, workspace, aim)
            else:
                waiting.requests += 1
                if aim is Aim.REMOVE or (aim is Aim.PAUSE and waiting.aim is not Aim.REMOVE):
                    waiting.aim = aim
            assert (cycle.id, cycle.aim, cycle.requests) == (waiting.id, waiting.aim, waiting.requests)

    @rule(owner=st.sampled_from("pq"))
    def a_replica_claims(self, owner: str) -> None:
        free = [
            cycle
            for cycle in self.known.values()
            if (cycle.runs and cycle.until <= self.now)
            or (cycle.waits and not any(other.runs for other in self.of(cycle.workspace)))
        ]
        cycle = self.do(self.store.claim_cycle, owner, now=self.now)
        if not free:
            assert cycle is None
            return
        assert cycle is not None
        known = min(free, key=lambda one: one.id)
        known.attempt += 1
        known.holder, known.until = cycle, self.now + RULES.lease
        assert (cycle.id, cycle.attempt, cycle.step) == (known.id, known.attempt, known.step)
        self.held.append(cycle)

    @rule(owner=st.sampled_from("pq"))
    def an_owner_dies_and_another_claims(self, owner: str) -> None:
        self.now += RULES.lease
        self.a_replica_claims(owner)

    def holds(self, cycle: Cycle) -> Known | None:
        known = self.known[cycle.id]
        return known if known.runs and known.holder == cycle else None

    @precondition(lambda self: self.held)
    @rule(data=st.data(), step=st.sampled_from(STEPS))
    def an_owner_goes_on(self, data: st.DataObject, step: Step) -> None:
        cycle = data.draw(st.sampled_from(self.held[-4:]))
        known = self.holds(cycle)
        advanced = self.do(self.store.advance_cycle, cycle, step, notes={step: self.now}, now=self.now)
        assert (advanced is not None) is (known is not None)
        if known is not None and advanced is not None:
            known.step, known.until = step, self.now + RULES.lease
            assert advanced.notes[step] == self.now

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def an_owner_renews(self, data: st.DataObject) -> None:
        cycle = data.draw(st.sampled_from(self.held[-4:]))
        known = self.holds(cycle)
        assert self.do(self.store.renew_cycle, cycle, now=self.now) is (known is not None)
        if known is not None:
            known.until = self.now + RULES.lease

    # --- what always holds ------------------------------------------------------------

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "held"):
            return
        for name in WORKSPACES:
            told = [
                (one.id, one.aim, one.requests, one.step, one.attempt)
                for one in self.do(self.store.cycles, name, most=1000)
            ]
            assert told == [
                (one.id, one.aim, one.requests, one.step, one.attempt) for one in reversed(self.of(name))
            ]

    @invariant()
    def of_a_workspace_one_runs_and_one_waits_at_most(self) -> None:
        for name in WORKSPACES:
            assert sum(cycle.runs for cycle in self.of(name)) <= 1
            assert sum(cycle.waits for cycle in self.of(name)) <= 1


def test_each_store_runs_cycles_as_the_model_does(place: Place) -> None:
    numbers = iter(range(10**6))
    run_state_machine_as_test(
        lambda: Cycles(place, next(numbers)),  # type: ignore[arg-type]
        settings=settings(
            max_examples=40 if place.kind == "sqlite" else 10,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
