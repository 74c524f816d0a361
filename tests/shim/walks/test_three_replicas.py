"""Three replicas on one PostgreSQL behind a balancer that knows nothing: one is killed in the middle of
everything and stays dead, then the database is; every accepted message is answered exactly once."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import httpx
import pytest

from tests.conftest import inherited, require
from tests.shim.postgres import Postgres, programs
from tests.shim.walks.chaos import ADMIN, ENDS, ROOT, Caller, Place, Replica, Report, relaying
from workspace_adapter.queueing import Rules, State
from workspace_adapter.shim.store.contract import OVER, Cycle, Status, Step
from workspace_adapter.shim.store.postgres import PostgresStore
from workspace_adapter.testing.workspace import Workspace

pytestmark = pytest.mark.anyio

EACH = 8
"""Messages of a caller."""

CALLERS = 6
PATIENCE = 60.0

_UNDER_WAY = (Step.SIGNAL, Step.STOP, Step.START, Step.WAIT)


class House:
    """Three replicas, a database, and workspaces: two that somebody else runs, one that the shim does."""

    def __init__(self, root: Path, database: Postgres) -> None:
        self.root = root
        self.database = database
        self.report = Report()
        kept = inherited()
        self.environ = kept | {
            "PYTHONPATH": str(ROOT),
            "SHIM_ADMIN_TOKEN": ADMIN,
            "SHIM_DATABASE_URL": database.url,
            "SHIM_STATE_DIR": str(root / "shim"),
            "SHIM_RATE_LIMIT": "0",
            "SHIM_LEASE": "3",
            "SHIM_LEASE_RENEWAL": "0.5",
            "SHIM_OFFLINE_AFTER": "30",
            "SHIM_DRAIN_SECONDS": "5",
            "SHIM_STOP_GRACE": "5",
        }
        self.replicas: list[Replica] = []
        self.tokens: dict[str, str] = {}
        self.workspaces: dict[str, Workspace] = {}
        self.url = ""

    async def in_turn(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the replica whose turn it is; it is the next one's, where there is nobody."""
        for replica in itertools.islice(self._turns, len(self.replicas)):
            try:
                return await asyncio.open_connection("127.0.0.1", replica.port)
            except OSError:
                continue
        raise ConnectionRefusedError

    def build(self, url: str) -> None:
        self.url = url
        environ = self.environ | {"SHIM_URL": url}
        self.replicas += [Replica(number, self.root, environ) for number in range(3)]
        self._turns = itertools.cycle(self.replicas)
        for replica in self.replicas:
            replica.start()

    def operator(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE)

    async def open(self) -> None:
        """Have the replicas serve, and the workspaces be there."""
        async with self.operator() as operator:
            with anyio.fail_after(PATIENCE):
                for replica in self.replicas:
                    while not await _is_ready(replica):
                        await anyio.sleep(0.05)
            for name, adapter in (("echoes", "echo"), ("works", ENDS)):
                made = await operator.post("/workspaces", json={"id": name, "max_concurrent_tasks": 4})
                assert made.status_code == 201, made.text
                self.tokens[name] = made.json()["auth_token"]
                self.workspaces[name] = self._workspace(name, adapter)
                self.workspaces[name].spawn()
            environ = {"WORKSPACE_ADAPTER": ENDS, "WORKSPACE_MAX_CONCURRENT_TURNS": "4"}
            body = {"id": "ours", "provisioner": "process", "max_concurrent_tasks": 4}
            made = await operator.post("/workspaces", json=body | {"spec": {"environ": environ}})
            assert made.status_code == 201, made.text
            self.tokens["ours"] = made.json()["auth_token"]
            made = await operator.post("/tokens", json={"role": "caller", "name": "tester"})
            self.tokens["tester"] = made.json()["auth_token"]

    def _workspace(self, name: str, adapter: str) -> Workspace:
        root = self.root / name
        (root / "configs").mkdir(parents=True)
        token = root / "configs" / ".auth_token"
        token.write_text(self.tokens[name])
        token.chmod(0o600)
        settings = {
            "WORKSPACE_ID": name,
            "PLATFORM_URL": self.url,
            "WORKSPACE_MAX_CONCURRENT_TURNS": "4",
            "WORKSPACE_HEARTBEAT_INTERVAL": "1",
        }
        workspace = Workspace(root, adapter, environ=os.environ, settings=settings, directory=ROOT)
        workspace.environ["WORKSPACE_URL"] = workspace.url
        return workspace

    def place(self, name: str) -> Place:
        return Place(name, self.root / "shim" / "workspaces" / name if name == "ours" else self.root / name)

    async def call(self, number: int) -> None:
        """Send one message after the other, of each kind, to each workspace."""
        caller = Caller(self.url, self.report, token=self.tokens["tester"], over=lambda: False)
        try:
            for turn in range(number, number + EACH):
                name = ("works", "ours")[turn // 4 % 2]
                if turn % 4 == 0:
                    await caller.send(name, f"session-{number}")
                elif turn % 4 == 1:
                    await caller.stream(name, f"session-{number}")
                elif turn % 4 == 2:
                    await caller.delegate("echoes", self.tokens["echoes"], name)
                else:
                    await caller.send(name, None, wait=0)
        finally:
            await caller.close()

    async def echo(self) -> None:
        """Ask who answers with the message itself, all the time."""
        caller = Caller(self.url, self.report, token=self.tokens["tester"], over=lambda: False)
        try:
            for number in range(EACH * 2):
                reply = await caller.request("POST", "/workspaces/echoes/a2a", json=_echoed(f"echo {number}"))
                while reply.status_code == 202:
                    reply = await caller.request(
                        "POST", "/workspaces/echoes/a2a", json=_echoed(f"echo {number}")
                    )
                assert reply.json()["result"]["parts"][0]["text"] == f"echo {number}"
                await anyio.sleep(0.1)
        finally:
            await caller.close()

    async def restart_many_times(self, times: int) -> None:
        async def ask() -> None:
            caller = Caller(self.url, self.report, token=ADMIN, over=lambda: False)
            try:
                reply = await caller.request("POST", "/workspaces/ours/restart")
                assert reply.status_code in (200, 202), reply.text
            finally:
                await caller.close()

        async with anyio.create_task_group() as tasks:
            for _ in range(times):
                tasks.start_soon(ask)

    def life(self, owner: str | None) -> Replica:
        """Return the replica that is the owner of something in the store."""
        boot_id = str(owner).partition("/")[0]
        (replica,) = [one for one in self.replicas if f"boot_id={boot_id}" in one.log.read_text()]
        return replica

    def answered(self) -> int:
        return sum(sent.answered_at is not None for sent in self.report.sent)

    def logs(self) -> str:
        return "\n".join(f"--- {r.log.name}\n{r.log.read_text()[-6000:]}" for r in self.replicas)

    def close(self) -> None:
        for replica in self.replicas:
            if replica.alive:
                replica.end()
        for workspace in self.workspaces.values():
            workspace.kill_everything()
        self.place("ours").kill()


async def _is_ready(replica: Replica) -> bool:
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{replica.port}") as client:
            return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


def _echoed(text: str) -> dict[str, object]:
    message = {"role": "user", "messageId": text, "parts": [{"kind": "text", "text": text}]}
    return {"jsonrpc": "2.0", "id": text, "method": "message/send", "params": {"message": message}}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    require(programs() is not None, "PostgreSQL (apt install postgresql)")
    database = await anyio.to_thread.run_sync(Postgres)
    house = House(tmp_path, database)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(anyio.to_thread.run_sync, database.stop)
        await anyio.to_thread.run_sync(database.start)
        balancer = await stack.enter_async_context(relaying(house.in_turn))
        stack.push_async_callback(anyio.to_thread.run_sync, house.close)
        house.build(f"http://127.0.0.1:{balancer.port}")
        await house.open()
        yield house


T = TypeVar("T")


async def until(house: House, condition: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Wait until something is there, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"{what} did not come\n{house.logs()}"
        await anyio.sleep(0.02)
    return found


async def test_one_of_three_replicas_dies_in_the_middle_of_everything_and_then_the_database(
    house: House,
) -> None:
    async with PostgresStore(house.database.url, Rules(), patience=30.0) as store:

        async def all_online() -> bool:
            return [w.status for w in await store.workspaces()] == [Status.ONLINE] * 3

        async def under_way() -> Cycle | None:
            return next((one for one in await store.cycles("ours") if one.step in _UNDER_WAY), None)

        async def stopped_in_the_middle() -> tuple[Cycle, Replica] | None:
            """Stop whoever runs a cycle while it has one, and the workspaces have work."""
            cycle = await under_way()
            leased = [i for name in ("works", "ours") for i in await store.items(name, state=State.LEASED)]
            if cycle is None or len(leased) < 3:
                return None
            replica = house.life(cycle.owner)
            assert replica.process is not None
            replica.process.send_signal(signal.SIGSTOP)
            await anyio.sleep(0.1)  # what it had sent is written by then
            if await under_way() is not None:
                return cycle, replica
            replica.process.send_signal(signal.SIGCONT)
            return None

        await until(house, all_online, "the workspaces")
        with anyio.fail_after(2 * PATIENCE):
            async with anyio.create_task_group() as tasks:
                for number in range(CALLERS):
                    tasks.start_soon(house.call, number)
                tasks.start_soon(house.echo)
                while house.answered() < 10:
                    await anyio.sleep(0.02)
                await house.restart_many_times(8)
                running, dead = await until(house, stopped_in_the_middle, "the middle of everything")
                dead.end()
                while house.answered() < CALLERS * EACH // 2:
                    await anyio.sleep(0.02)
                await anyio.to_thread.run_sync(house.database.kill)
                await anyio.sleep(0.3)
                await anyio.to_thread.run_sync(house.database.start)

        async def no_cycle_is_left() -> bool:
            return all(cycle.step in OVER for cycle in await store.cycles("ours"))

        await until(house, no_cycle_is_left, "the end of the restarts")
        assert house.report.problems == []
        sent = house.report.sent
        assert len(sent) == CALLERS * EACH
        assert {tuple(one.answers) for one in sent} == {(f"did {one.label}",) for one in sent}
        for name in ("works", "ours"):
            labels = {one.label for one in sent if one.workspace_id == name}
            assert sorted(house.place(name).effects()) == sorted(labels)
            items = await store.items(name, most=1000)
            assert len(items) == len(labels)
            assert {item.state for item in items} == {State.COMPLETED}
        assert len(await store.items("echoes", most=1000)) == EACH * 2
        assert await store.due() == []
        cycles = await store.cycles("ours")
        assert {cycle.step for cycle in cycles} == {Step.DONE}
        assert len(cycles) <= 3  # its first start, and what eight requests are at most
        assert sum(cycle.requests for cycle in cycles) == 9
        (taken_over,) = [cycle for cycle in cycles if cycle.id == running.id]
        assert taken_over.attempt > 1
        assert str(taken_over.owner) != str(running.owner)
    for replica in house.replicas:
        if replica is dead:
            continue
        await anyio.to_thread.run_sync(replica.end, signal.SIGTERM)
        assert replica.process is not None
        assert replica.process.returncode == 0, house.logs()
