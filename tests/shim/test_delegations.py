"""Tasks that workspaces give one another, over HTTP as stock runtimes give and read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from tests.shim.store.test_contract import settle
from tests.shim.test_activity import as_, client, known
from workspace_adapter.queueing import State, Verdict
from workspace_adapter.shim.activity import Activities
from workspace_adapter.shim.delegations import Delegations
from workspace_adapter.shim.store.contract import Answer, Enqueued, Message, Status
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

DONE = Verdict(state=State.COMPLETED, because="answered")
DEAD = Verdict(state=State.FAILED, because="answered 500; 3 failures, given up", strike=True)

MESSAGE = {"kind": "message", "role": "agent", "messageId": "m", "parts": [{"kind": "text", "text": "42"}]}
TASK = {
    "kind": "task",
    "status": {"state": "completed"},
    "artifacts": [{"parts": [{"kind": "text", "text": "4"}]}, {"parts": [{"kind": "text", "text": "2"}]}],
}
FAILED = {"kind": "task", "status": {"state": "failed", "message": MESSAGE}}


@pytest.fixture
async def http(sqlite: SqliteStore) -> AsyncIterator[httpx.AsyncClient]:
    await known(sqlite, "v", "w")
    delegations = Delegations(sqlite)
    activities = Activities(sqlite, delegations.catch_up)
    async with client(sqlite, *delegations.routes(), *activities.routes()) as opened:
        yield opened


async def post(http: httpx.AsyncClient, path: str, body: object, who: str = "v") -> httpx.Response:
    return await http.post(f"/workspaces/v/{path}", json=body, headers=as_(who))


async def delegated(http: httpx.AsyncClient, task: str = "compute", **more: object) -> str:
    reply = await post(http, "delegate", {"target_id": "w", "task": task, **more})
    assert reply.status_code == 202, reply.text
    told = reply.json()
    assert (told["status"], told["target_id"]) == ("delegated", "w")
    delegation_id: str = told["delegation_id"]
    return delegation_id


async def latest(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (await http.get("/workspaces/v/delegations", headers=as_("v"))).json()
    return entries


async def answered(
    store: SqliteStore, verdict: Verdict = DONE, body: object = None, status: int = 200
) -> None:
    """Have the target answer what was queued first."""
    lease = (await store.claim("w", "p", most=1))[0]
    answer = None if body is None else Answer(status=status, body=json.dumps(body).encode())
    assert await settle(store, lease, verdict, answer=answer)


async def test_a_task_is_queued_for_its_target_in_its_sources_name(
    http: httpx.AsyncClient, sqlite: SqliteStore
) -> None:
    delegation_id = await delegated(http)
    (lease,) = await sqlite.claim("w", "p")
    assert (lease.caller, lease.method) == ("v", "message/send")
    message = json.loads(lease.body)["params"]["message"]
    assert message["messageId"] == delegation_id
    assert message["metadata"]["delegation_id"] == delegation_id
    assert message["parts"] == [{"kind": "text", "text": "compute"}]


async def test_what_carries_a_trace_is_sent_along(http: httpx.AsyncClient, sqlite: SqliteStore) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = {"target_id": "w", "task": "t"}
    await http.post("/workspaces/v/delegate", json=body, headers=as_("v") | {"traceparent": trace})
    (lease,) = await sqlite.claim("w", "p")
    assert lease.headers["traceparent"] == trace


async def test_the_same_key_is_the_same_delegation(http: httpx.AsyncClient, sqlite: SqliteStore) -> None:
    body = {"target_id": "w", "task": "compute", "idempotency_key": "k"}
    first = await post(http, "delegate", body)
    again = await post(http, "delegate", body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {
        "delegation_id": first.json()["delegation_id"],
        "target_id": "w",
        "status": "queued",
        "idempotent_hit": True,
    }
    assert await sqlite.depth("w") == 1
    assert (await post(http, "delegate", body | {"task": "another"})).status_code == 409
    assert (await post(http, "delegate", body | {"idempotency_key": "l"})).status_code == 202
    assert await delegated(http) != await delegated(http)
    assert len(await latest(http)) == 4


async def test_the_same_key_at_once_is_one_delegation(http: httpx.AsyncClient, sqlite: SqliteStore) -> None:
    body = {"target_id": "w", "task": "compute", "idempotency_key": "k"}
    replies: list[httpx.Response] = []

    async def give() -> None:
        replies.append(await post(http, "delegate", body))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(give)
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [202]
    assert len({reply.json()["delegation_id"] for reply in replies}) == 1
    assert await sqlite.depth("w") == 1


@pytest.mark.parametrize("status", [Status.PROVISIONING, Status.OFFLINE, Status.PAUSED, Status.FAILED])
async def test_a_task_waits_for_a_target_that_is_not_there(
    http: httpx.AsyncClient, sqlite: SqliteStore, status: Status
) -> None:
    await sqlite.set_status("w", status, were=list(Status))
    await delegated(http)
    assert [one["status"] for one in await latest(http)] == ["queued"]
    await sqlite.set_status("w", Status.ONLINE, were=list(Status))
    await answered(sqlite, DONE, {"result": MESSAGE})
    assert [one["status"] for one in await latest(http)] == ["completed"]


async def test_whoever_hangs_up_takes_nothing_back(
    http: httpx.AsyncClient, sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = sqlite.enqueue

    async def left_meanwhile(message: Message, **more: Any) -> Enqueued:
        request.cancel()
        return await enqueue(message, **more)

    monkeypatch.setattr(sqlite, "enqueue", left_meanwhile)
    with anyio.CancelScope() as request:
        await post(http, "delegate", {"target_id": "w", "task": "compute"})
    assert request.cancel_called
    assert await sqlite.depth("w") == 1
    assert [one["status"] for one in await latest(http)] == ["queued"]


async def test_a_delegation_that_failed_is_tried_anew_with_its_key(
    http: httpx.AsyncClient, sqlite: SqliteStore
) -> None:
    body = {"target_id": "w", "task": "compute", "idempotency_key": "k"}
    await post(http, "delegate", body)
    await answered(sqlite, DEAD)
    assert (await latest(http))[0]["status"] == "failed"
    assert (await post(http, "delegate", body)).json()["status"] == "queued"
    await answered(sqlite, DONE, {"result": MESSAGE})
    assert (await latest(http))[0]["status"] == "completed"


async def test_a_crash_between_the_message_and_its_delegation_is_mended_by_the_key(
    http: httpx.AsyncClient, sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"target_id": "w", "task": "compute", "idempotency_key": "k"}

    async def cut(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(sqlite, "delegate", cut)
    with pytest.raises(ConnectionError):
        await post(http, "delegate", body)
    monkeypatch.undo()
    assert await latest(http) == []
    assert (await post(http, "delegate", body)).status_code == 202
    assert await sqlite.depth("w") == 1
    assert [one["status"] for one in await latest(http)] == ["queued"]


@pytest.mark.parametrize(
    ("verdict", "body", "code", "status", "preview", "error"),
    [
        (DONE, {"result": MESSAGE}, 200, "completed", "42", ""),
        (DONE, {"result": TASK}, 200, "completed", "4\n2", ""),
        (
            DONE,
            {"result": {"status": {"state": "completed", "message": MESSAGE}}},
            200,
            "completed",
            "42",
            "",
        ),
        (DONE, {"result": {"message": MESSAGE}}, 200, "completed", "42", ""),
        (DONE, {"result": FAILED}, 200, "failed", "42", "42"),
        (DONE, {"result": FAILED | {"artifacts": [MESSAGE | {"parts": []}]}}, 200, "failed", "42", "42"),
        (DONE, {"error": {"code": -32000, "message": "no"}}, 200, "failed", "no", "no"),
        (DONE, {"error": "too large"}, 413, "failed", "too large", "too large"),
        (DEAD, None, 200, "failed", "", DEAD.because),
        (DEAD, {"result": FAILED}, 200, "failed", "42", DEAD.because),
    ],
)
async def test_a_delegation_stands_as_its_item_does(
    http: httpx.AsyncClient,
    sqlite: SqliteStore,
    verdict: Verdict,
    body: object,
    code: int,
    status: str,
    preview: str,
    error: str,
) -> None:
    delegation_id = await delegated(http, task="compute it")
    await answered(sqlite, verdict, body, code)
    (told,) = await latest(http)
    assert (told["delegation_id"], told["source_id"], told["target_id"]) == (delegation_id, "v", "w")
    assert (told["summary"], told["direction"]) == ("compute it", "outbound")
    assert (told["status"], told["response_preview"], told["error"]) == (status, preview, error)


async def test_what_waits_and_what_is_under_way_is_told_so(
    http: httpx.AsyncClient, sqlite: SqliteStore
) -> None:
    await delegated(http)
    assert [one["status"] for one in await latest(http)] == ["queued"]
    await sqlite.claim("w", "p")
    assert [one["status"] for one in await latest(http)] == ["dispatched"]


async def test_expired_dropped_and_removed_are_told_as_failed(
    http: httpx.AsyncClient, sqlite: SqliteStore
) -> None:
    for task in ("one", "two"):
        await delegated(http, task=task)
    dropped, _ = await sqlite.items("w")
    await sqlite.drop(dropped.id, "poison")
    assert [(one["status"], one["error"]) for one in await latest(http)][1] == ("failed", "poison")
    await sqlite.set_status("w", Status.REMOVED, were=list(Status))
    assert {one["status"] for one in await latest(http)} == {"failed"}
    assert "removed" in (await latest(http))[0]["error"]


async def test_an_answer_of_any_shape_is_told(http: httpx.AsyncClient, sqlite: SqliteStore) -> None:
    bodies: list[object] = [[], {}, {"result": 5}, {"result": {"parts": "x"}}, {"error": []}, "text"]
    for body in bodies:
        await delegated(http)
        await answered(sqlite, DONE, body)
    assert all(one["status"] in ("completed", "failed") for one in await latest(http))


async def test_its_source_reads_in_its_activity_what_became_of_it_once(
    http: httpx.AsyncClient, sqlite: SqliteStore
) -> None:
    await delegated(http, task="first")
    await delegated(http, task="second")
    await answered(sqlite, DONE, {"result": MESSAGE})

    async def read(query: str = "") -> list[dict[str, Any]]:
        reply = await http.get(f"/workspaces/v/activity?type=delegation{query}", headers=as_("v"))
        entries: list[dict[str, Any]] = reply.json()
        return entries

    (entry,) = await read()
    assert (entry["method"], entry["status"], entry["target_id"]) == ("delegate_result", "completed", "w")
    assert entry["response_body"]["text"] == "42"
    assert entry["summary"] == "Delegation completed: first"
    assert await read() == [entry]
    await answered(sqlite, DEAD)
    (news,) = await read(f"&since_id={entry['id']}")
    assert (news["status"], news["error_detail"]) == ("failed", DEAD.because)
    assert await read(f"&since_id={news['id']}") == []


async def test_what_a_source_sent_by_itself_stands_as_it_says(http: httpx.AsyncClient) -> None:
    body = {"target_id": "w", "task": "compute", "delegation_id": "mine"}
    for _ in range(2):
        reply = await post(http, "delegations/record", body)
        assert (reply.status_code, reply.json()["delegation_id"]) == (202, "mine")
    assert [one["status"] for one in await latest(http)] == ["dispatched"]
    assert (await post(http, "delegations/record", body | {"target_id": "x"})).status_code == 409
    said = {"status": "failed", "error": "no\0pe", "response_preview": "half"}
    reply = await post(http, "delegations/mine/update", said)
    assert (reply.status_code, reply.json()["status"]) == (200, "failed")
    (told,) = await latest(http)
    assert (told["status"], told["error"], told["response_preview"]) == ("failed", "no\ufffdpe", "half")
    assert (await post(http, "delegations/other/update", said)).status_code == 404
    assert (await post(http, "delegations/%00/update", said)).status_code == 404
    assert (await post(http, "delegations/mine/update", {"status": "stuck"})).status_code == 400
    queued = await delegated(http)
    assert (await post(http, f"delegations/{queued}/update", said)).status_code == 404


async def test_who_may_delegate_what(http: httpx.AsyncClient, sqlite: SqliteStore) -> None:
    body = {"target_id": "w", "task": "t", "delegation_id": "d", "status": "completed"}
    for path in ("delegate", "delegations/record", "delegations/d/update"):
        for who in ("w", "caller"):
            assert (await post(http, path, body, who)).status_code == 403, path
    assert (await http.get("/workspaces/v/delegations", headers=as_("w"))).status_code == 403
    for wrong, status in (
        ({"target_id": "v"}, 400),
        ({"target_id": "Not an id"}, 400),
        ({"target_id": 5}, 400),
        ({"target_id": "nobody"}, 404),
        ({"task": ""}, 400),
        ({"task": ["t"]}, 400),
        ({"idempotency_key": 7}, 400),
    ):
        assert (await post(http, "delegate", body | wrong)).status_code == status, wrong
    assert await sqlite.depth("w") == 0
    assert (await post(http, "delegate", body, "operator")).status_code == 202
