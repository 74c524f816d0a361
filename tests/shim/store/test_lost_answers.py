"""PostgreSQL's answer to each statement is lost once: what was written is not written twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.shim.postgres import Postgres
from tests.shim.store.conftest import RULES
from tests.shim.store.test_contract import online, sent
from workspace_adapter.shim.store.contract import Aim, Step
from workspace_adapter.shim.store.postgres import PostgresStore

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class HardOfHearing(PostgresStore):
    """A store whose connection breaks once after each verb, before the answer is heard."""

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        tries = 0

        async def work_unheard(connection: Any) -> T:
            nonlocal tries
            tries += 1
            done = await work(connection)
            if tries == 1:
                raise ConnectionResetError
            return done

        return await super()._run(work_unheard)


async def test_an_event_is_kept_once(postgres: Postgres) -> None:
    async with HardOfHearing(postgres.url, RULES, schema="unheard_said") as store:
        await store.create_workspace("w", max_concurrent=3)
        async with PostgresStore(postgres.url, RULES, schema="unheard_said") as other:
            assert await other.register("w", url="http://w", boot_id="b1")
            await sent(other, "a", now=0.0)
            (lease,) = await other.claim("w", "p")
        assert await store.say(lease, [b"one"], "1")
        assert await store.say(lease, [b"one"], "1")
        assert await store.said(lease.id) == [(1, b"one"), (2, b"one")]


async def test_a_cycle_is_claimed_by_whoever_was_not_told_so_and_ended_once(postgres: Postgres) -> None:
    async with HardOfHearing(postgres.url, RULES, schema="unheard_cycles") as store:
        async with PostgresStore(postgres.url, RULES, schema="unheard_cycles") as other:
            await online(other)
            await other.ask_cycle("w", Aim.RESTART, "why")
        cycle = await store.claim_cycle("p")
        assert cycle is not None
        assert cycle.attempt == 1
        signal = await store.advance_cycle(cycle, Step.SIGNAL, notes={"a": 1})
        assert signal is not None
        done = await store.advance_cycle(cycle, Step.DONE, notes={"b": 2})
        assert done is not None
        assert (done.step, done.notes) == (Step.DONE, {"a": 1, "b": 2})
