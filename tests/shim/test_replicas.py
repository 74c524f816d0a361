"""Two replicas on one PostgreSQL: who waits at one is answered by what the other dispatched."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from tests.conftest import require
from tests.shim.conftest import RULES
from tests.shim.house import House, house, message, text_of
from tests.shim.postgres import Postgres, programs
from tests.shim.scripted import Exchange, scripted, until
from tests.shim.test_teller import DONE, Agent, read, reading, said, stream
from workspace_adapter.shim.store.postgres import PostgresStore

pytestmark = pytest.mark.anyio

_schemas = itertools.count()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    require(programs() is not None, "PostgreSQL (apt install postgresql)")
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def replicas(server: Postgres) -> AsyncIterator[tuple[House, House]]:
    """Run one that has callers and dispatches nothing, and one that dispatches."""
    schema = f"replicas{next(_schemas)}"
    async with (
        PostgresStore(server.url, RULES, schema=schema) as first,
        PostgresStore(server.url, RULES, schema=schema) as second,
        house(first, dispatching=False) as asks,
        house(second, owner="life-2") as dispatches,
    ):
        yield asks, dispatches


async def echo(exchange: Exchange) -> None:
    await exchange.result(exchange.request.text)


async def test_who_waits_at_one_replica_is_answered_by_another(postgres: Postgres) -> None:
    async with scripted(echo) as workspace, replicas(postgres) as (asks, _):
        await asks.workspace("w", workspace.url)
        for text in ("a", "b"):
            assert text_of((await asks.ask(text)).json()) == text


async def test_a_word_that_is_lost_between_replicas_costs_a_second(postgres: Postgres) -> None:
    async with scripted(echo) as workspace, replicas(postgres) as (asks, dispatches):
        await asks.workspace("w", workspace.url)
        asks.store.on_ended = lambda _: None
        dispatches.store.on_due = lambda _: None
        began = time.monotonic()
        assert text_of((await asks.ask("hi")).json()) == "hi"
        assert time.monotonic() - began < 5  # a sweep, then a glance; on a busy machine


async def test_a_stream_is_told_by_one_replica_while_another_reads_it(postgres: Postgres) -> None:
    agent = Agent(said("a"), said("b"), DONE)
    agent.gates[2] = anyio.Event()
    async with scripted(agent) as workspace, replicas(postgres) as (asks, dispatches):
        await asks.workspace("w", workspace.url)
        body = stream(message_id="m")
        async with reading(asks, body) as events:
            before = [await anext(events), await anext(events)]
        async with reading(dispatches, body, last_event_id=before[-1].id or "") as events:
            agent.gates[2].set()
            after = [event async for event in events]
        assert [event.text for event in [*before, *after] if event.text] == ["a", "b"]
        assert await read(asks, body) == [*before, *after]
        assert len(workspace.requests) == 1


async def test_a_database_that_is_killed_under_open_requests_costs_them_time_alone(
    postgres: Postgres,
) -> None:
    go = anyio.Event()

    async def when_told(exchange: Exchange) -> None:
        await go.wait()
        await echo(exchange)

    async with (
        scripted(when_told) as workspace,
        replicas(postgres) as (asks, _),
        anyio.create_task_group() as tasks,
    ):
        await asks.workspace("w", workspace.url)
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await asks.post(message("hi", message_id="m")))

        tasks.start_soon(ask)
        await until(lambda: workspace.running == 1)
        await anyio.to_thread.run_sync(postgres.kill)
        go.set()
        await anyio.to_thread.run_sync(postgres.start)
        await until(lambda: answers, within=20)
        assert (answers[0].status_code, text_of(answers[0].json())) == (200, "hi")
        assert len(workspace.requests) == 1
