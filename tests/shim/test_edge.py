"""What every request passes: who asks, how often, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import anyio
import pytest
from starlette.types import Message as AsgiMessage
from starlette.types import Scope

from tests.shim.front import ADMIN, front
from workspace_adapter.shim.front.body import LARGE, read
from workspace_adapter.shim.front.rates import Rates
from workspace_adapter.shim.front.refusal import Refusal


@pytest.mark.parametrize("prefix", ["webhook:", "system:", "test:", "channel:"])
async def test_nobody_outside_speaks_as_the_platform(tmp_path: Path, prefix: str) -> None:
    async with front(tmp_path) as shim:
        await shim.register()
        reply = await shim.call("POST", "/workspaces/w/a2a", {}, x_workspace_id=f"{prefix}cron")

        assert (reply.status_code, bool(reply.json()["error"])) == (403, True)


async def test_whose_bearer_it_is_is_who_asks(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        tokens = [
            (await shim.call("POST", "/workspaces", {"id": name}, bearer=ADMIN)).json()["auth_token"]
            for name in ("w", "v")
        ]
        at = "/workspaces/w/a2a"

        assert (await shim.call("POST", at, {}, bearer=tokens[1], x_workspace_id="v")).status_code == 200
        for claims in ({"bearer": tokens[1]}, {"bearer": ADMIN}, {"bearer": None}):
            forged = await shim.call("POST", at, {}, bearer=claims["bearer"], x_workspace_id="w")
            assert forged.status_code == 401


async def test_a_bearer_of_another_scheme_is_refused(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        for authorization in ("Basic YTpi", "Bearer", "Bearer ", ADMIN):
            reply = await shim.call("GET", "/workspaces", authorization=authorization)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


async def test_without_an_admin_token_only_this_machine_is_served(tmp_path: Path) -> None:
    """A page of somebody else's must not have a browser on this machine act as the operator."""
    async with front(tmp_path) as shim:
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
            assert (await shim.call("GET", "/workspaces", **headers)).status_code == 403
        for headers in (
            {"host": "localhost:8080"},
            {"host": "[::1]:8080"},
            {"origin": "http://127.0.0.1:3000"},
        ):
            assert (await shim.call("GET", "/workspaces", **headers)).status_code == 200


async def test_health_is_for_everybody(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN, rate_limit=1) as shim:
        for _ in range(3):
            assert (await shim.call("GET", "/healthz", host="a-balancer")).status_code == 200
            assert (await shim.call("GET", "/readyz")).status_code == 200


async def test_a_caller_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with front(tmp_path, rate_limit=2) as shim:
        await shim.register()
        token = (await shim.call("POST", "/tokens", {"name": "ann"})).json()["auth_token"]
        codes = [
            (await shim.call("POST", "/workspaces/w/a2a", {}, bearer=token)).status_code for _ in range(2)
        ]
        refused = await shim.call("POST", "/workspaces/w/a2a", {}, bearer=token)

        assert codes == [200, 200]
        assert refused.status_code == 429
        assert refused.headers["x-ratelimit-limit"] == "2"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["retry_after"] == int(refused.headers["retry-after"])
        assert (await shim.call("GET", "/workspaces")).status_code == 200, "another caller's count"


async def test_registrations_and_heartbeats_are_not_counted(tmp_path: Path) -> None:
    async with front(tmp_path, rate_limit=1) as shim:
        token = (await shim.register()).json()["auth_token"]
        assert [(await shim.beat(token)).status_code for _ in range(5)] == [200] * 5


async def test_whoever_guesses_bearers_is_slowed_down(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN, rate_limit=3) as shim:
        codes = [(await shim.call("GET", "/workspaces", bearer=f"guess-{n}")).status_code for n in range(5)]

    assert codes == [401, 401, 401, 429, 429]


def test_a_bucket_fills_as_time_passes_and_no_higher() -> None:
    rates = Rates(60)
    assert [rates.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rates.take("a", 0.0) == pytest.approx(1.0)
    assert rates.take("a", 1.0) == 0.0
    assert rates.take("a", 1.5) == pytest.approx(0.5)
    assert rates.take("b", 1.5) == 0.0
    assert [rates.take("a", 1e6) for _ in range(61)].count(0.0) == 60


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/workspaces", 405),
        ("GET", "/registry/heartbeat", 405),
        ("GET", "/workspaces/w/", 404),
        ("GET", "/workspaces/W", 404),
        ("GET", "/workspaces/w%00", 404),
    ],
)
async def test_every_refusal_is_json_that_says_something(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with front(tmp_path) as shim:
        reply = await shim.call(method, path)

        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["error"]


async def test_a_store_that_is_away_is_said_with_when_to_ask_again(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = (await shim.register()).json()["auth_token"]

        await shim.store.__aexit__(None, None, None)
        for reply in (await shim.beat(token), await shim.call("GET", "/workspaces", bearer="x")):
            assert reply.status_code == 503
            assert reply.headers["retry-after"]
            assert "Nothing was acknowledged" in reply.json()["error"]


async def test_a_store_that_is_away_is_a_warning_and_not_one_for_each_request(
    tmp_path: Path, logged: StringIO
) -> None:
    async with front(tmp_path) as shim:
        await shim.store.__aexit__(None, None, None)
        for _ in range(5):
            await shim.call("GET", "/workspaces", bearer="x")
    assert logged.getvalue().count('"level": "warning"') == 1


@pytest.mark.parametrize("path", ["/registry/register", "/registry/heartbeat"])
async def test_nobody_has_us_keep_a_large_body_before_saying_who_they_are(tmp_path: Path, path: str) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        token = (await shim.call("POST", "/workspaces", {"id": "w"}, bearer=ADMIN)).json()["auth_token"]
        taken = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal taken
            for _ in range(100):
                taken += 1000
                yield b" " * 1000

        for bearer in ("unknown", None):
            headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
            refused = await shim.client.post(path, content=body(), headers=headers)
            assert (refused.status_code, taken) == (401, 0)
        await shim.client.post(path, content=body(), headers={"authorization": f"Bearer {token}"})
        assert taken == 100_000


async def test_a_workspace_is_not_counted_with_a_role_of_the_same_name(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN, rate_limit=2) as shim:
        made = await shim.call("POST", "/workspaces", {"id": "operator"}, bearer=ADMIN)
        token = made.json()["auth_token"]
        codes = [(await shim.call("GET", "/workspaces/operator", bearer=token)).status_code for _ in range(3)]

        assert codes == [200, 200, 429]
        assert (await shim.call("GET", "/workspaces", bearer=ADMIN)).status_code == 200


async def test_a_body_is_read_to_its_limit_and_no_further() -> None:
    sent = [b"a" * 10] * 100
    scope: Scope = {"type": "http", "headers": []}

    async def receive() -> AsgiMessage:
        return {"type": "http.request", "body": sent.pop(), "more_body": bool(sent)}

    with pytest.raises(Refusal) as refused:
        await read(scope, receive, 55)
    assert (refused.value.status, refused.value.body["max_bytes"]) == (413, 55)
    assert len(sent) == 94

    with pytest.raises(Refusal):
        await read({"type": "http", "headers": [(b"content-length", b"56")]}, receive, 55)
    assert len(sent) == 94, "nothing of it was read"


async def test_of_large_bodies_only_so_many_are_read_at_once_and_the_others_in_their_time() -> None:
    places, received, go_on = anyio.CapacityLimiter(1), [0, 0], anyio.Event()
    chunk, most = b"a" * (LARGE // 4), 8

    async def body(number: int) -> None:
        async def receive() -> AsgiMessage:
            received[number] += 1
            if received[number] == most:
                await go_on.wait()
            return {"type": "http.request", "body": chunk, "more_body": received[number] < most}

        scope: Scope = {"type": "http", "headers": []}
        assert len(await read(scope, receive, most * LARGE, patience=0.3, large=places)) == most * len(chunk)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body, 0)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(body, 1)
        await anyio.wait_all_tasks_blocked()
        assert received == [most, 5], "the second waits, having read a little more than a large one's least"
        go_on.set()
    assert places.available_tokens == 1


async def test_a_body_that_never_ends_is_not_waited_for() -> None:
    async def receive() -> AsgiMessage:
        await anyio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": True}

    with pytest.raises(Refusal) as refused:
        await read({"type": "http", "headers": []}, receive, 1 << 20, patience=0.1)
    assert refused.value.status == 408
