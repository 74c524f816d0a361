"""A container runs out of something, or is given too little: it says so, and what was accepted is kept."""

from __future__ import annotations

import re

import anyio
import pytest

from workspace_adapter.testing.workspace import answer_of

from ..walks.workspace import ENDS, script
from .conftest import Images
from .container import Container, container

pytestmark = pytest.mark.docker

HUNGRY = "hungry:Hungry"
DAY = 86400
SMALL = ("--memory", "160m", "--memory-swap", "160m", "--restart", "on-failure")
WAITS = {"tool": "sh", "input": "touch begun; while [ ! -e go ]; do sleep 0.02; done; echo one >> effects"}
SECOND = {"tool": "sh", "input": "echo second >> effects"}
HARDENED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--pids-limit", "200"),
)


async def until_logged(ws: Container, line: str) -> None:
    await ws.until(lambda: re.search(line, ws.logged()), f"the log line {line!r}")


async def test_a_turn_that_takes_all_the_memory_is_suspended_with_the_reason(images: Images) -> None:
    async with container(images.tested, HUNGRY, *SMALL) as ws:
        body = ws.envelope("eat")
        answer = answer_of(await ws.ask_until_answered(body))
        assert answer.startswith("Agent error: ")
        assert "3 attempts without progress" in answer
        assert int(ws.inspect(".RestartCount")) == 3
        assert answer_of((await ws.send("eat less")).json()) == "not hungry: eat less"


async def test_a_read_only_root_without_capabilities_is_enough(images: Images) -> None:
    async with container(images.tested, ENDS, *HARDENED) as ws:
        body = ws.envelope(script(SECOND, {"answer": "done"}))
        assert answer_of((await ws.post(body)).json()) == "done"
        await ws.restart()
        assert answer_of(await ws.ask_until_answered(body)) == "done"
        assert await ws.effects() == ["second"]
        assert "Read-only" not in ws.logged()


async def test_a_full_volume_takes_nothing_more_and_goes_on_when_it_is_freed(images: Images) -> None:
    async with container(images.tested, start=False) as ws:
        options = ["type=tmpfs", "device=tmpfs", "o=size=8m,uid=10001"]
        await ws.docker("volume", "create", *(f"--opt={option}" for option in options), ws.name)
        await ws.start()
        at_work = ws.envelope(script(WAITS, SECOND, {"answer": "both"}))
        answers: list[str] = []

        async def ask() -> None:
            answers.append(answer_of(await ws.ask_until_answered(at_work)))

        async with anyio.create_task_group() as callers:
            callers.start_soon(ask)
            await ws.until_sh("[ -e begun ]")
            await ws.sh("cat /dev/zero > ballast 2>/dev/null || true")
            refused = await ws.send(script({"answer": "x"}))
            assert (refused.status_code, refused.json()["busy"]) == (503, True)
            assert "database or disk is full" in refused.json()["error"]
            await ws.sh("rm ballast; touch go")
        assert answers == ["both"]
        assert await ws.effects() == ["one", "second"]
        assert answer_of((await ws.send(script({"answer": "x"}))).json()) == "x"


async def test_the_clock_may_jump_in_life_and_between_two_lives(images: Images) -> None:
    async with container(
        images.tested,
        start=False,
        LD_PRELOAD="/usr/lib/faketime.so",
        FAKETIME_TIMESTAMP_FILE="/workspace/clock",
        FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        FAKETIME_FORCE_MONOTONIC_FIX="0",
        NO_FAKE_STAT="1",
    ) as ws:
        await ws.docker("volume", "create", ws.name)
        await ws.start()
        begun = ws.envelope(script(WAITS, SECOND, {"answer": "both"}))
        old = ws.envelope(script({"answer": "of old"}))
        assert answer_of((await ws.post(old)).json()) == "of old"
        answers: list[str] = []

        async def ask() -> None:
            answers.append(answer_of(await ws.ask_until_answered(begun)))

        async with anyio.create_task_group() as callers:
            callers.start_soon(ask)
            await ws.until_sh("[ -e begun ]")
            await ws.sh(f"echo +{40 * DAY} > clock.new; mv clock.new clock")
            await ws.until_sh('[ "$(date +%s)" -gt "$(( $(FAKETIME_TIMESTAMP_FILE= date +%s) + 86400 ))" ]')
            await ws.sh("touch go")
            await ws.kill()
            await ws.start_again()
        assert answers == ["both"]
        await ws.sh(f"echo -{3 * DAY} > clock.new; mv clock.new clock")
        await ws.restart()
        assert answer_of(await ws.ask_until_answered(old)) == "of old"
        assert (await ws.effects())[-1:] == ["second"]
        assert (await ws.effects()).count("second") == 1


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ([], "on an anonymous volume"),
        (["--tmpfs", "/workspace:uid=10001"], r"in memory \(tmpfs\)"),
        (["--env", "WORKSPACE_STATE_DIR=/var/tmp/state"], "in the container's own layer"),
    ],
)
async def test_a_journal_that_goes_with_its_container_is_said_at_the_start(
    images: Images, volume: list[str], said: str
) -> None:
    async with container(images.workspace, "echo", start=False) as ws:
        ws.volume = volume
        await ws.start()
        (told,) = re.findall(rf"^\S+ (?:warning|error) .*{said}.*$", ws.logged(), re.M)
        assert "volume" in told, "it says what to do"


async def test_a_named_volume_and_an_init_leave_nothing_to_be_said(images: Images) -> None:
    async with container(images.workspace, "echo") as ws:
        warnings = re.findall(r"^\S+ warning \S+ (.*)$", ws.logged(), re.M)
        assert [line for line in warnings if "WORKSPACE_REQUIRE_AUTH" not in line] == []


async def test_a_sidecar_without_an_init_says_so(images: Images) -> None:
    async with container(images.workspace, "echo", "--entrypoint", "workspace-adapter", start=False) as ws:
        ws.command = ("serve",)
        await ws.start()
        assert re.search("warning .*PID 1", ws.logged())


async def test_a_volume_that_belongs_to_root_is_refused_with_what_to_do(images: Images) -> None:
    async with container(images.workspace, "echo", start=False) as ws:
        # An empty volume is given the image's owner by the engine; one with a file in it is not.
        to_root = "touch /workspace/kept; chown -R 0:0 /workspace; chmod 755 /workspace"
        as_root = ("run", "--rm", "--user", "0", *ws.volume)
        await ws.docker(*as_root, images.workspace, "bash", "-c", to_root)
        await ws.run()
        await ws.until(lambda: not ws.alive(), "its end")
        assert ws.inspect(".State.ExitCode") == "2"
        said = ws.logged().splitlines()[-1]
        assert "/workspace" in said
        assert "user 10001" in said
        assert "belongs to user 0" in said
