"""Callers, restarts, deaths of replicas, workspaces and the database, cut connections, all at once.

``CHAOS_SECONDS`` says for how long (20; CI takes 300), ``CHAOS_SEED`` repeats the choices of a run.
``scripts/chaos`` runs it by hand.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from tests.conftest import inherited, require
from tests.shim.postgres import Postgres, programs
from tests.shim.walks.chaos import (
    ADMIN,
    ENDS,
    HOLDS,
    ROOT,
    SETTINGS,
    Caller,
    Outside,
    Place,
    Relay,
    Replica,
    Report,
    relaying,
)
from workspace_adapter.queueing import Rules, State
from workspace_adapter.shim.store.contract import OVER, Item, Store
from workspace_adapter.shim.store.postgres import PostgresStore
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(1 << 30))))
CALM = 120.0
"""Seconds in which everything must be over once nothing fails any more."""

REPLICAS = {"postgres": 3, "sqlite": 1}
STARTED = ("ends", "holds")
"""Workspaces that the shim starts; beside them there is one that it does not."""

PLACES = (*STARTED, "outside")


class Stage:
    """All that runs, and what is done to it."""

    def __init__(self, root: Path, database: Postgres | None) -> None:
        self.root = root
        self.database = database
        """``None``: the one replica has SQLite."""
        self.report = Report()
        self.replicas: list[Replica] = []
        self.state_dir = root / "shim"
        self.places: list[Place] = []
        self.tokens: dict[str, str] = {}
        self.until = 0.0
        self.front: Relay
        self.back: Relay
        self.side: Relay
        self.secret = ""
        self.outside: Outside

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.port}"

    def over(self) -> bool:
        return time.monotonic() >= self.until

    def build(self) -> None:
        kept = inherited()
        environ = kept | {
            "HOME": str(self.root),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
            "SHIM_ADMIN_TOKEN": ADMIN,
            "SHIM_STATE_DIR": str(self.state_dir),
            "SHIM_URL": self.url,
            "SHIM_RATE_LIMIT": "0",
            "SHIM_LEASE": "6",
            "SHIM_LEASE_RENEWAL": "1.5",
            "SHIM_OFFLINE_AFTER": "8",
            "SHIM_DRAIN_SECONDS": "5",
            "SHIM_STOP_GRACE": "5",
            "SHIM_START_TIMEOUT": "60",
            "SHIM_LOG_LEVEL": "info",
        }
        if self.database is not None:
            environ["SHIM_DATABASE_URL"] = f"postgresql://postgres@127.0.0.1:{self.back.port}/postgres"
        replicas = REPLICAS["sqlite" if self.database is None else "postgres"]
        self.replicas = [Replica(number, self.root, environ) for number in range(replicas)]

    async def to_a_replica(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a balancer does: to one that takes the connection."""
        for replica in random.sample(self.replicas, len(self.replicas)):
            try:
                return await asyncio.open_connection("127.0.0.1", replica.port)
            except OSError:
                continue
        raise ConnectionRefusedError

    async def to_the_outside(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self.outside.connect()

    async def to_the_database(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self.database is not None
        return await asyncio.open_unix_connection(str(self.database.folder / ".s.PGSQL.5432"))

    # --- the beginning ----------------------------------------------------------------

    async def begin(self) -> None:
        for replica in self.replicas:
            replica.start()
        async with httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30.0
        ) as operator:
            await self.ready(operator)
            for name in PLACES:
                environ = {**SETTINGS, "WORKSPACE_ADAPTER": HOLDS if name == "holds" else ENDS}
                spec = {"environ": environ, "inherit": ["CI_MARK"]}
                body = {"id": name, "max_concurrent_tasks": 3} | (
                    {"provisioner": "process", "spec": spec} if name in STARTED else {}
                )
                made = await operator.post("/workspaces", json=body)
                assert made.status_code == 201, made.text
                self.tokens[name] = made.json()["auth_token"]
                self.secret = made.json()["platform_inbound_secret"]
            made = await operator.post("/tokens", json={"role": "caller", "name": "chaos"})
            self.tokens["caller"] = made.json()["auth_token"]
        self.outside = Outside(
            PLACES[-1],
            self.root / PLACES[-1],
            url=self.url,
            relay=self.side,
            token=self.tokens[PLACES[-1]],
            secret=self.secret,
        )
        self.outside.process.spawn()
        self.places = [Place(name, self.state_dir / "workspaces" / name) for name in STARTED]
        self.places.append(self.outside)

    async def ready(self, client: httpx.AsyncClient) -> None:
        with anyio.fail_after(60):
            while True:
                try:
                    if (await client.get("/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.1)

    # --- callers ----------------------------------------------------------------------

    async def call(self, number: int) -> None:
        """One caller: one message after the other, of one kind after the other."""
        caller = Caller(self.url, self.report, token=self.tokens["caller"], over=self.over)
        try:
            while not self.over():
                name = random.choice(PLACES)
                session = random.choice((None, f"session-{number}", "shared"))
                kind = random.choice(("send", "hang up", "wait", "stream", "burst", "delegate"))
                if kind == "send":
                    await caller.send(name, session)
                elif kind == "hang up":
                    await caller.hang_up(name, session)
                elif kind == "wait":
                    await caller.send(name, session, wait=1)
                elif kind == "stream":
                    await caller.stream(name, session)
                elif kind == "burst":
                    await caller.burst(name, f"burst-{number}-{random.randrange(1 << 30)}", 4)
                else:
                    source = random.choice([other for other in PLACES if other != name])
                    await caller.delegate(source, self.tokens[source], name)
                await anyio.sleep(random.uniform(0.1, 0.8))
        finally:
            await caller.close()

    # --- faults -----------------------------------------------------------------------

    async def torment(self) -> None:
        """Do one thing after the other to what runs."""
        faults: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (4, self.kill_a_replica),
            (2, self.stop_a_replica),
            (2, self.freeze_a_replica),
            (3, self.kill_a_workspace),
            (2, self.kill_the_workspace_outside),
            (1, self.stop_the_workspace_outside),
            (4, self.restart_a_workspace),
            (3, self.cut_callers),
            (3, self.cut_the_workspace_outside),
        ]
        if self.database is not None:
            faults += [(1, self.kill_the_database), (3, self.cut_the_database)]
        weights = [weight for weight, _ in faults]
        async with anyio.create_task_group() as tasks:
            while not self.over():
                await anyio.sleep(random.uniform(0.5, 3.0))
                (fault,) = random.choices([fault for _, fault in faults], weights)
                self.report.faults[fault.__name__.replace("_", " ")] += 1
                tasks.start_soon(fault)

    async def kill_a_replica(self) -> None:
        await self._end_a_replica(signal.SIGKILL)

    async def stop_a_replica(self) -> None:
        await self._end_a_replica(signal.SIGTERM)

    async def _end_a_replica(self, number: signal.Signals) -> None:
        alive = [replica for replica in self.replicas if replica.alive]
        if alive:
            replica = random.choice(alive)
            await anyio.to_thread.run_sync(replica.end, number)
            await anyio.sleep(random.uniform(0, 2))
            if not replica.alive:
                replica.start()

    async def freeze_a_replica(self) -> None:
        """Stop one, mostly for longer than a lease: it goes on in the belief that it has its items."""
        alive = [replica for replica in self.replicas if replica.alive]
        if alive and (process := random.choice(alive).process) is not None:
            process.send_signal(signal.SIGSTOP)
            await anyio.sleep(random.uniform(1, 9))
            process.send_signal(signal.SIGCONT)

    async def kill_a_workspace(self) -> None:
        random.choice(self.places[:-1]).kill()

    async def kill_the_workspace_outside(self) -> None:
        await anyio.to_thread.run_sync(self.outside.kill)
        await self._start_outside()

    async def stop_the_workspace_outside(self) -> None:
        if self.outside.process.alive():
            self.outside.process.terminate()
            await self.outside.process.exited()
        await self._start_outside()

    async def _start_outside(self) -> None:
        await anyio.sleep(random.uniform(0, 2))
        if not self.outside.process.alive():
            self.outside.process.spawn()

    async def restart_a_workspace(self) -> None:
        await self._ask(random.choice(STARTED), "restart")

    async def _ask(self, name: str, what: str) -> None:
        async with httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=10.0
        ) as operator:
            for _ in range(50):
                try:
                    if (await operator.post(f"/workspaces/{name}/{what}")).status_code in (200, 202):
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.2)

    async def kill_the_database(self) -> None:
        assert self.database is not None
        await anyio.to_thread.run_sync(self.database.kill)
        await anyio.sleep(random.uniform(0, 1.5))
        await anyio.to_thread.run_sync(self.database.start)

    async def cut_callers(self) -> None:
        self.front.cut(0.5)

    async def cut_the_database(self) -> None:
        self.back.cut(0.5)

    async def cut_the_workspace_outside(self) -> None:
        self.side.cut(0.7)

    async def mend(self) -> None:
        """Restart what was given up: it died more often than a workspace may."""
        for name in STARTED:
            await self._ask(name, "restart")

    async def settle(self) -> None:
        """Wait for the last restarts, then stop the replicas as an operator does."""
        async with httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=10.0
        ) as operator:
            await self.ready(operator)
            with anyio.move_on_after(60):
                for name in STARTED:
                    while await self._unended(operator, name):
                        await anyio.sleep(0.2)
        for replica in self.replicas:
            await anyio.to_thread.run_sync(replica.end, signal.SIGTERM)

    async def _unended(self, operator: httpx.AsyncClient, name: str) -> list[Any]:
        shown = await operator.get(f"/workspaces/{name}/restarts")
        return [cycle for cycle in shown.json() if "ended_at" not in cycle]

    def store(self) -> AbstractAsyncContextManager[Store]:
        """Open what they left."""
        if self.database is None:
            return SqliteStore(self.state_dir / "shim.sqlite", Rules())
        return PostgresStore(self.database.url, Rules())

    # --- the end ----------------------------------------------------------------------

    def end(self) -> None:
        for replica in self.replicas:
            if replica.alive:
                replica.end()
        for place in self.places:
            place.kill_all()

    async def check(self, store: Store) -> None:
        """Compare what the callers know, what the workspaces did, and what the store holds."""
        problems = self.report.problems
        if not self.report.sent or not self.report.faults:
            problems.append("nothing was sent, or nothing was done to what was sent")
        for sent in self.report.sent:
            if set(sent.answers) != {f"did {sent.label}"}:
                problems.append(f"{sent.label} at {sent.workspace_id} was answered {sent.answers}")
        for place in self.places:
            effects, unknown = Counter(place.effects()), place.told_unknown()
            labels = {sent.label for sent in self.report.sent if sent.workspace_id == place.name}
            self.report.unknown += sum(unknown.values())
            problems += [
                f"{label} ran {effects[label]} times, and {unknown[label]} times nobody knew"
                for label in labels
                if not 1 <= effects[label] <= 1 + unknown[label]
            ]
            problems += [f"{label} ran, and nobody sent it" for label in effects.keys() - labels]
            items = await _items(store, place.name)
            by_state = {state: [i.id for i in items if i.state is state] for state in State}
            problems += [
                f"{state} at {place.name}: {ids}"
                for state, ids in by_state.items()
                if ids and state is not State.COMPLETED
            ]
            if len(items) != len(labels):
                problems.append(f"{len(items)} items at {place.name} for {len(labels)} messages")
            problems += [
                f"cycle {cycle.id} of {place.name} stands at {cycle.step}"
                for cycle in await store.cycles(place.name, most=1000)
                if cycle.step not in OVER
            ]
            problems += self.out_of_order(place)

    def out_of_order(self, place: Place) -> list[str]:
        """Find what messages of one session and priority, left in order, did in another order."""
        places = {label: number for number, label in enumerate(dict.fromkeys(place.effects()))}
        sessions: dict[str, list[str]] = {}
        for sent in self.report.sent:
            if sent.workspace_id == place.name and (sent.session or "").startswith("burst-"):
                sessions.setdefault(f"{sent.session} at {sent.priority}", []).append(sent.label)
        return [
            f"{second} of {session} at {place.name} came before {first}"
            for session, labels in sessions.items()
            for first, second in pairwise(labels)
            if places.get(first, 0) > places.get(second, 0)
        ]


async def _items(store: Store, workspace_id: str) -> list[Item]:
    items: list[Item] = []
    while more := await store.items(workspace_id, after=items[-1].id if items else 0, most=500):
        items += more
    return items


@pytest.fixture
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    random.seed(SEED)
    database = None
    if request.param == "postgres":
        require(programs() is not None, "PostgreSQL (apt install postgresql)")
        database = await anyio.to_thread.run_sync(Postgres)
    stage = Stage(tmp_path, database)
    try:
        if database is not None:
            await anyio.to_thread.run_sync(database.start)
        async with (
            relaying(stage.to_the_database) as stage.back,
            relaying(stage.to_a_replica) as stage.front,
            relaying(stage.to_the_outside) as stage.side,
        ):
            stage.build()
            try:
                yield stage
            finally:
                await anyio.to_thread.run_sync(stage.end)
    finally:
        if database is not None:
            await anyio.to_thread.run_sync(database.stop)


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        pytest.param("postgres", SECONDS, marks=pytest.mark.long, id="three replicas on PostgreSQL"),
        pytest.param("sqlite", max(10.0, SECONDS / 8), id="one on SQLite"),
    ],
    indirect=["stage"],
)
async def test_every_accepted_message_is_answered_exactly_once_whatever_dies(
    stage: Stage, seconds: float, record_property: Callable[[str, object], None]
) -> None:
    await stage.begin()
    stage.until = time.monotonic() + seconds
    try:
        with anyio.CancelScope() as patience:

            async def torment() -> None:
                await stage.torment()
                patience.deadline = anyio.current_time() + CALM
                await stage.mend()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(torment)
                for number in range(6):
                    tasks.start_soon(stage.call, number)
        if patience.cancelled_caught:
            stage.report.problems.append(f"it was not over {CALM:g} s after the last fault")
        await stage.settle()
        async with stage.store() as store:
            await stage.check(store)
    finally:
        lines = [f"chaos, seed {SEED}, {seconds:g} s:", *stage.report.lines()]
        record_property("report", "\n  ".join(lines))
    assert stage.report.problems == []
