"""A request is held while everything around it is restarted or killed, and gets its answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.conftest import inherited, require
from tests.shim.postgres import Postgres, programs
from tests.shim.walks.conftest import TIMES
from tests.walks.workspace import ENDS, HOLDS, script
from workspace_adapter.testing.shim import Shim
from workspace_adapter.testing.workspace import answer_of

AT_WORK = script(
    {"tool": "sh", "input": "echo first >> effects; touch begun; sleep 0.7; echo late >> effects"},
    {"tool": "sh", "input": "echo second >> effects"},
    {"answer": "both"},
)


@asynccontextmanager
async def held(shim: Shim, text: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Have one open request wait for its answer; it is there when the block has ended."""
    answers: list[dict[str, Any]] = []
    body = shim.envelope(text)

    async def wait() -> None:
        reply = await shim.send("w", body)
        assert reply.status_code == 200, reply.text
        answers.append(reply.json())

    async with anyio.create_task_group() as callers:
        callers.start_soon(wait)
        yield answers


def effects(shim: Shim) -> Counter[str]:
    file = shim.place("w") / "work" / "effects"
    return Counter(file.read_text().split() if file.exists() else ())


async def begun(shim: Shim) -> None:
    await shim.until((shim.place("w") / "work" / "begun").exists, "the first tool call")


async def restarted(shim: Shim) -> None:
    cycle = (await shim.call("POST", "/workspaces/w/restart"))["cycle"]
    over = await shim.until_over("w", cycle["id"])
    assert over["step"] == "done", over


async def cycles(shim: Shim) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = await shim.call("GET", "/workspaces/w/restarts")
    return listed


async def killed(shim: Shim) -> None:
    shim.kill_workspace("w")


@pytest.mark.parametrize(("way", "adapter"), [(restarted, ENDS), (restarted, HOLDS), (killed, ENDS)])
async def test_defect_16_an_open_request_gets_its_answer_through_a_restart(
    shim: Shim, way: Callable[[Shim], Awaitable[None]], adapter: str
) -> None:
    await shim.create("w", adapter)
    async with held(shim, AT_WORK) as answers:
        await begun(shim)
        await way(shim)
    assert [answer_of(answer) for answer in answers] == ["both"]
    ran = effects(shim)
    assert ran["second"] == 1
    if way is restarted:
        assert ran == {"first": 1, "late": 1, "second": 1}, "a drain cuts nothing"
        (latest, _) = await cycles(shim)
        assert latest["notes"]["signal"]["acknowledged"] is True


async def test_a_request_sent_while_the_workspace_restarts_is_answered(shim: Shim) -> None:
    await shim.create("w", ENDS)
    await shim.call("POST", "/workspaces/w/restart")
    async with held(shim, "hello") as answers:
        pass
    assert answer_of(answers[0]) == "hello"


async def test_paused_messages_wait_and_are_answered_when_it_is_resumed(shim: Shim) -> None:
    await shim.create("w", "echo")
    pid = shim.pid("w")
    await shim.call("POST", "/workspaces/w/pause")
    await shim.until(lambda: not alive(pid), "the end of the sidecar")
    async with held(shim, "are you there?") as answers:
        await anyio.sleep(0.5)
        assert answers == []
        assert (await shim.call("GET", "/workspaces/w"))["status"] == "paused"
        await shim.call("POST", "/workspaces/w/resume")
    assert answer_of(answers[0]) == "are you there?"


async def test_a_removed_workspace_is_stopped_and_its_files_stay(shim: Shim) -> None:
    await shim.create("w", "echo")
    pid = shim.pid("w")
    await shim.call("DELETE", "/workspaces/w")
    await shim.until(lambda: not alive(pid), "the end of the sidecar")
    with anyio.fail_after(shim.patience):
        while (await gone(shim)).status_code != 410:
            await anyio.sleep(0.02)
    assert (shim.place("w") / "state").is_dir()


async def gone(shim: Shim) -> httpx.Response:
    async with httpx.AsyncClient(base_url=shim.url) as client:
        return await client.get("/workspaces/w")


async def test_a_workspace_outlives_the_shim_and_the_same_request_gets_its_answer(shim: Shim) -> None:
    await shim.create("w", ENDS)
    pid = shim.pid("w")
    body = shim.envelope(AT_WORK)
    async with anyio.create_task_group() as callers:

        async def lose() -> None:
            with suppress(httpx.TransportError):
                await shim.send("w", body)

        callers.start_soon(lose)
        await begun(shim)
        shim.kill()
    await shim.start()
    reply = await shim.send("w", body)
    assert answer_of(reply.json()) == "both"
    assert shim.pid("w") == pid
    assert effects(shim) == {"first": 1, "late": 1, "second": 1}


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text()


async def test_a_shim_that_dies_in_a_restart_finishes_it_when_it_is_started_again(shim: Shim) -> None:
    await shim.create("w", ENDS)
    for moment in (0.02, 0.3):
        before = (await shim.until_online("w"))["boot_id"]
        cycle = (await shim.call("POST", "/workspaces/w/restart"))["cycle"]
        await anyio.sleep(moment)
        shim.kill()
        await shim.start()
        over = await shim.until_over("w", cycle["id"])
        assert over["step"] == "done", over
        await shim.until_online("w", other_than=before)
    assert len(shim.pids()) == 2, "one shim, one sidecar"


async def test_another_replica_finishes_the_restart_under_an_open_request(tmp_path: Path) -> None:
    require(programs() is not None, "PostgreSQL (apt install postgresql)")
    database = Postgres()
    replicas: list[Shim] = []
    try:
        database.start()
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            shared = {"SHIM_DATABASE_URL": database.url, "SHIM_STATE_DIR": str(tmp_path / "shared")}
            replica = Shim(tmp_path / name, environ=inherited(), settings=TIMES | shared, patience=20.0)
            replica.state_dir = tmp_path / "shared"
            replicas.append(replica)
            await replica.start()
        one, other = replicas
        await one.create("w", ENDS)
        async with held(other, AT_WORK) as answers:
            await begun(other)
            cycle = (await one.call("POST", "/workspaces/w/restart"))["cycle"]
            await anyio.sleep(0.1)
            one.kill()
            over = await other.until_over("w", cycle["id"])
        assert over["step"] == "done", over
        assert [answer_of(answer) for answer in answers] == ["both"]
        assert effects(other) == {"first": 1, "late": 1, "second": 1}
    finally:
        for replica in replicas:
            replica.kill_everything()
        database.stop()
