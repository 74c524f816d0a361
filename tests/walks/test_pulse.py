"""The walk of a workspace on a platform: registered, beating, whatever either of them goes through."""

from __future__ import annotations

import itertools
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from workspace_adapter.testing import FakePlatform
from workspace_adapter.testing.platform import Fault, Times

from .workspace import ENDS, Workspace, script, workspace

INTERVAL = 0.1
TIMES = Times(liveness=10**6)
"""Of a platform that restarts no workspace by itself, however long it was away."""
NO_ROOM = 1000


@asynccontextmanager
async def on_platform(
    root: Path,
    adapter: str = ENDS,
    *,
    token: bool = True,
    start: bool = True,
    interval: float = INTERVAL,
    **settings: str,
) -> AsyncIterator[tuple[Workspace, FakePlatform]]:
    """Hold a workspace and its platform, whose times go with the interval."""
    configs = root / "configs"
    if token:
        configs.mkdir()
    with FakePlatform(
        configs_dir=configs if token else None, times=TIMES, scale=interval / 10, rate_limit=10**6
    ) as platform:
        if token:
            platform.provision()
        told = {"PLATFORM_URL": platform.url, "WORKSPACE_HEARTBEAT_INTERVAL": str(interval), **settings}
        async with workspace(root, adapter, start=start, **told) as ws:
            if start:
                await ws.until(lambda: platform.heartbeats, "the first heartbeat")
            yield ws, platform
            platform.assert_no_violations()


async def beaten(ws: Workspace, platform: FakePlatform, **members: Any) -> dict[str, Any]:
    """Wait for a new heartbeat that says this; return it."""
    before = len(platform.heartbeats)

    def said() -> list[dict[str, Any]]:
        new = [entry for entry in platform.received if entry.path.endswith("/heartbeat")][before:]
        return [
            entry.body
            for entry in new
            if entry.status == 200 and all(entry.body[name] == value for name, value in members.items())
        ]

    await ws.until(said, f"a heartbeat that says {members}")
    return said()[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


BAD_DAYS = [
    Fault.reset(),
    Fault.cut(),
    Fault.answer(500),
    Fault.too_many(0.2),
    Fault.answer(401),
    Fault.answer(400),
    Fault.answer(302, b"", {"location": "http://127.0.0.1:9/"}),
    Fault.html(),
    Fault.truncated(),
    Fault.not_an_object(),
    Fault.empty(),
    Fault.silence(),
]
SLOW = Fault.late(0.2)


async def test_it_registers_in_the_end_whatever_the_platform_does_and_serves_meanwhile(
    tmp_path: Path,
) -> None:
    async with on_platform(tmp_path, start=False) as (ws, platform):
        platform.fail(Fault.refused())
        await ws.start()
        await ws.until(lambda: "does not know this workspace yet" in ws.logged(), "the log line")
        for fault in BAD_DAYS:
            platform.fail(fault, on="/register")
            await ws.until(lambda: platform.failed, f"a registration that is {fault.how}")
            assert ws.serves()
        platform.fail(SLOW, on="/register")
        await ws.until(lambda: "registered with the platform" in ws.logged(), "the registration")
        await beaten(ws, platform, observed_generation=1)
        last = platform.registrations[-1]
        assert (last["id"], last["delivery_mode"]) == ("ws-test", "push")
        assert not last["url"].endswith("/")
        assert {"name", "description", "version", "url", "skills", "capabilities"} <= last[
            "agent_card"
        ].keys()
        assert ws.logged().count("does not know this workspace yet") <= 5, "one line for each kind of failure"


async def test_nobody_hears_of_it_before_it_takes_messages(tmp_path: Path) -> None:
    async with workspace(tmp_path / "a") as first, on_platform(tmp_path, start=False) as (ws, platform):
        ws.environ["WORKSPACE_STATE_DIR"] = str(first.state_dir)
        ws.spawn()
        await ws.until(ws.serves, "the port")
        first.terminate()
        await ws.until(lambda: platform.heartbeats, "the first heartbeat")
        told = ws.logged()
        assert told.index("sidecar.serve: open: ") < told.index("registered with the platform")


async def test_a_change_is_told_at_once_and_the_last_heartbeat_says_that_there_is_no_room(
    tmp_path: Path,
) -> None:
    async with on_platform(tmp_path, interval=10.0) as (ws, platform):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                ws.post, ws.envelope(script({"tool": "sh", "input": "sleep 0.5"}, {"answer": "x"}))
            )
            with anyio.fail_after(5):
                busy = await beaten(ws, platform, active_tasks=1, is_busy=True)
            assert busy["current_task"].startswith("please do this")
            await beaten(ws, platform, active_tasks=0, current_task="")
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ws.signal)
                await beaten(ws, platform, active_tasks=NO_ROOM)
        ws.terminate()
        assert await ws.exited() == 0
        last = platform.heartbeats[-1]
        assert (last["active_tasks"], last["state"]) == (NO_ROOM, "stopping")
        lives = {last["boot_id"]}
        for number in (2, 3):
            await ws.start()
            await ws.until(lambda: platform.heartbeats[-1]["boot_id"] not in lives, "the next life")
            lives.add(platform.heartbeats[-1]["boot_id"])
            assert (platform.heartbeats[-1]["active_tasks"], len(lives)) == (0, number)
            ws.kill_everything()


async def test_after_a_long_outage_it_registers_anew_and_says_so_once(tmp_path: Path) -> None:
    async with on_platform(tmp_path) as (ws, platform):
        platform.fail(Fault.refused())
        await ws.until(lambda: "the platform is lost" in ws.logged(), "the log line")
        platform.recover()
        await ws.until(lambda: "the platform is back" in ws.logged(), "the log line")
        assert len(platform.registrations) == 1, "a short outage is nothing"
        platform.fail(Fault.answer(503))
        await anyio.sleep(20 * INTERVAL)  # longer than the platform remembers a workspace
        platform.recover()
        await ws.until(lambda: ws.logged().count("registered with") == 2, "another registration")
        assert ws.logged().count("the platform is lost") == 2


async def test_it_never_registers_while_it_drains_but_when_the_gate_reopens(tmp_path: Path) -> None:
    async with on_platform(
        tmp_path, WORKSPACE_RESTART_WINDOW="3.5", WORKSPACE_DRAIN_CAP="0.2", WORKSPACE_STOP_GRACE="0.2"
    ) as (ws, platform):
        await ws.signal()
        platform.fail(Fault.answer(500))
        await anyio.sleep(20 * INTERVAL)
        platform.recover()
        await beaten(ws, platform, active_tasks=NO_ROOM, state="drained")
        await beaten(ws, platform, active_tasks=NO_ROOM)
        assert len(platform.registrations) == 1
        await beaten(ws, platform, active_tasks=0, state="serving")
        await ws.until(lambda: len(platform.registrations) == 2, "the registration")


async def test_a_blocked_event_loop_costs_no_heartbeat_and_is_reported_until_it_goes_on(
    tmp_path: Path,
) -> None:
    wedged_after = 0.4
    async with on_platform(
        tmp_path,
        "tests.walks.sick:Sick",
        PYTHONPATH=str(Path(__file__).parents[2]),
        WORKSPACE_WEDGED_AFTER=str(wedged_after),
    ) as (ws, platform):
        began = len(platform.received)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.send, str(3 * wedged_after))
            beat = await beaten(ws, platform, runtime_state="wedged")
            assert "run_turn (sick.py:" in beat["sample_error"]
            assert beat["active_tasks"] == 1
        await beaten(ws, platform, runtime_state="", sample_error="", active_tasks=0)
        beats = [entry.at for entry in platform.received[began:]]
        assert max(b - a for a, b in itertools.pairwise(beats)) < 2 * wedged_after
        assert ws.logged().count("the event loop is blocked") == 1
        assert "the event loop goes on" in ws.logged()


async def test_a_runtime_that_cannot_work_and_turns_that_fail_are_told(tmp_path: Path) -> None:
    async with on_platform(
        tmp_path,
        "tests.walks.sick:Sick",
        PYTHONPATH=str(Path(__file__).parents[2]),
        WORKSPACE_WEDGED_AFTER="1",
    ) as (ws, platform):
        for _ in range(3):
            await ws.send("fail")
        await beaten(ws, platform, sample_error="the model is gone", error_rate=0.6)
        (ws.root / "trouble").write_text("its server does not answer")
        await beaten(ws, platform, runtime_state="wedged", sample_error="its server does not answer")
        (ws.root / "trouble").unlink()
        await beaten(ws, platform, runtime_state="")


async def test_a_new_token_and_a_new_secret_count_from_the_next_heartbeat_on(tmp_path: Path) -> None:
    async with on_platform(tmp_path) as (ws, platform):
        platform.provision()
        await beaten(ws, platform)
        secret = ws.root / "configs" / ".platform_inbound_secret"
        await ws.until(lambda: secret.read_text().strip() == platform.tokens.inbound_secret, "the new secret")
        assert mode(secret) == 0o600
        assert await status_with(ws, platform.tokens.inbound_secret) == 200
        assert ws.logged().count("registered with the platform") == 1


async def test_a_platform_may_want_every_message_signed_and_take_that_back(tmp_path: Path) -> None:
    async with on_platform(tmp_path) as (ws, platform):
        secret = f"Bearer {platform.tokens.inbound_secret}"

        async def until_answered(status: int, **headers: str) -> None:
            with anyio.fail_after(ws.patience):
                while (await ws.post(ws.envelope(script({"answer": "x"})), **headers)).status_code != status:
                    await anyio.sleep(INTERVAL)

        await until_answered(200)
        platform.fail(Fault.answer(200, b'{"require_auth": true}'), on="/heartbeat")
        await until_answered(401)
        await until_answered(200, Authorization=secret)
        platform.fail(Fault.answer(200, b'{"require_auth": false}'), on="/heartbeat")
        await until_answered(200)


async def test_a_new_life_wants_bearers_before_the_platform_is_heard(tmp_path: Path) -> None:
    async with on_platform(tmp_path) as (ws, platform):
        secret = f"Bearer {platform.tokens.inbound_secret}"
        platform.fail(Fault.answer(200, b'{"require_auth": true}'), on="/heartbeat")
        kept = ws.root / "configs" / ".platform_inbound_auth"
        await ws.until(lambda: kept.exists(), "the note that bearers are wanted")
        platform.fail(Fault.answer(503, b'{"error": "away"}'))
        ws.kill_everything()
        await ws.start()

        message = ws.envelope(script({"answer": "x"}))
        assert (await ws.post(message)).status_code == 401
        assert (await ws.post(message, Authorization=secret)).status_code == 200


async def test_the_first_token_comes_with_the_registration_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    async with on_platform(tmp_path, token=False) as (ws, platform):
        files = [ws.root / "configs" / name for name in (".auth_token", ".platform_inbound_secret")]
        assert [mode(file) for file in files] == [0o600, 0o600]
        ws.kill_everything()
        await ws.start()
        await beaten(ws, platform)


async def test_secrets_that_cannot_be_written_hold_for_this_life(tmp_path: Path) -> None:
    async with on_platform(tmp_path, token=False) as (ws, platform):
        await beaten(ws, platform)
        assert not (ws.root / "configs").exists()
        assert await status_with(ws, platform.tokens.inbound_secret) == 200
        assert ws.logged().count("the platform's new secret cannot be kept in") == 2, "once for each of them"


async def status_with(ws: Workspace, secret: str) -> int:
    async with httpx.AsyncClient(base_url=ws.url) as client:
        answer = await client.get("/status", headers={"Authorization": f"Bearer {secret}"})
        return answer.status_code
