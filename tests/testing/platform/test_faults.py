"""Bad days, as a client meets them."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator

import httpx
import pytest

from workspace_adapter.testing import FakePlatform, Fault

from .workspace import Sidecar


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as made:
        yield made


@pytest.fixture
def sidecar(platform: FakePlatform) -> Iterator[Sidecar]:
    made = Sidecar(platform)
    with made.client:
        made.register()
        yield made


def test_a_status_comes_as_often_as_told(platform: FakePlatform, sidecar: Sidecar) -> None:
    platform.fail(Fault.answer(500), times=2)
    assert [sidecar.beat().status_code for _ in range(3)] == [500, 500, 200]
    assert platform.failed == 2


def test_a_fault_may_be_for_one_route_alone(platform: FakePlatform, sidecar: Sidecar) -> None:
    with platform.failing(Fault.too_many(3), on="/heartbeat"):
        assert sidecar.register().status_code == 200
        limited = sidecar.beat()
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
    assert sidecar.beat().status_code == 200


@pytest.mark.parametrize(
    "fault", [Fault.html(), Fault.truncated(), Fault.empty(), Fault.wrong_types(), Fault.not_an_object()]
)
def test_garbage_is_what_no_reader_can_use(platform: FakePlatform, sidecar: Sidecar, fault: Fault) -> None:
    platform.fail(fault)
    reply = sidecar.beat()
    assert reply.status_code == 200
    try:
        read = reply.json()
    except ValueError:
        return
    assert not (isinstance(read, dict) and isinstance(read.get("generation"), int))


def test_a_late_answer_is_the_proper_one(platform: FakePlatform, sidecar: Sidecar) -> None:
    platform.fail(Fault.late(0.05))
    began = time.monotonic()
    assert sidecar.beat().json()["status"] == "ok"
    assert time.monotonic() - began >= 0.05


def test_a_request_whose_answer_is_late_is_not_taken_for_a_newer_one(
    platform: FakePlatform, sidecar: Sidecar
) -> None:
    platform.fail(Fault.late(0.3))
    with concurrent.futures.ThreadPoolExecutor() as callers:
        first = callers.submit(sidecar.beat, uptime_seconds=1)
        while not platform.heartbeats:
            time.sleep(0.001)
        assert sidecar.beat(uptime_seconds=2).status_code == 200
    assert first.result().status_code == 200
    platform.assert_no_violations()


def test_silence_lasts_until_the_client_gives_up(platform: FakePlatform, sidecar: Sidecar) -> None:
    platform.fail(Fault.silence())
    with pytest.raises(httpx.ReadTimeout):
        sidecar.client.post("/registry/heartbeat", json={}, timeout=0.05)


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.cut()])
def test_a_reset_is_a_lost_connection(platform: FakePlatform, sidecar: Sidecar, fault: Fault) -> None:
    platform.fail(fault, times=1)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        sidecar.beat()
    assert sidecar.beat().status_code == 200


def test_a_platform_that_is_away_refuses_and_comes_back_to_its_port(
    platform: FakePlatform, sidecar: Sidecar
) -> None:
    url = platform.url
    for _ in range(3):
        with platform.failing(Fault.refused()), pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert platform.url == url
        assert sidecar.beat().status_code == 200


def test_being_away_resets_what_is_under_way(platform: FakePlatform) -> None:
    platform.fail(Fault.silence())
    with httpx.Client(base_url=platform.url) as client:

        def leave(request: httpx.Request) -> None:
            platform.until(lambda: platform.failed == 1, "the request")
            platform.fail(Fault.refused())

        from threading import Thread

        leaving = Thread(target=leave, args=(httpx.Request("GET", platform.url),))
        leaving.start()
        with pytest.raises(httpx.ReadError):
            client.get("/health")
        leaving.join()


async def test_it_serves_an_async_test_as_well(platform: FakePlatform) -> None:
    async with httpx.AsyncClient(base_url=platform.url) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
