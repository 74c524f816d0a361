"""A container is restarted in every way there is, and nothing that was accepted is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from workspace_adapter.testing.workspace import answer_of

from ..walks.workspace import ENDS, HOLDS, script
from .conftest import Images
from .container import PATIENCE, Container, container

pytestmark = pytest.mark.docker

AT_WORK = script(
    {"tool": "sh", "input": "echo first >> effects; touch begun; sleep 1; echo late >> effects"},
    {"tool": "sh", "input": "echo second >> effects"},
    {"answer": "both"},
)
FOR_LONG = script({"tool": "sh", "input": "touch begun; sleep 300"}, {"answer": "at last"})


async def gracefully(ws: Container) -> None:
    took = await ws.restart()
    assert took < 10, "that was the engine's SIGKILL"


async def killed(ws: Container) -> None:
    await ws.kill()
    await ws.start_again()


async def as_the_platform_does(ws: Container) -> None:
    """The signal is sent off, and the container removed without waiting for an answer."""
    async with anyio.create_task_group() as tasks:

        async def signal() -> None:
            with suppress(httpx.TransportError):
                await ws.signal()

        tasks.start_soon(signal)
        await anyio.sleep(0)
        await ws.remove()
        tasks.cancel_scope.cancel()
    await ws.run()


WAYS = [gracefully, killed, as_the_platform_does]
Way = Callable[[Container], Awaitable[None]]


@asynccontextmanager
async def asked(ws: Container, text: str) -> AsyncIterator[list[str]]:
    """Have somebody ask until the answer is there; it is when the block has ended."""
    answers: list[str] = []
    body = ws.envelope(text)

    async def ask() -> None:
        answers.append(answer_of(await ws.ask_until_answered(body)))

    async with anyio.create_task_group() as callers:
        callers.start_soon(ask)
        yield answers


@pytest.mark.parametrize("adapter", [ENDS, HOLDS])
@pytest.mark.parametrize("way", WAYS)
async def test_work_goes_on_where_it_was_and_the_answer_comes(images: Images, way: Way, adapter: str) -> None:
    async with container(images.tested, adapter) as ws:
        async with asked(ws, AT_WORK) as answers:
            await ws.until_sh("[ -e begun ]")
            await way(ws)
            await ws.until_ready()
        assert answers == ["both"]
        effects = Counter(await ws.effects())
        assert effects["second"] == 1
        if way is gracefully:
            assert effects == {"first": 1, "late": 1, "second": 1}, "a drain cuts nothing"
            assert ws.inspect(".State.OOMKilled") == "false"
        else:  # the agent was told that its first tool may have run, and ran it again
            assert (effects["first"], effects["late"]) == (2, 1)


async def test_an_idle_container_stops_in_under_a_second(images: Images) -> None:
    async with container(images.tested) as ws:
        assert await ws.stop() < 1
        assert ws.inspect(".State.ExitCode") == "0"


async def test_a_busy_container_stops_within_its_grace_and_goes_on(images: Images) -> None:
    async with container(images.tested) as ws:
        body = ws.envelope(FOR_LONG)
        async with anyio.create_task_group() as callers:

            async def cut_off() -> None:
                reply = await ws.post(body)
                assert (reply.status_code, reply.json()["restarting"]) == (502, True)

            callers.start_soon(cut_off)
            await ws.until_sh("[ -e begun ]")
            assert await ws.stop() < 9.5, "the engine's own limit is 10 s"
        assert ws.inspect(".State.ExitCode") == "0"
        await ws.start_again()
        await ws.until_ready()
        assert "1 turns to continue or start" in ws.logged().rpartition("drain begins")[2]


async def test_a_stop_during_the_boot_comes_at_once_and_loses_nothing(images: Images) -> None:
    async with container(images.tested) as ws:
        body = ws.envelope(script({"tool": "sh", "input": "touch begun; sleep 1"}, {"answer": "after all"}))
        with anyio.move_on_after(PATIENCE):
            async with anyio.create_task_group() as callers:

                async def lost() -> None:
                    with suppress(httpx.TransportError):
                        await ws.post(body)
                    callers.cancel_scope.cancel()

                callers.start_soon(lost)
                await ws.until_sh("[ -e begun ]")
                await ws.kill()
        for moment in (0, 0.1, 0.2, 0.3, 0.4):
            await ws.start_again()
            await anyio.sleep(moment)
            assert await ws.stop() < 3
            assert ws.inspect(".State.ExitCode") in ("0", "143"), "143: not a line of Python had run yet"
        await ws.start_again()
        assert answer_of(await ws.ask_until_answered(body)) == "after all"


async def test_ten_restarts_in_a_row_while_callers_send(images: Images, tmp_path: Path) -> None:
    log = tmp_path / "callers.log"
    async with container(
        images.tested,
        WORKSPACE_MAX_CONCURRENT_TURNS="3",
        WORKSPACE_RESUME_MAX_ATTEMPTS="100",
        WORKSPACE_RESUME_MAX_TOTAL="100",
        WORKSPACE_LOG_LEVEL="info",
    ) as ws:
        with log.open("wb") as out:
            callers = subprocess.Popen(
                [sys.executable, "-m", "tests.walks.callers", ws.url, "4"],
                stdin=subprocess.PIPE,
                stdout=out,
                cwd=Path(__file__).parents[2],
            )
        try:
            for number in range(10):
                already = log.read_text().count("answered")
                await ws.until(lambda: log.read_text().count("answered") > already, "an answer")  # noqa: B023
                await WAYS[number % len(WAYS)](ws)
            await ws.until_ready()
            assert callers.stdin is not None
            callers.stdin.close()
            assert await anyio.to_thread.run_sync(lambda: callers.wait(PATIENCE)) == 0
        finally:
            callers.kill()
            callers.wait()
        said = [line.split(maxsplit=2) for line in log.read_text().splitlines()]
        sent = [words[1] for words in said if words[0] == "sent"]
        answered = Counter(words[1] for words in said if words[0] == "answered")
        assert [words for words in said if words[0] == "wrong"] == []
        assert [name for name in sent if answered[name] != 1] == []
        assert len(sent) > 10
        listed = await ws.command_of_ours("turns", "list", "--json", "--limit", "10000")
        assert listed.returncode == 0, listed.stderr
        assert Counter(turn["message_id"] for turn in json.loads(listed.stdout)) == Counter(sent)
