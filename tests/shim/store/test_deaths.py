"""Claimers that are killed, and a database that is: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncpg
import pytest

from tests.conftest import require
from tests.shim.postgres import Postgres, programs
from tests.shim.store.conftest import Place
from tests.shim.store.test_contract import ANSWER, DONE, message, online
from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.queueing import Rules, State
from workspace_adapter.shim.store.contract import Lease, Settlement, Store
from workspace_adapter.shim.store.postgres import PostgresStore

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
LEASE = 0.5
RULES = Rules(depth_cap=10_000, lease=LEASE, renewal=0.1)
MESSAGES = 150


class Claimer:
    """A dispatcher in a process of its own."""

    def __init__(self, place: Place, owner: str) -> None:
        command = [sys.executable, "-m", "tests.shim.store.claimer", place.kind, place.url, place.schema]
        command += [owner, str(LEASE)]
        self._child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Wait until it has the store open."""
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "ready\n"

    def kill(self) -> list[tuple[int, int]]:
        """Kill it; return what it said it had answered, a line cut short left out."""
        self._child.kill()
        said, _ = self._child.communicate()
        lines = [line.split() for line in said.splitlines(keepends=True) if line.endswith("\n")]
        return [(int(line[0]), int(line[1])) for line in lines if line != ["ready"]]


async def filled(store: Store) -> list[int]:
    """Queue messages of a few sessions at two workspaces, all that come at once together."""
    for workspace_id in ("v", "w"):
        await online(store, workspace_id, max_concurrent=4)
    ids: list[int] = []

    async def send(number: int) -> None:
        one = message(
            str(number), workspace_id="vw"[number % 2], context_id=f"s{number % 7}" if number % 3 else None
        )
        ids.append((await store.enqueue(one)).id)

    async with anyio.create_task_group() as tasks:
        for number in range(MESSAGES):
            tasks.start_soon(send, number)
    return ids


async def every_answer_is_there_once(store: Store, ids: list[int], said: list[tuple[int, int]]) -> None:
    items = [await store.item(item_id) for item_id in ids]
    assert [item.state for item in items if item is not None] == [State.COMPLETED] * len(ids)
    answers = {item.id: item.answer.body.decode() for item in items if item is not None and item.answer}
    assert len(answers) == len(ids)
    assert [times for times in Counter(item_id for item_id, _ in said).values() if times > 1] == []
    for item_id, attempt in said:
        assert answers[item_id] == f"{item_id}/{attempt}"


async def test_messages_outlive_any_number_of_dispatchers_killed_at_any_point(place: Place) -> None:
    async with place.open(RULES) as store:
        ids = await filled(store)
    rng = random.Random(7)
    said: list[tuple[int, int]] = []
    at_once = 1 if place.kind == "sqlite" else 3
    deadline = time.monotonic() + 60
    kills = 0
    while True:
        claimers = [Claimer(place, f"life{kills}-{n}") for n in range(at_once)]
        for claimer in claimers:
            claimer.wait()
        time.sleep(rng.uniform(0.0, 0.12) if kills < 8 else 1.5)
        for claimer in claimers:
            said += claimer.kill()
        kills += 1
        async with place.open(RULES) as store:
            left = [item for w in "vw" for item in await store.items(w, most=1000) if item.ended_at is None]
            if not left:
                break
        assert time.monotonic() < deadline, f"{len(left)} are left: {left[:3]}"
    assert kills > 1
    async with place.open(RULES) as store:
        await every_answer_is_there_once(store, ids, said)


async def test_a_store_that_another_process_has_open_says_so(tmp_path: Path) -> None:
    place = Place("sqlite", str(tmp_path / "shim.sqlite"), "")
    async with place.open(RULES):
        pass
    claimer = Claimer(place, "first")
    try:
        claimer.wait()
        with pytest.raises(StoreUnavailable, match="another process has it open"):
            async with place.open(RULES):
                pass
    finally:
        claimer.kill()
    async with place.open(RULES) as store:
        assert await store.workspaces() == []


async def test_a_store_whose_directory_does_not_let_it_write_says_which_setting_is_concerned(
    tmp_path: Path,
) -> None:
    (tmp_path / "shim.sqlite").mkdir()  # as root too, no file can be opened there
    with pytest.raises(StoreUnavailable, match=r"unable to open .*SHIM_STATE_DIR.* to write, with room"):
        async with Place("sqlite", str(tmp_path / "shim.sqlite"), "").open(RULES):
            pass


async def test_a_store_that_is_damaged_says_what_can_be_done(tmp_path: Path) -> None:
    (tmp_path / "shim.sqlite").write_bytes(b"no database " * 1000)
    with pytest.raises(StoreUnavailable, match="not a database; stop the shim and put a copy in its place"):
        async with Place("sqlite", str(tmp_path / "shim.sqlite"), "").open(RULES):
            pass


async def test_the_file_of_the_store_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    """It holds the workspaces' secrets; a state directory that was there before may be open to others."""
    tmp_path.chmod(0o755)
    async with Place("sqlite", str(tmp_path / "shim.sqlite"), "").open(RULES) as store:
        await online(store)
        assert {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {
            "shim.sqlite": "0o600",
            "shim.sqlite-wal": "0o600",
        }


async def test_verbs_wait_out_a_crash_of_the_database() -> None:
    require(programs() is not None, "PostgreSQL (apt install postgresql)")
    server = Postgres()
    try:
        server.start()
        rules = Rules(depth_cap=10_000)
        async with PostgresStore(server.url, rules, patience=30.0) as store, other_replica(server) as due:
            await online(store, max_concurrent=500)
            ids: list[int] = []
            settled: list[bool] = []

            async def settle(leases: Sequence[Lease]) -> list[bool]:
                return await store.settle(
                    [Settlement(lease=lease, verdict=DONE, answer=ANSWER) for lease in leases]
                )

            async def work(number: int) -> None:
                ids.append((await store.enqueue(message(str(number)))).id)
                settled.extend(await settle(await store.claim("w", "owner", most=2)))

            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(work, number)
                    if number % 60 == 30:
                        await anyio.sleep(0.05)
                        await anyio.to_thread.run_sync(server.kill)
                        await anyio.to_thread.run_sync(server.start)
            with anyio.fail_after(20):
                while leases := await store.claim("w", "owner"):
                    settled.extend(await settle(leases))
            assert settled == [True] * 200
            assert len(set(ids)) == 200
            assert {item.state for item in await store.items("w", most=300)} == {State.COMPLETED}
            await is_heard(store, due)
    finally:
        server.stop()


async def test_replicas_hear_each_other_again_whenever_their_connections_are_cut(postgres: Postgres) -> None:
    rules = Rules(depth_cap=10_000)
    async with PostgresStore(postgres.url, rules) as store, other_replica(postgres) as due:
        await online(store)
        for moments in range(5):
            cut(postgres)
            for _ in range(moments):
                await anyio.sleep(0)
            store._tell(due=["w"])  # now and then just between the server's last words and its end
            await is_heard(store, due)


@asynccontextmanager
async def other_replica(server: Postgres) -> AsyncIterator[list[str]]:
    """Open the same store once more; yield what it hears."""
    async with PostgresStore(server.url, Rules(), patience=30.0) as other:
        due: list[str] = []
        other.on_due = due.append
        yield due


async def is_heard(store: PostgresStore, due: list[str]) -> None:
    due.clear()
    with anyio.fail_after(10):
        while not due:
            await store.enqueue(message("last"))
            await anyio.sleep(0.02)


def cut(server: Postgres) -> None:
    """End all connections, while nothing else runs here."""

    async def end() -> None:
        connection = await asyncpg.connect(server.url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'workspace-adapter'"
        )
        await connection.close()

    thread = threading.Thread(target=asyncio.run, args=(end(),))
    thread.start()
    thread.join()
