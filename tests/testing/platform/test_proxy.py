"""What the platform makes of each answer of a workspace: its callers' view and its queue's."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from workspace_adapter.testing import FakePlatform, Times
from workspace_adapter.testing.platform.callers import Canvas, StockPeer, message
from workspace_adapter.testing.platform.queue import Item, ItemState

from .agent import HANG, RESET, Answer, answered, stage

PEER = {"X-Workspace-ID": "ws-peer"}


def ask(client: httpx.Client, text: str, **more: Any) -> httpx.Response:
    return client.post("/workspaces/ws-test/a2a", json=message(text, **more), headers=PEER)


def test_an_answer_is_relayed_and_what_came_is_regular(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, client):
        reply = ask(client, "<hi>", message_id="m")
        assert reply.json()["result"]["parts"][0]["text"] == "answer to <hi>"
        (_, path, raw, headers) = agent.heard[0]
        assert path == "/"
        assert b"\\u003chi\\u003e" in raw
        assert list(json.loads(raw)) == ["id", "jsonrpc", "method", "params"]
        assert {"authorization", "x-workspace-id", "accept"} & set(headers) == set()
        assert [(one.message_id, one.caller, one.status) for one in platform.deliveries] == [
            ("m", "ws-peer", 200)
        ]
        platform.assert_no_violations()


def test_a_platform_may_be_told_to_sign_its_messages(tmp_path: Path) -> None:
    with stage(tmp_path, always_auth=True) as (platform, agent, _, client):
        ask(client, "hi")
        assert agent.heard[0][3]["authorization"] == f"Bearer {platform.tokens.inbound_secret}"


CANNOT: dict[str, tuple[Answer, bool, int, dict[str, Any]]] = {
    "nothing": ((200, b""), True, 200, {"error": "agent returned empty response body"}),
    "an error": ((500, b'{"error":"boom","more":1}'), True, 500, {"error": "boom"}),
    "an error that is no string": ((400, b'{"error":{"code":1}}'), True, 400, {"error": "Bad Request"}),
    "a redirect": ((307, b""), True, 307, {"error": "Temporary Redirect"}),
    "502": ((502, b'{"error":"restarting","restarting":true}'), True, 502, {"error": "restarting"}),
    "a reset": (
        RESET,
        True,
        503,
        {
            "error": "workspace agent restarting - retry after a short backoff",
            "busy": True,
            "retry_after": 30,
        },
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_is_no_answer_is_passed_on_without_our_headers(tmp_path: Path, name: str) -> None:
    answer, held, status, body = CANNOT[name]
    with stage(tmp_path, held=held) as (platform, agent, _, client):
        agent.reply = lambda body: answer
        reply = ask(client, "hi")
        assert (reply.status_code, reply.json()) == (status, body)
        assert reply.headers.get("retry-after") != "7"
        assert platform.queue.items == []


def test_a_reset_is_queued_where_nobody_can_look_at_the_container(tmp_path: Path) -> None:
    with stage(tmp_path, held=False) as (platform, agent, _, client):
        agent.reply = lambda body: RESET
        reply = ask(client, "hi", message_id="m")
        assert (reply.status_code, reply.json()["queued"], reply.json()["queue_depth"]) == (202, True, 1)
        assert platform.queue.items[0].key == "m"


def test_nobody_there_is_502_where_nobody_can_look_and_503_where_it_runs(tmp_path: Path) -> None:
    for held, status in ((False, 502), (True, 503)):
        with stage(tmp_path, held=held) as (_, agent, _, client):
            agent.stop()
            agent.there = True
            assert ask(client, "hi").status_code == status


def test_silence_is_queued_but_every_beat_gives_it_as_long_again(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(idle=30), rate_limit=100_000) as (platform, agent, sidecar, client):
        capabilities = platform.heartbeats[-1]["runtime_metadata"]["capabilities"]
        agent.reply = lambda body: HANG
        replies: list[int] = []
        asking = Thread(target=lambda: replies.append(ask(client, "hi").status_code))
        asking.start()
        platform.until(lambda: agent.heard, "the message")
        began = time.monotonic()
        while time.monotonic() - began < 2 * platform.times.idle:
            sidecar.beat(runtime_metadata={"capabilities": capabilities})
        assert replies == []
        asking.join()
        assert replies == [202]


def test_a_container_that_is_gone_with_a_young_beat_has_its_message_queued(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(recent_heartbeat=1000)) as (platform, agent, _, client):
        agent.stop()
        assert ask(client, "hi").status_code == 202
        assert platform.restarts.cycles == 0


def test_a_container_that_is_gone_without_one_is_dead_and_started_again(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(recent_heartbeat=0)) as (platform, agent, _, client):
        agent.stop()
        reply = ask(client, "hi")
        assert (reply.status_code, reply.json()["restarting"]) == (503, True)
        platform.until(lambda: platform.restarts.cycles == 1, "the restart")


def test_a_workspace_without_an_address_has_its_messages_queued(tmp_path: Path) -> None:
    with stage(tmp_path, online=False) as (platform, _, _, client):
        assert ask(client, "hi").status_code == 202
        platform.row.status = platform.row.status.OFFLINE
        assert ask(client, "hi").json() == {"error": "workspace has no URL", "status": "offline"}
        platform.row.status = platform.row.status.HIBERNATED
        assert ask(client, "hi").json()["waking"] is True


def test_what_is_no_message_is_refused(tmp_path: Path) -> None:
    with stage(tmp_path) as (_, agent, _, client):
        wrong = (
            b"{",
            b"[]",
            b"[" * 900 + b"]" * 900,
            b'{"a":' * 900 + b"1" + b"}" * 900,
            b'{"method":"message/send","params":{"message":{"content":5}}}',
            b'{"method":"message/send","params":{"message":{"parts":5}}}',
        )
        for content in wrong:
            assert client.post("/workspaces/ws-test/a2a", content=content).status_code == 400
        assert client.post("/workspaces/ws-test/a2a", content=b" " * (16 << 20) + b"{}").status_code == 413
        assert agent.heard == []


def test_a_forged_caller_is_refused(tmp_path: Path) -> None:
    with stage(tmp_path) as (_, _, _, client):
        forged = {"X-Workspace-ID": "system:restart-context"}
        assert client.post("/workspaces/ws-test/a2a", json={}, headers=forged).status_code == 403


async def test_the_canvas_hears_queued_after_its_budget_and_sees_the_answer_later(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(canvas=10)) as (platform, agent, _, _):
        agent.reply = lambda body: answered("late")
        async with httpx.AsyncClient(base_url=platform.url) as page:
            canvas = Canvas(page, "ws-test")
            assert (await canvas.send("hi")).status_code == 200
            assert agent.heard[0][2].count(b'"contextId":"canvas-ws-test"') == 1
            agent.reply = lambda body: HANG
            queued = await canvas.send("hi", message_id="slow")
            assert queued.json() == {
                "status": "queued",
                "delivery_mode": "push-async",
                "method": "message/send",
            }
            peer = StockPeer(page, "ws-test", peer_id="ws-peer")
            agent.reply = lambda body: answered("to a peer")
            assert peer.read((await peer.send("hi")).json()) == "to a peer"


# --- the queue ----------------------------------------------------------------------


def queued(platform: FakePlatform, client: httpx.Client, text: str = "hi") -> Item:
    """Have one message in the queue, as a workspace without an address has."""
    url, status = platform.row.url, platform.row.status
    platform.row.url, platform.row.status = "", status.PROVISIONING
    assert ask(client, text, message_id=f"m-{text}").status_code == 202
    platform.row.url, platform.row.status = url, status
    return platform.queue.items[-1]


FATES: dict[str, tuple[Answer, ItemState, bool]] = {
    "an answer": (answered("yes"), ItemState.COMPLETED, False),
    "202, by which it is lost": ((202, b"{}"), ItemState.COMPLETED, True),
    "no JSON, by which it is stranded": ((200, b"<html>"), ItemState.DISPATCHED, False),
    "errors, five in one go": ((500, b'{"error":"boom"}'), ItemState.FAILED, False),
    "nothing, five in one go": ((200, b""), ItemState.FAILED, False),
}


@pytest.mark.parametrize("name", FATES)
def test_a_queued_message_ends_as_the_answer_wants(tmp_path: Path, name: str) -> None:
    answer, state, lost = FATES[name]
    with stage(tmp_path, held=False, max_concurrent=5) as (platform, agent, sidecar, client):
        agent.reply = lambda body: answer
        item = queued(platform, client)
        sidecar.beat()
        platform.until(lambda: item.state is state and (agent.heard or False), name)
        assert item.lost is lost
        shown = client.get(f"/workspaces/ws-test/a2a/queue/{item.id}").json()
        assert shown["status"] == state
        assert ("response_body" in shown) == (state is ItemState.COMPLETED)


def test_an_unknown_item_is_404(tmp_path: Path) -> None:
    with stage(tmp_path) as (_, _, _, client):
        reply = client.get("/workspaces/ws-test/a2a/queue/none")
        assert (reply.status_code, reply.json()["retryable"]) == (404, True)


def test_an_item_whose_workspace_restarts_waits_and_is_dispatched_again(tmp_path: Path) -> None:
    with stage(tmp_path, held=False, times=Times(recent_heartbeat=1000)) as (
        platform,
        agent,
        sidecar,
        client,
    ):
        agent.reply = lambda body: (502, b'{"error":"restarting"}')
        item = queued(platform, client)
        sidecar.beat()
        platform.until(lambda: item.next_attempt_at is not None, "the retry")
        assert (item.state, item.attempts) == (ItemState.QUEUED, 0)
        agent.reply = lambda body: answered("yes")
        platform.until(lambda: sidecar.beat() and item.state is ItemState.COMPLETED, "the answer")


def test_an_item_that_is_busy_again_conflicts_with_itself_and_is_lost(tmp_path: Path) -> None:
    with stage(tmp_path, held=False) as (platform, agent, sidecar, client):
        agent.reply = lambda body: RESET
        item = queued(platform, client)
        sidecar.beat()
        platform.until(lambda: item.lost, "the loss")
        assert platform.queue.items == [item]


def test_a_beat_without_room_dispatches_nothing_and_the_sweeper_does_not_ask(tmp_path: Path) -> None:
    with stage(tmp_path, held=False) as (platform, _, sidecar, client):
        item = queued(platform, client)
        sidecar.beat(active_tasks=1, is_busy=True)
        sidecar.beat(active_tasks=1001, is_busy=True)
        assert item.state is ItemState.QUEUED
    with stage(tmp_path, held=True) as (platform, _, sidecar, client):
        sidecar.beat(active_tasks=1, is_busy=True)
        item = queued(platform, client)
        platform.until(lambda: item.state is ItemState.COMPLETED, "the sweep")


# --- delegations --------------------------------------------------------------------


def delegate(client: httpx.Client, task: str, **more: Any) -> httpx.Response:
    return client.post("/workspaces/ws-peer/delegate", json={"target_id": "ws-test", "task": task, **more})


def test_a_delegation_carries_its_own_id_and_is_answered(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, client):
        told = delegate(client, "dig", idempotency_key="k")
        assert (told.status_code, told.json()["status"]) == (202, "delegated")
        again = delegate(client, "dig", idempotency_key="k").json()
        assert (again["delegation_id"], again["idempotent_hit"]) == (told.json()["delegation_id"], True)
        platform.until(lambda: platform.delegations[0].answer == "answer to dig", "the answer")
        sent = json.loads(agent.heard[0][2])["params"]["message"]
        assert sent["messageId"] == sent["metadata"]["delegation_id"] == told.json()["delegation_id"]
        listed = client.get("/workspaces/ws-peer/delegations").json()
        assert [one["status"] for one in listed] == ["completed"]


def test_a_delegation_is_sent_once_more_on_502_as_the_same_message(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, client):
        agent.reply = lambda body: (502, b'{"error":"restarting"}')
        delegate(client, "dig")
        platform.until(lambda: platform.delegations[0].state == "failed", "the end")
        first, second = agent.heard
        assert first[2] == second[2]
        assert second[0] - first[0] >= 0.08


def test_a_delegation_is_not_sent_again_where_it_may_have_been_delivered(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, client):
        agent.reply = lambda body: RESET
        delegate(client, "dig")
        platform.until(lambda: platform.delegations[0].state == "failed", "the end")
        assert not platform.delegations[0].retried


def test_a_queued_delegation_is_stitched_when_the_queue_has_its_answer(tmp_path: Path) -> None:
    with stage(tmp_path, online=False) as (platform, agent, sidecar, client):
        delegate(client, "dig")
        platform.until(lambda: platform.delegations[0].state == "queued", "the queue")
        sidecar.register(url=agent.url)
        sidecar.beat()
        platform.until(lambda: platform.delegations[0].answer == "answer to dig", "the answer")
