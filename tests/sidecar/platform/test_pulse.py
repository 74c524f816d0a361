"""The thread of the heartbeats."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from workspace_adapter.heartbeat import Identity, Pace, Vitals
from workspace_adapter.sidecar.platform.client import PlatformClient
from workspace_adapter.sidecar.platform.pulse import LAST_BEAT, Pulse
from workspace_adapter.testing import FakePlatform
from workspace_adapter.testing.platform import Fault


def pulse_of(connect: Callable[[], PlatformClient], *, required: list[bool] | None = None) -> Pulse:
    return Pulse(
        connect=connect,
        identity=Identity(
            workspace_id="ws-test", boot_id="b", version="1", idle_timeout=9.0, began=time.monotonic()
        ),
        url="http://w:8000",
        delivery_mode="push",
        pace=Pace(0.1),
        wedged_after=0.2,
        read=lambda: Vitals(agent_card={"name": "w"}),
        ask_runtime=lambda: None,
        require_auth=(required if required is not None else []).append,
    )


def client_of(url: str, configs: Path) -> PlatformClient:
    return PlatformClient(platform_url=url, workspace_id="ws-test", configs_dir=configs)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_fault_of_ours_ends_no_heartbeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FakePlatform() as platform:
        faults = [ZeroDivisionError()]

        def connect() -> PlatformClient:
            if faults:
                raise faults.pop()
            return client_of(platform.url, tmp_path)

        pulse = pulse_of(connect)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pulse.run)
            pulse.start()
            await until(lambda: platform.heartbeats)
            await pulse.stop(1.0)
            tasks.cancel_scope.cancel()
        assert len([line for line in caplog.messages if "started anew" in line]) == 1


async def test_what_our_platform_says_is_heard(tmp_path: Path) -> None:
    with FakePlatform() as platform:
        body = b'{"queue_depth": 3, "max_concurrent_tasks": 2, "require_auth": true, "generation": 9}'
        platform.fail(Fault.answer(200, body))
        required: list[bool] = []
        pulse = pulse_of(lambda: client_of(platform.url, tmp_path), required=required)
        pulse.start()
        await until(lambda: platform.heartbeats)
        await until(lambda: pulse.status()["queue_depth"] == 3)
        assert (pulse.status()["max_concurrent_tasks"], pulse.status()["generation"]) == (2, 9)
        assert required == [True]
        await pulse.stop(1.0)
        assert platform.heartbeats[-1]["observed_generation"] == 9


async def test_the_status_says_why_it_is_not_registered_while_heartbeats_are_answered(
    tmp_path: Path,
) -> None:
    with FakePlatform() as platform:
        platform.fail(Fault.answer(400, b'{"error": "hostname cannot be resolved"}'), on="/register")
        pulse = pulse_of(lambda: client_of(platform.url, tmp_path))
        pulse.start()
        await until(lambda: pulse.beats["ok"])
        status = pulse.status()
        assert status["registered_seconds"] is None
        assert "hostname cannot be resolved" in status["failing"]
        platform.recover()
        await until(lambda: pulse.registrations["ok"])
        assert pulse.status()["failing"] is None
        await pulse.stop(1.0)


async def test_a_platform_that_hangs_holds_no_stop_up(tmp_path: Path) -> None:
    with FakePlatform() as platform:
        pulse = pulse_of(lambda: client_of(platform.url, tmp_path))
        pulse.start()
        await until(lambda: platform.heartbeats)
        platform.fail(Fault.silence())
        began = time.monotonic()
        await pulse.stop(10.0)
        assert time.monotonic() - began < LAST_BEAT + 0.5
