"""What PostgreSQL may do to us: move, freeze, and grant no more than it must."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import pytest

from tests.shim.postgres import Postgres
from tests.shim.store.conftest import RULES
from tests.shim.store.test_contract import DEAD, DONE, online, sent, settle, state
from workspace_adapter.queueing import State
from workspace_adapter.shim.store.contract import Status
from workspace_adapter.shim.store.postgres import PostgresStore
from workspace_adapter.shim.store.postgres.connections import Connections

pytestmark = pytest.mark.anyio


async def pid(connection: Any) -> int:
    return int(connection.get_server_pid())


async def test_after_a_statement_without_an_answer_no_old_connection_is_used(postgres: Postgres) -> None:
    connections = Connections(postgres.url, {}, most=2, timeout=5.0, limit=0.2)
    old: set[int] = set()

    async def one(connection: Any) -> None:
        old.add(await pid(connection))
        await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connections.run, one)
        tasks.start_soon(connections.run, one)
    assert len(old) == 2
    with pytest.raises(TimeoutError):
        await connections.run(lambda connection: connection.execute("SELECT pg_sleep(60)"))
    assert await connections.run(pid) not in old
    await connections.close()


async def test_what_may_only_be_read_is_left_for_whatever_takes_its_place(postgres: Postgres) -> None:
    async with PostgresStore(postgres.url, RULES, schema="read_only", connections=1) as store:
        await online(store)
        # A session that is open stays read-only; one that is made now is not.
        await store._connections.run(
            lambda connection: connection.execute("SET default_transaction_read_only = on")
        )
        assert await sent(store, "a")


async def test_a_replica_that_is_frozen_in_a_transaction_holds_up_the_others_for_seconds(
    postgres: Postgres,
) -> None:
    async with (
        PostgresStore(postgres.url, RULES, schema="frozen") as store,
        PostgresStore(postgres.url, RULES, schema="frozen") as frozen,
    ):
        await online(store)

        async def hang(connection: Any) -> None:
            await connection.execute("BEGIN; SELECT FROM workspaces WHERE id = 'w' FOR UPDATE")
            held.set()
            await anyio.sleep(60)

        held = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(frozen._connections.run, hang)
            await held.wait()
            with anyio.fail_after(20):
                assert await store.set_restarting("w", True)
            tasks.cancel_scope.cancel()


async def test_a_role_that_owns_the_schema_needs_no_right_to_make_one(postgres: Postgres) -> None:
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("CREATE ROLE shim LOGIN; CREATE SCHEMA granted AUTHORIZATION shim")
    await admin.close()
    async with PostgresStore(postgres.url.replace("postgres@", "shim@"), RULES, schema="granted") as store:
        await online(store)


@asynccontextmanager
async def locked(postgres: Postgres, schema: str, item_id: int) -> AsyncIterator[Any]:
    """Hold an item's row, until what is done to it in the block was committed."""
    connection = await asyncpg.connect(postgres.url, server_settings={"search_path": schema})
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM a2a_queue WHERE id = $1 FOR UPDATE", item_id)
            yield connection
    finally:
        await connection.close()


async def until_somebody_waits(connection: Any) -> None:
    with anyio.fail_after(10):
        while not await connection.fetchval(
            "SELECT true FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        ):
            await anyio.sleep(0.01)


async def test_what_is_queued_while_its_workspace_is_removed_is_not_left_for_ever(postgres: Postgres) -> None:
    async with PostgresStore(postgres.url, RULES, schema="removed") as store:
        ended: list[int] = []
        store.on_ended = ended.append
        await online(store)
        (first,) = await sent(store, "a")
        async with anyio.create_task_group() as tasks, locked(postgres, "removed", first) as connection:

            async def remove() -> None:
                assert await store.set_status("w", Status.REMOVED, were=set(Status))

            tasks.start_soon(remove)
            await until_somebody_waits(connection)
            (late,) = await sent(store, "b")
        assert await state(store, first) is State.DROPPED
        await store.forget()
        assert await state(store, late) is State.DROPPED
        assert late in ended


async def test_what_is_sent_again_while_it_is_forgotten_is_a_new_item(postgres: Postgres) -> None:
    async with PostgresStore(postgres.url, RULES, schema="forgotten") as store:
        await online(store)
        (old,) = await sent(store, "a")
        (lease,) = await store.claim("w", "p", now=20.0)
        assert await settle(store, lease, DEAD)
        new: list[int] = []
        async with anyio.create_task_group() as tasks:

            async def again() -> None:
                new.extend(await sent(store, "a"))

            async with locked(postgres, "forgotten", old) as connection:
                tasks.start_soon(again)
                await until_somebody_waits(connection)
                await connection.execute("DELETE FROM a2a_queue WHERE id = $1", old)
        assert await state(store, new[0]) is State.QUEUED


@asynccontextmanager
async def claiming(postgres: Postgres, schema: str) -> AsyncIterator[Any]:
    """Be in the middle of a claim for ``w``, in another replica."""
    connection = await asyncpg.connect(postgres.url, server_settings={"search_path": schema})
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(1463898960, hashtext('w'))")
            yield connection
    finally:
        await connection.close()


async def test_a_claim_waits_for_another_and_sees_what_that_left(postgres: Postgres) -> None:
    async with PostgresStore(postgres.url, RULES, schema="claims") as store:
        await online(store, max_concurrent=1)
        first, _ = await sent(store, "a", "b")
        leased: list[int] = []
        async with anyio.create_task_group() as tasks:

            async def claim() -> None:
                leased.extend(lease.id for lease in await store.claim("w", "p", now=20.0))

            async with claiming(postgres, "claims") as connection:
                tasks.start_soon(claim)
                await until_somebody_waits(connection)
                await connection.execute(
                    "UPDATE a2a_queue SET state = 'leased', lease_owner = 'q', lease_until = 50"
                    " WHERE id = $1",
                    first,
                )
        assert leased == []


async def test_a_restart_begins_when_no_claim_is_under_way(postgres: Postgres) -> None:
    async with PostgresStore(postgres.url, RULES, schema="restarts") as store:
        await online(store)
        async with anyio.create_task_group() as tasks, claiming(postgres, "restarts") as connection:
            tasks.start_soon(store.set_restarting, "w", True)
            await until_somebody_waits(connection)
            workspace = await store.workspace("w")
            assert workspace is not None
            assert not workspace.restarting
        workspace = await store.workspace("w")
        assert workspace is not None
        assert workspace.restarting


async def test_what_is_more_urgent_waits_for_what_its_session_has_under_way(postgres: Postgres) -> None:
    async with PostgresStore(postgres.url, RULES, schema="urgent") as store:
        await online(store)
        await sent(store, "a", context_id="s", priority=0)
        (lease,) = await store.claim("w", "p", now=20.0)
        await sent(store, "b", context_id="s", priority=100)
        assert await store.claim("w", "p", now=20.0) == []
        assert await settle(store, lease, DONE)
        assert len(await store.claim("w", "p", now=20.0)) == 1
