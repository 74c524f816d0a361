"""Each store against a model that says in plain Python what a queue promises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
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

from tests.shim.store import conftest
from tests.shim.store.conftest import Place
from workspace_adapter.errors import ContentConflict, QueueFull
from workspace_adapter.queueing import State, Verdict
from workspace_adapter.shim.store import contract
from workspace_adapter.shim.store.contract import Answer, Beat, Heard, Lease, Message, Settlement, Status

T = TypeVar("T")

RULES = replace(conftest.RULES, retention=60.0)
WORKSPACES = ("v", "w")
OWNERS = ("p", "q")
VERDICTS = (
    Verdict(state=State.COMPLETED, because="answered"),
    Verdict(state=State.QUEUED, because="busy", wait=4.0),
    Verdict(state=State.QUEUED, because="restarting", wait=0.0, taken=True),
    Verdict(state=State.DELAYED, because="503", wait=6.0, strike=True),
    Verdict(state=State.DELAYED, because="cut", wait=3.0, strike=True, taken=True),
    Verdict(state=State.FAILED, because="given up", strike=True),
)


@dataclass
class Known:
    """What the model knows of an item."""

    id: int
    key: str
    workspace: str
    context: str | None
    priority: int
    order: float
    expires: float | None
    state: State = State.QUEUED
    due: float = 0.0
    attempt: int = 0
    strikes: int = 0
    lapses: int = 0
    taken: bool = False
    holder: Lease | None = None
    until: float = 0.0
    ended: float = 0.0
    answer: bytes | None = None

    @property
    def place(self) -> tuple[float, int]:
        return self.order, self.id

    @property
    def waits(self) -> bool:
        return self.state in (State.QUEUED, State.DELAYED)


@dataclass
class Workspace:
    """What the model knows of a workspace."""

    most: int
    active: int = 0
    hold: float = 0.0


class Queue(RuleBasedStateMachine):
    """Whatever is done to a store, it says of each item what the model says."""

    def __init__(self, place: Place, number: int) -> None:
        super().__init__()
        # A place of its own for each life.
        self.where = Place(place.kind, f"{place.url}.{number}", "")
        if place.kind == "postgres":
            self.where = Place(place.kind, place.url, f"{place.schema}_{number}")
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.open()
        self.now = 1000.0
        self.items: dict[int, Known] = {}
        self.leases: list[Lease] = []
        self.workspaces = {"v": Workspace(1), "w": Workspace(3)}
        for name, workspace in self.workspaces.items():
            self.do(self.store.create_workspace, name, max_concurrent=workspace.most, now=self.now)
            self.do(self.store.register, name, url="u", boot_id="b", now=self.now)

    def open(self) -> None:
        self.opened = self.portal.wrap_async_context_manager(self.where.open(RULES))
        self.store: contract.Store = self.opened.__enter__()

    def do(self, verb: Callable[..., Awaitable[T]], *values: object, **more: object) -> T:
        return self.portal.call(lambda: verb(*values, **more))

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        self.stack.close()

    def of(self, workspace: str) -> list[Known]:
        return [item for item in self.items.values() if item.workspace == workspace]

    def depth(self, workspace: str) -> int:
        """Count what waits, up to the cap; there may be more, when something comes back to a full queue."""
        return min(sum(item.waits for item in self.of(workspace)), RULES.depth_cap)

    def anew(self, item: Known, expires_in: float | None) -> None:
        item.state, item.order = State.QUEUED, self.now - item.priority
        item.expires = None if expires_in is None else self.now + expires_in
        item.strikes = item.lapses = 0
        item.taken, item.answer = False, None

    # --- what is done -----------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 7.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def it_is_closed_and_opened(self) -> None:
        self.opened.__exit__(None, None, None)
        self.open()

    @rule(
        workspace=st.sampled_from(WORKSPACES),
        keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4),
        content=st.sampled_from(["same", "same", "same", "other"]),
        expires_in=st.sampled_from([None, None, 5.0, 15.0]),
    )
    def messages_are_sent(
        self, workspace: str, keys: list[str], content: str, expires_in: float | None
    ) -> None:
        for key in keys:
            self.send(workspace, key, content, expires_in)

    def send(self, workspace: str, key: str, content: str, expires_in: float | None) -> None:
        context = {"a": "s", "b": "s", "c": "s", "d": "t"}.get(key)
        priority = 60 if key in "ae" else 50
        known = next((item for item in self.of(workspace) if item.key == key), None)
        sent = Message(
            workspace_id=workspace,
            turn_key=key,
            content_hash=content if known is not None else "same",
            body=key.encode(),
            context_id=context,
            priority=priority,
            expires_in=expires_in,
        )
        if known is not None and content != "same":
            with pytest.raises(ContentConflict):
                self.do(self.store.enqueue, sent, now=self.now)
            return
        again = known is not None and known.state in (State.FAILED, State.EXPIRED)
        if (known is None or again) and self.depth(workspace) >= RULES.depth_cap:
            with pytest.raises(QueueFull):
                self.do(self.store.enqueue, sent, now=self.now)
            return
        told = self.do(self.store.enqueue, sent, now=self.now)
        assert told.joined is (known is not None)
        if known is None:
            expires = None if expires_in is None else self.now + expires_in
            known = Known(told.id, key, workspace, context, priority, self.now - priority, expires)
            self.items[told.id] = known
        elif again:
            self.anew(known, expires_in)
        assert (told.id, told.state) == (known.id, known.state)

    @rule(workspace=st.sampled_from(WORKSPACES), owner=st.sampled_from(OWNERS), most=st.integers(1, 4))
    def a_dispatcher_claims(self, workspace: str, owner: str, most: int) -> None:
        self.somebody_claims(workspace, owner, most)

    def somebody_claims(self, workspace: str, owner: str, most: int) -> None:
        expected = self.to_be_leased(workspace, most)
        leases: list[Lease] = self.do(self.store.claim, workspace, owner, most=most, now=self.now)
        assert {lease.id for lease in leases} == {item.id for item in expected}
        for lease in leases:
            item = self.items[lease.id]
            item.lapses += item.state is State.LEASED
            item.attempt += 1
            item.state, item.holder, item.until = State.LEASED, lease, self.now + RULES.lease
            assert (lease.attempt, lease.strikes, lease.lapses) == (item.attempt, item.strikes, item.lapses)
            assert lease.body == item.key.encode()
            assert lease.taken is item.taken
        self.leases += leases

    def to_be_leased(self, name: str, most: int) -> list[Known]:
        workspace, items = self.workspaces[name], self.of(name)
        if workspace.hold > self.now or workspace.active >= 1000:
            return []
        held = [item for item in items if item.state is State.LEASED]
        free = sorted((item for item in items if self.is_next(item, items)), key=lambda item: item.place)
        lost = sorted((item for item in held if item.until <= self.now), key=lambda item: item.place)
        room = max(0, min(most, workspace.most - max(workspace.active, len(held))))
        again = [item for item in free if item.taken][:most]
        fresh = [item for item in free if not item.taken][:room]
        return lost[:most] + again + fresh

    def is_next(self, item: Known, items: list[Known]) -> bool:
        if item.state is not State.QUEUED or (item.expires is not None and item.expires <= self.now):
            return False
        if item.context is None:
            return True
        session = [other for other in items if other.context == item.context and other is not item]
        return not any(
            other.state is State.LEASED or (other.waits and other.place < item.place) for other in session
        )

    @rule(workspace=st.sampled_from(WORKSPACES), seconds=st.sampled_from([31.0, 50.0]))
    def a_holder_dies(self, workspace: str, seconds: float) -> None:
        self.now += seconds
        self.somebody_claims(workspace, "r", 2)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), verdict=st.sampled_from(VERDICTS))
    def a_holder_settles(self, data: st.DataObject, verdict: Verdict) -> None:
        latest = range(max(0, len(self.leases) - 8), len(self.leases))
        drawn = data.draw(st.lists(st.sampled_from(latest), min_size=1, max_size=4, unique=True))
        self.settle([self.leases[number] for number in drawn], verdict)

    @rule(workspace=st.sampled_from(WORKSPACES), verdict=st.sampled_from(VERDICTS), late=st.booleans())
    def a_dispatcher_does_its_work(self, workspace: str, verdict: Verdict, late: bool) -> None:
        self.workspaces[workspace].active = 0
        self.workspaces[workspace].hold = 0.0
        self.do(self.store.beat, [Beat(workspace_id=workspace, boot_id="b", active_tasks=0)], now=self.now)
        before = len(self.leases)
        self.somebody_claims(workspace, "p", 4)
        mine = self.leases[before:]
        if late:  # another holds them by now
            self.now += RULES.lease
            self.somebody_claims(workspace, "q", 4)
        self.settle(mine, verdict)

    def settle(self, leases: list[Lease], verdict: Verdict) -> None:
        settlements = [
            Settlement(
                lease=lease,
                verdict=verdict,
                answer=Answer(status=200, body=f"{lease.id}/{lease.attempt}".encode()),
            )
            for lease in leases
        ]
        done = self.do(self.store.settle, settlements, now=self.now)
        assert done == [self.settle_one(settlement) for settlement in settlements]

    def settle_one(self, settlement: Settlement) -> bool:
        """Settle it in the model; say whether its lease was held."""
        lease, verdict, answer = settlement.lease, settlement.verdict, settlement.answer
        item = self.items.get(lease.id)
        if item is None or answer is None or item.state is not State.LEASED or item.holder != lease:
            return False
        item.state, item.lapses = verdict.state, 0
        item.strikes += verdict.strike
        if verdict.taken:
            item.taken, item.expires = True, None
        item.due = self.now + verdict.wait
        if verdict.state in (State.COMPLETED, State.FAILED):
            item.ended, item.answer = self.now, answer.body
        if verdict.state is State.QUEUED:
            workspace = self.workspaces[item.workspace]
            workspace.hold = max(workspace.hold, self.now + verdict.wait)
        return True

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_holder_renews(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases[-8:]))
        item = self.items.get(lease.id)
        holds = item is not None and item.state is State.LEASED and item.holder == lease
        assert self.do(self.store.renew, [lease], now=self.now) == ({lease.id} if holds else set())
        if holds and item is not None:
            item.until = self.now + RULES.lease

    @rule()
    def times_are_looked_at(self) -> None:
        delayed = [i for i in self.items.values() if i.state is State.DELAYED and i.due <= self.now]
        assert self.do(self.store.promote, now=self.now) == len(delayed)
        for item in delayed:
            item.state = State.QUEUED
        over = [i for i in self.items.values() if i.waits and i.expires is not None and i.expires <= self.now]
        assert self.do(self.store.expire, now=self.now) == len(over)
        for item in over:
            item.state, item.ended = State.EXPIRED, self.now

    @precondition(lambda self: self.items)
    @rule(data=st.data(), drop=st.booleans())
    def an_operator_acts(self, data: st.DataObject, drop: bool) -> None:
        item = self.items[data.draw(st.sampled_from(sorted(self.items)))]
        if drop:
            may = item.waits or item.state in (State.LEASED, State.FAILED)
            assert self.do(self.store.drop, item.id, "poison", now=self.now) is may
            if may:
                item.state, item.ended = State.DROPPED, self.now
        else:
            may = item.state in (State.FAILED, State.EXPIRED, State.DROPPED)
            assert self.do(self.store.replay, item.id, now=self.now) is may
            if may:
                self.anew(item, None)

    @rule(
        name=st.sampled_from(WORKSPACES),
        active=st.sampled_from([0, 0, 0, 1, 2, 1000]),
        boot=st.sampled_from([True, True, False]),
    )
    def a_workspace_beats(self, name: str, active: int, boot: bool) -> None:
        workspace = self.workspaces[name]
        beat = Beat(workspace_id=name, boot_id="b" if boot else "old", active_tasks=active)
        counted = self.do(self.store.beat, [beat], now=self.now)
        if not boot:
            assert counted == {}
            return
        assert counted == {name: Heard(self.depth(name), workspace.most, "")}
        workspace.active = active
        if active < workspace.most:
            workspace.hold = 0.0

    @rule(name=st.sampled_from(WORKSPACES), pause=st.booleans())
    def a_workspace_stops_for_a_while(self, name: str, pause: bool) -> None:
        if pause:
            assert self.do(self.store.set_status, name, Status.PAUSED, were=[Status.ONLINE])
            beat = Beat(workspace_id=name, boot_id="b", active_tasks=0)
            assert self.do(self.store.beat, [beat], now=self.now) == {}
        else:
            assert self.do(self.store.set_restarting, name, True)
        assert self.do(self.store.claim, name, "p", now=self.now) == []
        assert name not in self.do(self.store.due, now=self.now)
        if pause:
            lost = [i for i in self.items.values() if i.workspace == name and i.state is State.LEASED]
            left = sum(item.until <= self.now for item in lost)
            waiting = min(self.depth(name) + left, RULES.depth_cap)
            found = self.do(self.store.stranded, now=self.now)
            assert [one.waiting for one in found] == [waiting] * (waiting > 0)
            assert self.do(self.store.set_status, name, Status.ONLINE, were=[Status.PAUSED])
        else:
            assert self.do(self.store.set_restarting, name, False)

    @rule()
    def old_items_are_forgotten(self) -> None:
        old = [
            i.id
            for i in self.items.values()
            if not i.waits and i.state is not State.LEASED and i.ended <= self.now - RULES.retention
        ]
        assert self.do(self.store.forget, now=self.now) == len(old)
        for item_id in old:
            del self.items[item_id]

    # --- what always holds ------------------------------------------------------------

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "items"):
            return
        for name in WORKSPACES:
            listed = {item.id: item for item in self.do(self.store.items, name)}
            expected = {item.id: item for item in self.of(name)}
            assert {i: item.state for i, item in listed.items()} == {
                i: item.state for i, item in expected.items()
            }
            for item_id, item in expected.items():
                told = listed[item_id]
                assert (told.attempt, told.strikes, told.taken) == (item.attempt, item.strikes, item.taken)
            assert self.do(self.store.depth, name) == self.depth(name)

    @invariant()
    def no_session_has_two_leases(self) -> None:
        held = [
            (item.workspace, item.context)
            for item in self.items.values()
            if item.context is not None and item.state is State.LEASED
        ]
        assert len(held) == len(set(held))

    @invariant()
    def whoever_has_something_to_do_is_due(self) -> None:
        due = set(self.do(self.store.due, now=self.now))
        assert {name for name in WORKSPACES if self.to_be_leased(name, 9)} <= due

    @invariant()
    def answers_are_those_of_the_holder_that_settled(self) -> None:
        answers = {item.id: item.answer for item in self.items.values() if item.answer is not None}
        for item_id, body in list(answers.items())[-1:]:
            told = self.do(self.store.item, item_id)
            assert told is not None
            assert told.answer == Answer(status=200, body=body)


def test_each_store_does_what_the_model_does(place: Place) -> None:
    numbers = iter(range(10**6))
    run_state_machine_as_test(
        lambda: Queue(place, next(numbers)),  # type: ignore[arg-type]
        settings=settings(
            max_examples=100 if place.kind == "sqlite" else 30,
            stateful_step_count=50,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
