"""What workspaces report and say to people, over HTTP as stock runtimes ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.routing import Router

from tests.shim.store.test_contract import online
from workspace_adapter.shim.activity import Activities
from workspace_adapter.shim.front.edge import Edge
from workspace_adapter.shim.front.identity import Identity, digest
from workspace_adapter.shim.front.rates import Rates
from workspace_adapter.shim.store.contract import Role
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

ADMIN = "operators-token-of-the-tests"


async def nothing(_: str) -> None:
    """There are no delegations here."""


def client(store: SqliteStore, *routes: Any) -> httpx.AsyncClient:
    """Whoever calls the routes behind the edge."""
    identity = Identity(store.tokens, ADMIN)
    app = Edge(Router(list(routes)), identity=identity, rates=Rates(100_000))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shim")


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {ADMIN if name == 'operator' else f'token-of-{name}'}"}


async def known(store: SqliteStore, *names: str) -> None:
    """Have workspaces, each with a token."""
    for name in names:
        await online(store, name)
        token = digest(f"token-of-{name}")
        await store.add_token(token, role=Role.WORKSPACE, workspace_id=name)
    await store.add_token(digest("token-of-caller"), role=Role.CALLER, label="caller")


@pytest.fixture
async def http(sqlite: SqliteStore) -> AsyncIterator[httpx.AsyncClient]:
    await known(sqlite, "v", "w")
    async with client(sqlite, *Activities(sqlite, nothing).routes()) as opened:
        yield opened


async def logged(http: httpx.AsyncClient, *summaries: str, kind: str = "agent_log") -> None:
    for summary in summaries:
        reply = await http.post(
            "/workspaces/w/activity",
            json={"activity_type": kind, "summary": summary, "odd": 1},
            headers=as_("w"),
        )
        assert reply.status_code == 200
        assert reply.json()["status"] == "logged"


async def read(http: httpx.AsyncClient, query: str = "", status: int = 200) -> Any:
    reply = await http.get(f"/workspaces/w/activity{query}", headers=as_("w"))
    assert reply.status_code == status, reply.text
    return reply.json()


def summaries(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["summary"] for entry in entries]


async def test_a_report_is_read_again_as_it_was_sent(http: httpx.AsyncClient) -> None:
    sent = {
        "activity_type": "a2a_send",
        "method": "message/send",
        "summary": "asked v",
        "target_id": "v",
        "source_id": "w",
        "status": "ok",
        "duration_ms": 12,
        "request_body": {"a": [1]},
        "response_body": {"b": None},
        "metadata": {"c": "\0"},
    }
    assert (await http.post("/workspaces/w/activity", json=sent, headers=as_("w"))).status_code == 200
    (entry,) = await read(http)
    kept = {name: entry[name] for name in sent}
    assert kept == sent | {"metadata": {"c": "\ufffd"}}
    assert entry["workspace_id"] == "w"
    assert entry["error_detail"] is None
    assert entry["id"] == str(entry["seq"])
    assert entry["created_at"].endswith("Z")


async def test_who_follows_by_cursor_sees_each_entry_once_in_order(http: httpx.AsyncClient) -> None:
    await logged(http, "one", "two", "three", "four")
    latest = await read(http)
    assert summaries(latest) == ["four", "three", "two", "one"]
    first = latest[-1]["id"]
    assert summaries(await read(http, f"?since_id={first}")) == ["two", "three", "four"]
    page = await read(http, f"?since_id={first}&limit=2")
    assert summaries(page) == ["two", "three"]
    assert summaries(await read(http, f"?since_id={page[-1]['id']}&limit=2")) == ["four"]
    assert await read(http, f"?since_id={latest[0]['id']}") == []


@pytest.mark.parametrize("cursor", ["999999", "0", "nonsense", "-1", "9" * 40])
async def test_an_unknown_cursor_is_gone(http: httpx.AsyncClient, cursor: str) -> None:
    await logged(http, "one")
    assert "since_id" in (await read(http, f"?since_id={cursor}", status=410))["error"]


async def test_a_cursor_of_another_workspace_is_gone(http: httpx.AsyncClient, sqlite: SqliteStore) -> None:
    seq = await sqlite.log("v", "agent_log", {})
    await logged(http, "one")
    await read(http, f"?since_id={seq}", status=410)


async def test_activity_is_chosen_by_kind_source_and_time(
    http: httpx.AsyncClient, sqlite: SqliteStore
) -> None:
    await logged(http, "one")
    await logged(http, "two", kind="error")
    await sqlite.log("w", "a2a_receive", {"summary": "of a person"})
    await sqlite.log("w", "agent_log", {"summary": "long ago", "source_id": "w"}, now=86_400.0)
    assert summaries(await read(http, "?type=error")) == ["two"]
    assert summaries(await read(http, "?source=canvas")) == ["of a person"]
    assert summaries(await read(http, "?source=agent")) == ["long ago", "two", "one"]
    assert summaries(await read(http, "?since_secs=600")) == ["of a person", "two", "one"]
    assert summaries(await read(http, "?before_ts=1970-01-03T00:00:00Z")) == ["long ago"]
    assert summaries(await read(http, "?before_ts=1970-01-03T00:00:00+00:00")) == ["long ago"]
    assert len(await read(http, "?limit=100000")) == 4
    for query in ("?source=nobody", "?limit=0", "?limit=x", "?since_secs=-1", "?before_ts=yesterday"):
        assert query[1:5] in (await read(http, query, status=400))["error"]


async def test_what_was_acknowledged_is_never_taken_back(http: httpx.AsyncClient) -> None:
    for sent, told in ((5, 5), (3, 5), (8, 8)):
        reply = await http.post("/workspaces/w/activity/ack", json={"acked_seq": sent}, headers=as_("w"))
        assert reply.json() == {"last_acked_seq": told}
    for bad in (-1, True, "5", None, 1 << 63):
        reply = await http.post("/workspaces/w/activity/ack", json={"acked_seq": bad}, headers=as_("w"))
        assert reply.status_code == 400


async def test_what_is_said_to_people_can_be_read_by_whoever_shows_it(http: httpx.AsyncClient) -> None:
    message = {"message": "it is done", "attachments": [{"uri": "file:///a", "name": "a", "size": 3}]}
    reply = await http.post("/workspaces/w/notify", json=message, headers=as_("w"))
    assert (reply.status_code, reply.json()) == (200, {"status": "sent"})
    (entry,) = await read(http, "?type=notify")
    assert entry["response_body"] == message
    without_name = {"message": "m", "attachments": [{"uri": "u"}]}
    refused: list[object] = [{}, {"message": ""}, {"message": 1}, without_name, []]
    for bad in refused:
        reply = await http.post("/workspaces/w/notify", json=bad, headers=as_("w"))
        assert reply.status_code == 400, bad


async def test_a_workspace_reports_of_itself_alone(http: httpx.AsyncClient) -> None:
    said = {"activity_type": "agent_log", "message": "m", "acked_seq": 1}
    for path in ("activity", "activity/ack", "notify"):
        for who in ("v", "caller"):
            reply = await http.post(f"/workspaces/w/{path}", json=said, headers=as_(who))
            assert reply.status_code == 403, (path, who)
        reply = await http.post(f"/workspaces/w/{path}", json=said, headers=as_("operator"))
        assert reply.status_code == 200, path
    assert (await http.get("/workspaces/w/activity", headers=as_("v"))).status_code == 403
    assert (await http.get("/workspaces/w/activity")).status_code == 401
    reply = await http.post("/workspaces/w/activity", json=said | {"source_id": "v"}, headers=as_("w"))
    assert reply.status_code == 403
    for bad in ({}, {"activity_type": ""}, {"activity_type": "x" * 200}, "text"):
        reply = await http.post("/workspaces/w/activity", json=bad, headers=as_("w"))
        assert reply.status_code == 400
    for nobody in ("nobody", "No%00body"):
        reply = await http.post(f"/workspaces/{nobody}/activity", json=said, headers=as_("operator"))
        assert reply.status_code == 404
