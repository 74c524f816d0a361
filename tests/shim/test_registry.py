"""What workspaces say of themselves, and what the shim makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.shim.front import ADMIN, FrontOfShim, front
from workspace_adapter.shim.front.identity import CONTAINER, digest
from workspace_adapter.shim.registry import beat_of
from workspace_adapter.shim.store.contract import Message, Role, Status


async def known(shim: FrontOfShim, name: str = "w") -> str:
    """Have a workspace register; return its token."""
    reply = await shim.register(name)
    assert reply.status_code == 200, reply.text
    token: str = reply.json()["auth_token"]
    return token


async def waiting(shim: FrontOfShim, name: str = "w") -> None:
    message = Message(workspace_id=name, turn_key="k", content_hash="h", body=b"{}")
    await shim.store.enqueue(message)


# --- registrations ------------------------------------------------------------------------


async def test_the_first_registration_makes_the_workspace_and_shows_its_token_once(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        first = (await shim.register()).json()
        again = (await shim.register(bearer=first["auth_token"])).json()
        workspace = await shim.workspace()

    assert first["status"] == "registered"
    assert first["require_auth"] is True
    assert first["platform_inbound_secret"] == workspace.secret != ""
    assert (first["generation"], first["queue_depth"], first["max_concurrent_tasks"]) == (0, 0, 1)
    assert "auth_token" not in again
    assert (workspace.status, workspace.url) == (Status.ONLINE, "http://127.0.0.1:9")
    assert shim.registered == ["w", "w"]


async def test_once_a_workspace_has_a_token_nobody_registers_without_it(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await known(shim)
        other = await known(shim, "v")
        refused = [
            await shim.register(bearer=bearer, boot="b2", url="http://127.0.0.1:8")
            for bearer in (None, "x", other)
        ]

        assert [reply.status_code for reply in refused] == [401, 401, 401]
        assert all("/tokens" in reply.json()["error"] for reply in refused)
        assert (await shim.workspace()).url == "http://127.0.0.1:9"


async def test_a_first_registration_whose_reply_was_lost_is_repeated_by_the_same_life(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.register()
        token = (await shim.register()).json()["auth_token"]
        assert (await shim.beat(token)).status_code == 200
    async with front(tmp_path, admin_token=ADMIN) as shim:
        assert (await shim.register()).status_code == 401


async def test_a_registration_takes_back_what_earlier_starts_handed_out(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.store.create_workspace("w")
        for at, name in enumerate(("by-hand", "start-1", "start-2", "start-3")):
            label = name if name == "by-hand" else CONTAINER
            await shim.store.add_token(
                digest(name), role=Role.WORKSPACE, workspace_id="w", label=label, now=float(at)
            )

        async def registered(name: str, boot: str) -> list[str]:
            """Register with a token; return those that still count."""
            assert (await shim.register(bearer=name, boot=boot)).status_code == 200
            names = ("by-hand", "start-1", "start-2", "start-3")
            left = await shim.store.tokens([digest(name) for name in names])
            return [name for name in names if digest(name) in left]

        # The third start found it running, so what runs has the second's.
        assert await registered("start-2", "b1") == ["by-hand", "start-2", "start-3"]
        assert await registered("start-2", "b2") == ["by-hand", "start-2", "start-3"]
        assert await registered("by-hand", "b3") == ["by-hand", "start-2", "start-3"]
        assert await registered("start-3", "b4") == ["by-hand", "start-3"]


async def test_with_an_admin_token_nobody_registers_that_was_not_made(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        assert (await shim.register()).status_code == 401
        made = await shim.call("POST", "/workspaces", {"id": "w"}, bearer=ADMIN)
        token = made.json()["auth_token"]

        assert (await shim.register()).status_code == 401
        assert (await shim.register(bearer=token)).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"delivery_mode": "poll"}, "delivery_mode"),
        ({"url": ""}, "url is required"),
        ({"url": "http://169.254.169.254/"}, "may not be called"),
        ({"url": "ftp://127.0.0.1/"}, "http"),
        ({"id": "../w"}, "id"),
        ({"boot_id": "a" * 129}, "boot_id"),
        ({"agent_card": "me"}, "agent_card"),
    ],
)
async def test_a_registration_that_cannot_work_is_refused_and_changes_nothing(
    tmp_path: Path, wrong: dict[str, str], says: str
) -> None:
    async with front(tmp_path) as shim:
        reply = await shim.register(**wrong)

        assert reply.status_code == 400
        assert says in reply.json()["error"]
        found = await shim.store.workspace("w")
        assert found is None or found.status is Status.PROVISIONING
        assert (await shim.register()).json()["auth_token"]


async def test_a_late_registration_of_a_life_that_was_replaced_changes_nothing(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.register(bearer=token, boot="b2", url="http://127.0.0.1:10")
        late = await shim.register(bearer=token, boot="b1")

        assert (late.status_code, late.json()["ignored"]) == (409, "replaced")
        assert (await shim.workspace()).url == "http://127.0.0.1:10"


async def test_registering_while_paused_changes_nothing(tmp_path: Path) -> None:
    """Defect 19: on a paused workspace its URL and its liveness were kept all the same."""
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.store.set_status("w", Status.PAUSED, were=[Status.ONLINE])
        before = await shim.workspace()
        replies = [
            await shim.register(bearer=token, boot="b2", url="http://127.0.0.1:10"),
            await shim.beat(token),
        ]

        assert [(reply.status_code, reply.json()["ignored"]) for reply in replies] == [(200, "paused")] * 2
        assert await shim.workspace() == before
        assert shim.registered == ["w"]


async def test_a_removed_workspace_stays_removed(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.store.set_status("w", Status.REMOVED, were=[Status.ONLINE])

        assert (await shim.register(bearer=token)).status_code == 410
        assert (await shim.beat(token)).status_code == 401
        assert (await shim.workspace()).status is Status.REMOVED


# --- heartbeats ---------------------------------------------------------------------------


async def test_a_heartbeat_is_kept_and_told_what_a_registration_is(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        await waiting(shim)
        reply = await shim.beat(token, active_tasks=1, current_task="thinking", state="serving")
        workspace = await shim.workspace()

    assert reply.json() == {
        "status": "ok",
        "generation": 0,
        "queue_depth": 1,
        "max_concurrent_tasks": 1,
        "require_auth": True,
        "platform_inbound_secret": workspace.secret,
    }
    assert workspace.active_tasks == 1
    assert workspace.report["current_task"] == "thinking"


async def test_a_heartbeat_that_shows_room_rings_for_what_waits(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.beat(token)
        assert shim.rung == []
        await waiting(shim)
        await shim.beat(token, active_tasks=1)
        await shim.beat(token, active_tasks=1000)
        assert shim.rung == []
        await shim.beat(token)
        assert shim.rung == ["w"]


async def test_a_heartbeat_that_is_not_authenticated_is_no_success(tmp_path: Path) -> None:
    """Defect 23: a 401 counted as success."""
    async with front(tmp_path) as shim:
        await known(shim)
        other = await known(shim, "v")
        before = (await shim.workspace()).beat_at

        assert [(await shim.beat(bearer)).status_code for bearer in (None, "wrong", other)] == [401, 401, 401]
        assert (await shim.workspace()).beat_at == before


async def test_any_heartbeat_brings_a_silent_workspace_back(tmp_path: Path) -> None:
    """Defect 18: after a lapse only a registration counted again."""
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.store.set_status("w", Status.OFFLINE, were=[Status.ONLINE])

        assert (await shim.beat(token)).status_code == 200
        assert (await shim.workspace()).status is Status.ONLINE


async def test_a_heartbeat_of_a_replaced_life_changes_nothing(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.register(bearer=token, boot="b2")
        late = await shim.beat(token, active_tasks=7)

        assert (late.status_code, late.json()["ignored"]) == (409, "replaced")
        assert (await shim.workspace()).active_tasks == 0


async def test_whoever_is_unknown_here_is_told_to_register(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        reply = await shim.beat("of another shim's life")

        assert (reply.status_code, "register" in reply.json()["error"]) == (404, True)


async def test_a_partial_heartbeat_takes_nothing_back(tmp_path: Path) -> None:
    """Defect 21: one beat without metadata cleared what a workspace can do, and that it was wedged."""
    async with front(tmp_path) as shim:
        token = await known(shim)
        metadata = {"capabilities": {"retry": True}, "idle_timeout_seconds": 60}
        await shim.beat(token, runtime_metadata=metadata, runtime_state="wedged")
        await shim.beat(token, runtime_metadata=None, runtime_state=None, error_rate=0, current_task="a")
        workspace = await shim.workspace()

    assert workspace.report["runtime_metadata"] == metadata
    assert workspace.report["current_task"] == "a"
    assert workspace.status is Status.DEGRADED


async def test_an_idle_workspace_that_beats_stays_awake_and_known_to_be_idle(tmp_path: Path) -> None:
    """Defect 22: idleness was judged by an old heartbeat, so one that beat was never idle."""
    async with front(tmp_path) as shim:
        token = await known(shim)
        for _ in range(3):
            await shim.beat(token)
        workspace = await shim.workspace()

    assert (workspace.status, workspace.active_tasks) == (Status.ONLINE, 0)


@pytest.mark.parametrize(
    ("said", "degraded"),
    [
        ({}, False),
        ({"error_rate": 0.5}, True),
        ({"error_rate": 0.3}, None),
        ({"error_rate": 0.1}, None),
        ({"error_rate": 0.09}, False),
        ({"runtime_state": "wedged"}, True),
        ({"runtime_state": "odd"}, None),
        ({"error_rate": 0.9, "runtime_metadata": {"capabilities": {"status_mgmt": True}}}, False),
        ({"runtime_state": "wedged", "runtime_metadata": {"capabilities": {"status_mgmt": True}}}, True),
    ],
)
def test_what_degrades_a_workspace_and_what_mends_it(said: dict[str, object], degraded: bool | None) -> None:
    body = {"workspace_id": "w", "runtime_state": "", "runtime_metadata": {"capabilities": {}}, **said}

    assert beat_of(body).degraded is degraded


def test_a_beat_less_than_every_fifteen_seconds_does_not_count_as_silence() -> None:
    """Defect 12: the window for a recent heartbeat was shorter than the time between two."""
    from workspace_adapter.heartbeat import Pace
    from workspace_adapter.shim.settings import ShimSettings

    assert ShimSettings.from_env({}).offline_after >= 3 * Pace(10.0).interval


async def test_heartbeats_that_come_together_are_written_together(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        tokens = {f"w{n}": await known(shim, f"w{n}") for n in range(20)}
        writes: list[int] = []
        beat = shim.store.beat

        async def counted(beats, **more):  # type: ignore[no-untyped-def]
            writes.append(len(beats))
            return await beat(beats, **more)

        shim.store.beat = counted  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            for name, token in tokens.items():
                tasks.start_soon(shim.beat, token, name)

    assert sum(writes) == 20
    assert len(writes) < 10


async def test_a_forged_heartbeat_takes_no_true_ones_place_and_hears_nothing(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        other = await known(shim, "v")
        secret = (await shim.workspace()).secret
        told: list[tuple[str, httpx.Response]] = []

        async def beat(bearer: str, active: int) -> None:
            told.append((bearer, await shim.beat(bearer, active_tasks=active)))

        async with anyio.create_task_group() as tasks:
            for bearer, active in ((other, 7), (token, 1), (other, 8), ("forged", 9)):
                tasks.start_soon(beat, bearer, active)

        assert {bearer: reply.status_code for bearer, reply in told} == {
            token: 200,
            other: 401,
            "forged": 401,
        }
        assert all((secret in reply.text) is (bearer == token) for bearer, reply in told)
        assert (await shim.workspace()).active_tasks == 1


async def test_two_lives_that_beat_at_once_hear_each_its_own_answer(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        await shim.register(boot="b2", bearer=token)
        told: list[tuple[str, int]] = []

        async def beat(boot: str) -> None:
            told.append((boot, (await shim.beat(token, boot=boot)).status_code))

        async with anyio.create_task_group() as tasks:
            for boot in ("b1", "b2", "b1", "b2"):
                tasks.start_soon(beat, boot)

        assert sorted(told) == [("b1", 409), ("b1", 409), ("b2", 200), ("b2", 200)]
        assert shim.heartbeats == {"ok": 2, "refused": 2}


async def test_nothing_is_lost_of_two_partial_heartbeats_that_come_at_once(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        partial = {"workspace_id": "w", "boot_id": "b1"}

        async def beat(more: dict[str, str]) -> None:
            assert (
                await taken(shim, partial | more, token)
                or (await shim.call("POST", "/registry/heartbeat", partial | more, bearer=token)).is_success
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat, {"runtime_state": "wedged"})
            tasks.start_soon(beat, {"current_task": "a turn"})

        workspace = await shim.workspace()
        assert workspace.report == {"runtime_state": "wedged", "current_task": "a turn"}
        assert workspace.status is Status.DEGRADED
        assert shim.heartbeats["ok"] == 2


async def test_a_heartbeat_that_a_stop_cuts_off_is_not_taken_for_a_replaced_lifes(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        cut = anyio.Event()

        async def never(beats, **more):  # type: ignore[no-untyped-def]
            cut.set()
            await anyio.sleep_forever()

        shim.store.beat = never  # type: ignore[method-assign]
        told: list[httpx.Response] = []

        async def beat() -> None:
            told.append(await shim.beat(token))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            await cut.wait()
            shim.stop()
        assert told[0].status_code == 503


async def test_heartbeats_that_wait_for_a_write_when_the_stop_comes_hear_of_it(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        told: list[int | bytes | None] = []

        async def never(beats, **more):  # type: ignore[no-untyped-def]
            await anyio.sleep_forever()

        async def beat(boot: str) -> None:
            told.append((await shim.beat(token, boot=boot)).status_code)

        shim.store.beat = never  # type: ignore[method-assign]
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(beat, "b1")
                await anyio.wait_all_tasks_blocked()  # in the write; what follows is to go into the next
                assert shim.take(json.dumps(PLAIN).encode(), f"Bearer {token}", told.append)
                tasks.start_soon(beat, "b1")
                tasks.start_soon(beat, "b2")
                await anyio.wait_all_tasks_blocked()
                shim.stop()
        assert sorted(told, key=str) == [503, 503, 503, None]


PLAIN = {"workspace_id": "w", "boot_id": "b1", "active_tasks": 2, "runtime_state": "", "state": "serving"}


async def taken(shim: FrontOfShim, body: object, bearer: str | None) -> bytes | None:
    """Send a heartbeat by the short cut; return its reply, ``None`` if it has to go the long way."""
    answers: list[bytes | None] = []
    told = anyio.Event()

    def answer(reply: bytes | None) -> None:
        answers.append(reply)
        told.set()

    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    if not shim.take(raw, bearer and f"Bearer {bearer}", answer):
        return None
    with anyio.fail_after(10):
        await told.wait()
    return answers[0]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"uptime_seconds": 1.5, "is_busy": None, "odd": {"a": [1]}},
        {"runtime_state": "wedged", "runtime_metadata": {"capabilities": {"session": True}}},
        {"current_task": "übermäßig", "error_rate": 1},
    ],
)
async def test_a_heartbeat_is_answered_and_kept_alike_by_the_short_cut(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        body = {**PLAIN, **more}
        raw = json.dumps(body, ensure_ascii=False).encode()
        reply = await shim.call("POST", "/registry/heartbeat", body, bearer=token)
        asked = await shim.workspace()
        assert await taken(shim, raw, token) == reply.content
        after = await shim.workspace()
        assert (after.report, after.status, after.active_tasks) == (asked.report, asked.status, 2)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"x"', b"\xff", b'{"workspace_id": "w", "active_tasks": 1e999}'),
        *({**PLAIN, "workspace_id": name} for name in (None, "", 1, "W", "nobody")),
        *({**PLAIN, "active_tasks": count} for count in (True, -1, 1.5, 1 << 31, 1 << 70)),
        {**PLAIN, "boot_id": "another"},
        {**PLAIN, "current_task": "\0"},
        {**PLAIN, "runtime_metadata": json.loads("{" + '"a":{' * 200 + "}" * 201)},
    ],
)
async def test_with_what_something_is_the_matter_goes_the_long_way(tmp_path: Path, body: object) -> None:
    async with front(tmp_path) as shim:
        assert await taken(shim, body, await known(shim)) is None


async def test_whose_heartbeat_it_is_counts_on_the_short_cut_too(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token, others = await known(shim), await known(shim, "v")
        for bearer in (None, "", "guessed", others):
            assert await taken(shim, PLAIN, bearer) is None
        assert await taken(shim, PLAIN, token) is not None


async def test_a_heartbeat_on_the_short_cut_that_a_stop_cuts_off_hears_of_it(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        replies: list[bytes | None] = [b"none yet"]

        async def never(beats: object, **more: object) -> dict[str, Any]:
            await anyio.sleep_forever()
            return {}

        shim.store.beat = never  # type: ignore[method-assign]
        assert shim.take(json.dumps(PLAIN).encode(), f"Bearer {token}", lambda reply: replies.append(reply))
        await anyio.wait_all_tasks_blocked()
        shim.stop()
        await anyio.wait_all_tasks_blocked()
        assert replies[1:] == [None]


async def test_heartbeats_that_wait_for_a_write_are_bounded(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        writes, held, beat = anyio.Event(), anyio.Event(), shim.store.beat

        async def slow(beats, **more):  # type: ignore[no-untyped-def]
            writes.set()
            await held.wait()
            return await beat(beats, **more)

        shim.store.beat = slow  # type: ignore[method-assign]
        codes: list[int] = []

        async def large() -> None:
            codes.append((await shim.beat(token, current_task="a" * 1_000_000)).status_code)

        async with anyio.create_task_group() as tasks:
            # The write under way is not to take some of what is to fill the next.
            tasks.start_soon(shim.beat, token)
            with anyio.fail_after(10):
                await writes.wait()
            for _ in range(40):
                tasks.start_soon(large)
            with anyio.fail_after(10):
                while 503 not in codes:
                    await anyio.sleep(0.01)
            held.set()
        assert set(codes) == {200, 503}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"workspace_id": 7}',
        b'{"workspace_id": "w", "active_tasks": -1}',
        b'{"workspace_id": "w", "active_tasks": 1e400}',
        b'{"workspace_id": "w", "error_rate": NaN}',
        b"[" * 100_000,
        b'{"workspace_id": "W\\u0000"}',
    ],
)
async def test_a_heartbeat_that_is_none_is_refused(tmp_path: Path, body: bytes) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        headers = {"authorization": f"Bearer {token}"}
        reply = await shim.client.post("/registry/heartbeat", content=body, headers=headers)

        assert reply.status_code == 400
        assert reply.json()["error"]
        assert (await shim.beat(token)).status_code == 200


async def test_text_that_no_database_takes_is_kept_as_far_as_it_can_be(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        token = await known(shim)
        body = b'{"workspace_id":"w","boot_id":"b1","current_task":"a\\u0000\\ud800\\ud83d\\ude00"}'
        headers = {"authorization": f"Bearer {token}"}
        reply = await shim.client.post("/registry/heartbeat", content=body, headers=headers)

        assert reply.status_code == 200
        assert (await shim.workspace()).report["current_task"] == "a\ufffd\ufffd😀"


# --- cards --------------------------------------------------------------------------------


async def test_a_workspace_replaces_its_own_card_and_no_other(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        tokens = {}
        for name in ("w", "v"):
            made = await shim.call("POST", "/workspaces", {"id": name}, bearer=ADMIN)
            tokens[name] = made.json()["auth_token"]
        card = {"workspace_id": "w", "agent_card": {"name": "New"}}

        assert (await shim.call("POST", "/registry/update-card", card, bearer=tokens["v"])).status_code == 401
        assert (await shim.call("POST", "/registry/update-card", card, bearer=tokens["w"])).status_code == 200
        assert (await shim.workspace()).card == {"name": "New"}


async def test_a_token_of_another_role_is_no_workspace(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        await shim.call("POST", "/workspaces", {"id": "w"}, bearer=ADMIN)
        made = await shim.call("POST", "/tokens", {"name": "ann"}, bearer=ADMIN)
        assert made.json()["role"] == Role.CALLER

        assert (await shim.register(bearer=made.json()["auth_token"])).status_code == 401
        assert (await shim.beat(ADMIN)).status_code == 401
