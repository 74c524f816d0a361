from __future__ import annotations

import json
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from workspace_adapter import __version__
from workspace_adapter.sidecar.door import edge
from workspace_adapter.sidecar.door.bearer import Bearer, judge
from workspace_adapter.sidecar.door.refusal import restarting
from workspace_adapter.sidecar.secret_file import Secrets

from .stage import (
    DEADLINE,
    SECRET,
    Stage,
    know_secret,
    listening,
    message,
    message10,
    settings_in,
    stage,
)

JSON = {"Content-Type": "application/json"}
NEEDLE = "needle-in-the-message"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, body_limit_bytes=4096) as made:
        yield made


def body(method: Any = "message/send", **changes: Any) -> dict[str, Any]:
    made = {
        "jsonrpc": "2.0",
        "id": "r-1",
        "method": method,
        "params": {"message": message(NEEDLE)},
        **changes,
    }
    return {key: value for key, value in made.items() if value is not ...}


def nested(levels: int) -> Any:
    value: Any = NEEDLE
    for _ in range(levels):
        value = [value]
    return value


# --- bad input gets a clear error and changes nothing -------------------------------------

BAD: list[tuple[str, bytes | dict[str, Any], dict[str, str], int, int, str | None, str]] = [
    ("not JSON", b"{" + NEEDLE.encode(), JSON, 200, -32700, None, "not JSON"),
    ("not UTF-8", b'{"\xff": 1}', JSON, 200, -32700, None, "not JSON"),
    ("no number", b'{"id": NaN}', JSON, 200, -32700, None, "not JSON"),
    ("nothing", b"", JSON, 200, -32700, None, "not JSON"),
    (
        "too large",
        b'"' + NEEDLE.encode() * 300 + b'"',
        JSON,
        413,
        -32600,
        None,
        "WORKSPACE_BODY_LIMIT_BYTES=4096",
    ),
    (
        "wrong type",
        json.dumps(body()).encode(),
        {"Content-Type": "text/plain"},
        415,
        -32005,
        None,
        "Content-Type",
    ),
    ("no type", json.dumps(body()).encode(), {}, 415, -32005, None, "Content-Type"),
    ("too deep", body(params=nested(64)), JSON, 200, -32600, None, "64 levels"),
    ("much too deep", b"[" * 1500 + b"]" * 1500, JSON, 200, -32600, None, "64 levels"),
    ("batch", json.dumps([body()]).encode(), JSON, 200, -32600, None, "batches"),
    ("no object", b'"x"', JSON, 200, -32600, None, "JSON-RPC 2.0"),
    ("no version", body(jsonrpc=...), JSON, 200, -32600, "r-1", "JSON-RPC 2.0"),
    ("old version", body(jsonrpc="1.0"), JSON, 200, -32600, "r-1", "JSON-RPC 2.0"),
    ("no id", body(id=...), JSON, 200, -32600, None, "id must"),
    ("null id", body(id=None), JSON, 200, -32600, None, "id must"),
    ("odd id", body(id={"a": 1}), JSON, 200, -32600, None, "id must"),
    ("half an id", body(id="\ud800"), JSON, 200, -32600, None, "id must"),
    ("boolean id", body(id=True), JSON, 200, -32600, None, "id must"),
    ("no method", body(method=...), JSON, 200, -32600, "r-1", "method is required"),
    ("empty method", body(method=""), JSON, 200, -32600, "r-1", "method is required"),
    ("odd method", body(method={"a": 1}), JSON, 200, -32600, "r-1", "method is required"),
    ("unknown method", body(method=NEEDLE), JSON, 200, -32601, "r-1", "no such method"),
    ("params no object", body(params=[NEEDLE]), JSON, 200, -32602, "r-1", "params must be an object"),
    ("no message", body(params={}), JSON, 200, -32602, "r-1", "params.message"),
    ("message no object", body(params={"message": NEEDLE}), JSON, 200, -32602, "r-1", "params.message"),
    (
        "no messageId",
        body(params={"message": message(NEEDLE, messageId=...)}),
        JSON,
        200,
        -32602,
        "r-1",
        "messageId",
    ),
    ("no parts", body(params={"message": message("", parts=[])}), JSON, 200, -32602, "r-1", "parts"),
    (
        "a part nobody can use",
        body(params={"message": message("", parts=[{"kind": NEEDLE, "x": NEEDLE}])}),
        JSON,
        200,
        -32602,
        "r-1",
        "message.parts[0]",
    ),
    (
        "a URL",
        body(
            params={"message": message("", parts=[{"kind": "file", "file": {"uri": f"http://x/{NEEDLE}"}}])}
        ),
        JSON,
        200,
        -32602,
        "r-1",
        "never fetched",
    ),
    (
        "a file elsewhere",
        body(params={"message": message("", parts=[{"kind": "file", "file": {"uri": f"/etc/{NEEDLE}"}}])}),
        JSON,
        200,
        -32602,
        "r-1",
        "does not exist",
    ),
    (
        "no base64",
        body(params={"message": message("", parts=[{"kind": "file", "file": {"bytes": f"!{NEEDLE}"}}])}),
        JSON,
        200,
        -32602,
        "r-1",
        "base64",
    ),
    (
        "odd configuration",
        body(params={"message": message(NEEDLE), "configuration": {"blocking": {NEEDLE: 1}}}),
        JSON,
        200,
        -32602,
        "r-1",
        "params do not fit",
    ),
    (
        "odd configuration in 1.0",
        body("SendMessage", params={"message": message10(NEEDLE), "configuration": NEEDLE}),
        {**JSON, "A2A-Version": "1.0"},
        200,
        -32602,
        "r-1",
        "params.configuration",
    ),
    (
        "odd task id",
        body("tasks/get", params={"id": [NEEDLE]}),
        JSON,
        200,
        -32602,
        "r-1",
        "params do not fit",
    ),
    ("no task id", body("tasks/cancel", params={NEEDLE: 1}), JSON, 200, -32602, "r-1", "params do not fit"),
    ("unknown task", body("tasks/get", params={"id": NEEDLE}), JSON, 200, -32001, "r-1", "no such task"),
    (
        "task not there",
        body(params={"message": message(NEEDLE, taskId="t")}),
        JSON,
        200,
        -32001,
        "r-1",
        "no such task",
    ),
    ("1.0 without saying so", body("SendMessage"), JSON, 200, -32009, "r-1", "A2A-Version"),
    ("0.3 under 1.0", body(), {**JSON, "A2A-Version": "1.0"}, 200, -32009, "r-1", "A2A-Version"),
    (
        "a version nobody knows",
        body("SendMessage"),
        {**JSON, "A2A-Version": "99.0"},
        200,
        -32009,
        "r-1",
        "A2A-Version",
    ),
    ("0.3 has no list", body("tasks/list", params={}), JSON, 200, -32601, "r-1", "no such method"),
]


@pytest.mark.parametrize(
    ("sent", "headers", "status", "code", "request_id", "named"),
    [pytest.param(*row[1:], id=row[0]) for row in BAD],
)
async def test_bad_input_gets_the_protocols_own_code_and_leaves_no_trace(
    door: Stage,
    logged: StringIO,
    sent: bytes | dict[str, Any],
    headers: dict[str, str],
    status: int,
    code: int,
    request_id: str | None,
    named: str,
) -> None:
    content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    response = await door.http.post("/", content=content, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", request_id, code)
    assert named in answer["error"]["message"]
    assert NEEDLE not in response.text
    assert door.journalled() == []
    assert door.sessions.submitted == []
    assert not (door.root / "state" / "uploads").exists()
    assert "refused" in logged.getvalue()
    assert NEEDLE not in logged.getvalue()


async def test_a_streaming_call_is_refused_as_any_other(door: Stage) -> None:
    for method, params in (("message/stream", {}), ("tasks/resubscribe", {"id": "t"})):
        response = await door.rpc(method, params)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["code"] in (-32602, -32001)


async def test_a_type_with_a_charset_is_json_too(door: Stage) -> None:
    for content_type in ("application/json; charset=utf-8", "Application/JSON", "application/a2a+json"):
        response = await door.http.post(
            "/", json=body("tasks/get", params={"id": "t"}), headers={"Content-Type": content_type}
        )
        assert response.json()["error"]["code"] == -32001


async def test_the_deepest_body_allowed_is_read(door: Stage) -> None:
    sent = body("tasks/get", params={"id": "t", "metadata": nested(62)})
    response = await door.http.post("/", json=sent)
    assert response.json()["error"]["code"] in (-32001, -32602)
    assert "levels" not in response.json()["error"]["message"]


async def test_large_numbers_for_ids_come_back_as_they_were(door: Stage) -> None:
    response = await door.http.post("/", json=body("tasks/get", params={"id": "t"}, id=2**60 + 1))
    assert response.json()["id"] == 2**60 + 1


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in chunks"])
async def test_a_body_too_large_is_refused_over_a_real_connection(door: Stage, declared: bool) -> None:
    large = b'"' + b"x" * 300_000 + b'"'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    async with listening(door.app) as url, httpx.AsyncClient(timeout=DEADLINE) as client:
        response = await client.post(url, content=large if declared else chunks(), headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == -32600
        following = await client.post(url, json=body("tasks/get", params={"id": "t"}))
        assert following.json()["error"]["code"] == -32001
    assert door.journalled() == []


async def test_a_caller_that_leaves_before_its_body_is_whole_changes_nothing(door: Stage) -> None:
    async with listening(door.app) as url:
        host, port = httpx.URL(url).host, httpx.URL(url).port
        stream = await anyio.connect_tcp(host, port or 0)
        async with stream:
            head = (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
            )
            await stream.send(head.encode() + b'{"jsonrpc"')
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
    assert door.journalled() == []


async def test_what_is_not_there_is_a_plain_404(door: Stage) -> None:
    for path in ("/nope", "/internally", "/transcripts"):
        assert (await door.http.get(path)).status_code == 404
        assert (await door.http.post(path, json={})).status_code == 404
    assert (await door.http.get("/")).status_code == 405


async def test_plain_http_is_refused_in_its_own_form(door: Stage) -> None:
    v10 = {"A2A-Version": "1.0"}
    for content, headers, status, reason in (
        (b"{", {**JSON, **v10}, 400, "INVALID_REQUEST"),
        (b"x" * 5000, {**JSON, **v10}, 413, "INVALID_REQUEST"),
        (b"{}", {"Content-Type": "text/plain", **v10}, 415, "CONTENT_TYPE_NOT_SUPPORTED"),
        (b"[]", {**JSON, **v10}, 400, "INVALID_REQUEST"),
        (b"{}", {**JSON, **v10}, 400, "INVALID_PARAMS"),
        (b"{}", JSON, 400, "VERSION_NOT_SUPPORTED"),
        (b"", v10, 400, "INVALID_PARAMS"),
        (b'{"message": {}, "configuration": "needle"}', {**JSON, **v10}, 400, "INVALID_PARAMS"),
    ):
        response = await door.http.post("/message:send", content=content, headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, status), content
        assert error["details"][0]["reason"] == reason
        assert "needle" not in response.text
    response = await door.http.get("/tasks?pageSize=many", headers=v10)
    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["reason"] == "INVALID_PARAMS"


# --- the bearer ---------------------------------------------------------------------------

NONE: dict[str, str] = {}
WRONG = {"Authorization": "Bearer wrong"}
RIGHT = {"Authorization": f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("known", "require", "headers", "heard"),
    [
        (True, False, NONE, True),
        (True, False, WRONG, False),
        (True, False, RIGHT, True),
        (True, True, NONE, False),
        (True, True, WRONG, False),
        (True, True, RIGHT, True),
        (False, False, NONE, True),
        (False, False, WRONG, True),  # there is nothing to compare it with
        (False, True, NONE, False),
        (False, True, WRONG, False),
        (True, False, {"Authorization": f"Basic {SECRET}"}, False),
        (True, False, {"Authorization": SECRET}, False),
        (True, False, {"Authorization": ""}, False),
        (True, False, {"authorization": f"bearer  {SECRET} "}, True),
    ],
)
async def test_who_is_heard(
    tmp_path: Path, known: bool, require: bool, headers: dict[str, str], heard: bool
) -> None:
    if known:
        know_secret(tmp_path)
    async with stage(tmp_path, require_auth=require) as door:
        calls = [
            door.rpc("tasks/get", {"id": "t"}, headers=headers),
            door.http.get("/tasks", headers={"A2A-Version": "1.0", **headers}),
            door.http.post("/signals/restart_pending", json=SIGNAL, headers=headers),
        ]
        for call in calls:
            response = await call
            assert (response.status_code != 401) is heard
            if not heard:
                assert response.headers["www-authenticate"] == "Bearer"
                assert isinstance(response.json()["error"], str)
                assert SECRET not in response.text
        assert bool(door.drainer.heard) is heard
        for path in ("/healthz", "/readyz", "/.well-known/agent-card.json"):
            assert (await door.http.get(path, headers=WRONG)).status_code == 200


@pytest.mark.parametrize("path", ["/status", "/metrics"])
async def test_what_operators_see_is_shown_to_the_bearer_alone(tmp_path: Path, path: str) -> None:
    async with stage(tmp_path) as door:
        unknown = await door.http.get(path, headers=RIGHT)
        assert (unknown.status_code, "is missing" in unknown.text) == (401, True)
        know_secret(tmp_path)
        for headers in (NONE, WRONG):
            refused = await door.http.get(path, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await door.http.get(path, headers=RIGHT)).status_code == 200
        assert (await door.http.post(path, headers=RIGHT, json={})).status_code == 405


async def test_metrics_without_their_extra_say_what_to_install(door: Stage, tmp_path: Path) -> None:
    bearer, door.metrics = know_secret(tmp_path), None
    refused = await door.http.get("/metrics", headers=bearer)
    assert (refused.status_code, refused.json()) == (501, {"error": "install the extra"})


async def test_a_refused_caller_is_not_even_read(tmp_path: Path) -> None:
    know_secret(tmp_path)
    async with stage(tmp_path) as door:
        response = await door.http.post("/", content=b"not json", headers=WRONG)
        assert response.status_code == 401
        assert door.journalled() == []


async def test_a_secret_that_is_replaced_counts_at_once(tmp_path: Path) -> None:
    know_secret(tmp_path)
    file = tmp_path / "configs" / ".platform_inbound_secret"
    secret = Secrets(tmp_path / "configs").inbound
    assert judge(RIGHT["Authorization"], secret) is Bearer.RIGHT
    replacement = file.with_name("new")
    replacement.write_text("another")
    replacement.replace(file)
    assert judge(RIGHT["Authorization"], secret) is Bearer.WRONG
    assert judge("Bearer another", secret) is Bearer.RIGHT
    file.unlink()
    assert judge("Bearer another", secret) is Bearer.UNKNOWN
    file.write_text("\n")
    assert judge("Bearer ", secret) is Bearer.UNKNOWN


async def test_a_bearer_is_judged_by_the_secret_of_the_moment(tmp_path: Path) -> None:
    """A platform makes a new secret at each provision, and hands it out in life."""
    file = tmp_path / "configs" / ".platform_inbound_secret"
    file.parent.mkdir(exist_ok=True)
    async with stage(tmp_path, require_auth=True) as door:

        async def heard(secret: str) -> bool:
            bearer = {"Authorization": f"Bearer {secret}"}
            return (await door.rpc("tasks/get", {"id": "t"}, headers=bearer)).status_code != 401

        assert not await heard("one")
        for secret, before in (("one", "none"), ("two", "one")):
            Secrets(file.parent).inbound.keep(secret)
            assert await heard(secret)
            assert not await heard(before)
        file.unlink()
        assert not await heard("two")


async def test_a_caller_is_believed_only_with_the_bearer(tmp_path: Path) -> None:
    bearer = know_secret(tmp_path)
    claim = {"X-Workspace-ID": "ada"}
    async with stage(tmp_path) as door, anyio.create_task_group() as tasks:

        def send(message_id: str, headers: dict[str, str]) -> None:
            sent = {"message": message("hi", messageId=message_id, contextId=message_id)}
            tasks.start_soon(lambda: door.rpc("message/send", sent, headers=headers))

        send("m-1", claim)
        assert (await door.taken(1)).caller is None
        send("m-2", {**claim, **bearer})
        assert (await door.taken(2)).caller == "ada"
        send("m-3", bearer)
        assert (await door.taken(3)).caller is None
        tasks.cancel_scope.cancel()


# --- the restart signal -------------------------------------------------------------------

SIGNAL = {
    "jsonrpc": "2.0",
    "method": "signals/restart_pending",
    "params": {"drain_seconds": 20, "workspace_id": "ws-1"},
    "id": None,
}
PLATFORM = {"X-Restart-Signal": "true"}


async def test_the_platforms_signal_is_acknowledged(door: Stage) -> None:
    response = await door.http.post("/signals/restart_pending", json=SIGNAL, headers=PLATFORM)
    assert response.status_code == 200
    assert response.json() == {
        "jsonrpc": "2.0",
        "id": None,
        "result": {
            "acknowledged": True,
            "drained": False,
            "finished": 1,
            "parked": ["p"],
            "held": [],
            "running": ["r"],
            "took_ms": 250,
        },
    }
    ((signal, signed),) = door.drainer.heard
    assert (signal.patience, signal.workspace_id, signed) == (9.0, "ws-1", False)


async def test_a_signed_signal_is_known_as_such(tmp_path: Path) -> None:
    bearer = know_secret(tmp_path)
    async with stage(tmp_path) as door:
        await door.http.post("/signals/restart_pending", json={**SIGNAL, "id": "s-1"}, headers=bearer)
        assert [signed for _, signed in door.drainer.heard] == [True]


@pytest.mark.parametrize(
    ("sent", "headers", "status", "code"),
    [
        (b"", JSON, 400, -32700),
        (b"{", JSON, 400, -32700),
        (b"{}", {"Content-Type": "text/plain"}, 415, -32005),
        (b"{}", JSON, 400, -32600),
        (b"[]", JSON, 400, -32600),
        (b"[" * 1500 + b"]" * 1500, JSON, 400, -32600),
        (b"x" * 5000, JSON, 413, -32600),
        (json.dumps({**SIGNAL, "method": "message/send"}).encode(), JSON, 400, -32600),
        (json.dumps({**SIGNAL, "params": {"drain_seconds": "soon"}}).encode(), JSON, 400, -32600),
        (json.dumps({**SIGNAL, "params": {"workspace_id": "ws-2"}}).encode(), JSON, 409, -32602),
    ],
)
async def test_a_malformed_signal_drains_nothing(
    door: Stage, sent: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    response = await door.http.post("/signals/restart_pending", content=sent, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert door.drainer.heard == []


async def test_an_unsigned_signal_that_comes_too_soon_is_told_when_to_come(door: Stage) -> None:
    door.drainer.too_soon = 11.2
    response = await door.http.post("/signals/restart_pending", json=SIGNAL)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "12"
    assert response.json()["retry_after"] == 12


# --- health, status, card -----------------------------------------------------------------


async def test_health_is_always_there_and_readiness_says_why_not(door: Stage) -> None:
    assert (await door.http.get("/healthz")).json() == {"status": "ok", "boot_id": "boot-1"}
    assert (await door.http.get("/readyz")).status_code == 200
    door.ready = (False, "the journal cannot be written")
    response = await door.http.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"error": "the journal cannot be written"}
    assert (await door.http.get("/healthz")).status_code == 200


async def test_status_is_shown_to_who_has_the_bearer(tmp_path: Path) -> None:
    async with stage(tmp_path) as door:
        for headers in (NONE, RIGHT):
            response = await door.http.get("/status", headers=headers)
            assert response.status_code == 401
        assert ".platform_inbound_secret" in response.json()["error"]
        know_secret(tmp_path)
        assert (await door.http.get("/status")).status_code == 401
        assert (await door.http.get("/status", headers=RIGHT)).json() == {"state": "serving"}


@pytest.mark.parametrize("require_auth", [False, True])
async def test_the_platform_is_told_whether_bearers_can_be_wanted(tmp_path: Path, require_auth: bool) -> None:
    async with stage(tmp_path, require_auth=require_auth) as door:
        path = "/internal/a2a-auth-status"
        assert (await door.http.get(path, headers=RIGHT)).status_code == 401
        know_secret(tmp_path)
        for headers in (NONE, WRONG):
            response = await door.http.get(path, headers=headers)
            assert response.status_code == 401
            assert isinstance(response.json()["error"], str)
        for asked in (path, f"http://workspace/{path}", f"{path}/"):
            assert (await door.http.get(asked, headers=RIGHT)).json() == {
                "require_auth": require_auth,
                "inbound_secret_present": True,
                "ready_to_enforce": True,
                "runtime_version": __version__,
            }


async def test_a_transcript_is_refused_to_who_lacks_the_workspaces_token(tmp_path: Path) -> None:
    """Also while there is none yet, and to who has the other secret."""
    know_secret(tmp_path)
    token = {"Authorization": "Bearer the-token"}
    async with stage(tmp_path) as door:
        for headers in (NONE, RIGHT, WRONG, token):
            assert (await door.http.get("/transcript", headers=headers)).status_code == 401
        (tmp_path / "configs" / ".auth_token").write_text("the-token\n")
        for headers in (NONE, RIGHT, WRONG, {"Authorization": "Basic the-token"}):
            response = await door.http.get("/transcript", headers=headers)
            assert response.status_code == 401
            assert isinstance(response.json()["error"], str)
        response = await door.http.get("/transcript?since=0&limit=100", headers=token)
        assert response.json() == {
            "runtime": "played",
            "supported": False,
            "lines": [],
            "cursor": 0,
            "more": False,
            "source": None,
        }


@pytest.mark.parametrize(
    "path", ["/internal", "/internal/", "/internal/schedules", "/internal/daemons/reload"]
)
async def test_what_only_the_platforms_own_runtime_has_is_not_here(door: Stage, path: str) -> None:
    for method in ("GET", "POST", "PATCH", "DELETE"):
        response = await door.http.request(method, path, content=b"{}", headers=RIGHT)
        assert response.status_code == 404
        assert isinstance(response.json()["error"], str)


async def test_an_upload_to_what_is_not_here_is_not_read(door: Stage) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    path = "/internal/chat/uploads/ingest"
    response = await door.http.post(path, content=chunks(), headers={"Content-Type": "multipart/form-data"})
    assert response.status_code == 404


async def test_a_slash_too_many_changes_nothing(door: Stage) -> None:
    assert (await door.http.get("/healthz/")).status_code == 200
    signal = await door.http.post("http://workspace//signals/restart_pending/", json=SIGNAL, headers=PLATFORM)
    assert signal.json()["result"]["acknowledged"] is True


async def test_the_card_is_fetched_once_while_it_stays_the_same(door: Stage) -> None:
    response = await door.http.get("/.well-known/agent-card.json")
    assert response.json()["name"] == "ws-1"
    assert response.headers["cache-control"] == "public, max-age=60"
    again = await door.http.get(
        "/.well-known/agent-card.json", headers={"If-None-Match": f'"x", {response.headers["etag"]}'}
    )
    assert again.status_code == 304
    assert again.content == b""


# --- what the routes say, and what leaves -------------------------------------------------


class Routes:
    """Stands where the routes stand: sends what a test says, and marks what it says.

    Marks are made when the chunk of that number is due.
    """

    def __init__(self, *chunks: bytes, due: int = 1, reached: bool = True, **marks: Any) -> None:
        self.chunks = chunks
        self.due = due
        self.marks = {"reached": reached, **marks}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.wait_all_tasks_blocked()  # an answer takes its time
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, chunk in enumerate(self.chunks, start=1):
            if number == self.due:
                for name, value in self.marks.items():
                    setattr(scope[edge.KEY], name, value)
            more = number < len(self.chunks)
            await send({"type": "http.response.body", "body": chunk, "more_body": more})


class Connection:
    """One request to an edge, over no network."""

    def __init__(self, routes: Routes) -> None:
        self.told: list[str] = []
        self.sent: list[Message] = []
        self.leave_after: int | None = None
        self.leave_at: bytes | None = None
        """The caller hangs up while this is on its way."""
        self.full = False
        """It takes no more before that."""
        self._waits, self._takes_more, self._left = anyio.Event(), anyio.Event(), anyio.Event()
        self._request = [{"type": "http.request", "body": json.dumps(body()).encode()}]
        self._edge = edge.Edge(
            routes,
            settings=settings_in(Path("/nowhere")),
            secrets=Secrets(Path("/nowhere")),
            delivered=self.told.append,
        )

    async def run(self) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._lose)
                await self._edge(scope, self._receive, self._send)
                tasks.cancel_scope.cancel()

    async def _receive(self) -> Message:
        if self._request:
            return self._request.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.leave_at is not None and message.get("body") == self.leave_at:
            if self.full:  # as a server that waits until the connection takes more
                self._waits.set()
                await self._takes_more.wait()
                return
            self._left.set()
            await anyio.sleep(0)
            await anyio.sleep(0)
        self.sent.append(message)
        over = message["type"] == "http.response.body" and not message.get("more_body", False)
        if over or len(self.sent) == self.leave_after:  # a server says the same of both
            self._left.set()

    async def _lose(self) -> None:
        """Tell in one step both who listens and who sends that the connection is lost."""
        await self._waits.wait()
        self._left.set()
        self._takes_more.set()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def test_what_nobody_marked_as_an_answer_never_leaves_with_200() -> None:
    connection = Connection(Routes(b"a lie", tells="t"))
    await connection.run()
    assert connection.status == 500
    assert b"a lie" not in connection.content
    assert connection.told == []


async def test_what_the_codec_refused_itself_are_bad_params() -> None:
    connection = Connection(Routes(b"quotes your message", reached=False))
    await connection.run()
    assert connection.status == 200
    assert json.loads(connection.content)["error"]["code"] == -32602
    assert b"quotes" not in connection.content


async def test_a_stream_may_still_be_refused_while_it_only_pinged() -> None:
    chunks = (b": ping\r\n\r\n", b"data: {}", b"")
    connection = Connection(Routes(*chunks, due=2, refusal=restarting(7)))
    await connection.run()
    assert connection.status == 502
    assert json.loads(connection.content)["restarting"] is True


async def test_pings_between_events_get_through_and_no_number() -> None:
    chunks = (b'data: {"b": 1, "a": 2}\r\n\r\n', b": ping\r\n\r\n", b"")
    connection = Connection(Routes(*chunks, answered=True, cursor="1.2"))
    await connection.run()
    assert connection.content == b'id: 1.2\r\ndata: {"a": 2, "b": 1}\r\n\r\n: ping\r\n\r\n'


async def test_an_answer_counts_as_delivered_after_its_last_byte() -> None:
    connection = Connection(Routes(b"one", b"two", answered=True, tells="t"))
    await connection.run()
    assert connection.told == ["t"]


@pytest.mark.parametrize("after", [1, 2])
async def test_an_answer_does_not_count_whose_caller_left_before_its_last_byte(after: int) -> None:
    connection = Connection(Routes(b"one", b"two", b"three", answered=True, tells="t"))
    connection.leave_after = after
    await connection.run()
    assert connection.told == []


async def test_an_answer_does_not_count_whose_caller_left_while_its_last_bytes_had_to_wait() -> None:
    connection = Connection(Routes(b"one", b"two", answered=True, tells="t"))
    connection.leave_at = b"two"
    connection.full = True
    await connection.run()
    assert connection.told == []


async def test_an_answer_does_not_count_whose_caller_left_while_its_last_bytes_were_sent() -> None:
    connection = Connection(Routes(b"one", b"two", answered=True, tells="t"))
    connection.leave_at = b"two"
    await connection.run()
    assert connection.told == []
