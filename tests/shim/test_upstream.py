from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest

from tests.shim.scripted import Exchange, Scripted, envelope, scripted
from workspace_adapter.errors import WorkspaceUnreachable
from workspace_adapter.queueing import Lost, Reply
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.ranges import parse_ranges
from workspace_adapter.shim.store.contract import Lease, Status, Workspace
from workspace_adapter.shim.upstream import Sent, Upstream

pytestmark = pytest.mark.anyio

HERE = Addresses(parse_ranges("loopback"))
LEASE = Lease(
    id=1,
    attempt=1,
    owner="o",
    workspace_id="w",
    turn_key="k",
    context_id=None,
    caller="caller:ann",
    method="message/send",
    body=envelope("hello"),
    headers={"traceparent": "00-1"},
    strikes=0,
    lapses=0,
    taken=False,
    enqueued_at=0.0,
    cursor=None,
)
STREAM = LEASE._replace(method="message/stream", body=envelope("hello", method="message/stream"))


def at(url: str | None, *, secret: str = "s3cret") -> Workspace:
    return Workspace(
        id="w",
        status=Status.ONLINE,
        url=url,
        boot_id="b",
        restarting=False,
        card=None,
        created_at=0.0,
        beat_at=None,
        active_tasks=0,
        max_concurrent=1,
        hold_until=0.0,
        report={},
        provisioner="external",
        spec={},
        secret=secret,
    )


class Kept:
    """Who listens to a stream."""

    def __init__(self, wanted: bool = True) -> None:
        self.events: list[bytes] = []
        self.cursors: list[str | None] = []
        self.wanted = wanted

    async def __call__(self, events: Sequence[bytes], cursor: str | None) -> bool:
        self.events += events
        self.cursors.append(cursor)
        return self.wanted


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(HERE, connect_timeout=2.0, deadline=5.0, answer_limit=1000) as opened:
        yield opened


async def echo(exchange: Exchange) -> None:
    await exchange.result(exchange.request.text)


async def send(
    upstream: Upstream, workspace: Scripted, lease: Lease = LEASE, kept: Kept | None = None
) -> Sent:
    return await upstream.send(at(workspace.url), lease, kept or Kept())


# --- messages -------------------------------------------------------------------------


async def test_a_message_goes_as_it_was_kept_with_who_sent_it_and_our_secret(upstream: Upstream) -> None:
    async with scripted(echo) as workspace:
        sent = await send(upstream, workspace)
    (request,) = workspace.requests
    assert (request.method, request.path, request.body) == ("POST", "/", LEASE.body)
    headers = request.headers
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["x-workspace-id"] == "caller:ann"
    assert headers["traceparent"] == "00-1"
    assert headers["accept-encoding"] == "identity"
    assert {"cookie", "user-agent", "last-event-id"} & set(headers) == set()
    assert isinstance(sent.outcome, Reply)
    assert sent.outcome.answers
    assert sent.answer is not None
    assert json.loads(sent.answer.body)["result"]["parts"][0]["text"] == "hello"


async def test_a_workspace_without_a_secret_gets_no_bearer(upstream: Upstream) -> None:
    async with scripted(echo) as workspace:
        await upstream.send(at(f"{workspace.url}/ws/1", secret=""), LEASE._replace(caller=None), Kept())
    (request,) = workspace.requests
    assert request.path == "/ws/1"
    assert {"authorization", "x-workspace-id"} & set(request.headers) == set()


async def test_a_connection_is_used_again(upstream: Upstream) -> None:
    async with scripted(echo) as workspace:
        for _ in range(5):
            await send(upstream, workspace)
    assert workspace.connections == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b""), (200, b"<html>"), (202, b'{"queued": true}'), (302, b""), (401, b"{}"), (500, b"[1]")],
)
async def test_what_is_no_answer_is_brought_as_it_came(upstream: Upstream, status: int, body: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(status, body, location="http://127.0.0.1:1/elsewhere", set_cookie="a=b")

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace)
        await send(upstream, workspace)
    assert isinstance(sent.outcome, Reply)
    assert sent.outcome.status == status
    assert not sent.outcome.answers
    assert sent.answer is not None
    assert (sent.answer.status, sent.answer.body) == (status, body)
    assert "cookie" not in workspace.requests[1].headers


async def test_json_too_deep_to_be_read_is_no_answer(upstream: Upstream) -> None:
    async with Upstream(HERE, connect_timeout=2.0, deadline=5.0) as large, scripted(echo) as workspace:

        async def deep(exchange: Exchange) -> None:
            await exchange.answer(200, b"[" * 200_000 + b"]" * 200_000)

        workspace.script = deep
        sent = await send(large, workspace)
    assert sent.outcome == Reply(status=200, body=None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("in an hour", 3600.0),
        ("an hour ago", 0.0),
        ("soon", None),
        ("-3", None),
        ("nan", None),
        ("9" * 400, None),
    ],
)
async def test_a_retry_after_is_read_in_either_form(
    upstream: Upstream, header: str, seconds: float | None
) -> None:
    async def script(exchange: Exchange) -> None:
        at = {"in an hour": 3600, "an hour ago": -3600}.get(header)
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=at), usegmt=True) if at else header
        await exchange.answer(503, {"error": "no"}, retry_after=date)

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace)
    assert isinstance(sent.outcome, Reply)
    if seconds is None:
        assert sent.outcome.retry_after is None
    else:
        assert sent.outcome.retry_after == pytest.approx(seconds, abs=30)


async def test_an_answer_larger_than_the_limit_is_an_error_that_names_the_setting(upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, b'{"result": "' + b"x" * 5000 + b'"}')

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace)
    assert isinstance(sent.outcome, Reply)
    assert sent.outcome.answers
    assert sent.answer is not None
    assert b"SHIM_ANSWER_LIMIT_BYTES=1000" in sent.answer.body


async def test_a_large_message_goes_whole(upstream: Upstream) -> None:
    body = envelope("x" * (3 << 20))
    async with scripted(lambda exchange: exchange.result("got it")) as workspace:
        await send(upstream, workspace, LEASE._replace(body=body))
    assert workspace.requests[0].body == body


# --- ways to get nothing ----------------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "url",
    [None, "nonsense", "http://no-such-host.invalid", "http://169.254.169.254", "http://10.1.2.3", "refused"],
)
async def test_a_workspace_that_was_not_reached_saw_nothing(upstream: Upstream, url: str | None) -> None:
    sent = await upstream.send(
        at(f"http://127.0.0.1:{closed_port()}" if url == "refused" else url), LEASE, Kept()
    )
    assert sent.outcome is Lost.UNREACHED
    assert sent.answer is None
    assert sent.detail
    assert "s3cret" not in sent.detail


async def test_a_header_that_cannot_be_written_is_held_against_its_message(upstream: Upstream) -> None:
    async with scripted(echo) as workspace:
        sent = await send(upstream, workspace, LEASE._replace(caller="caller:a\r\nX-Evil: 1"))
    assert sent.outcome is Lost.CUT
    assert workspace.requests == []


async def test_a_connection_that_does_not_come_in_time_is_unreached() -> None:
    with socket.socket() as full:  # its backlog is taken up: what comes further waits
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        host, port = full.getsockname()
        taken = []
        try:
            for _ in range(8):
                taken.append(filler := socket.socket())
                filler.setblocking(False)
                filler.connect_ex((host, port))
            async with Upstream(HERE, connect_timeout=0.2, deadline=5.0) as upstream:
                sent = await upstream.send(at(f"http://{host}:{port}"), LEASE, Kept())
        finally:
            for filler in taken:
                filler.close()
    assert sent.outcome is Lost.UNREACHED


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def close(exchange: Exchange) -> None:
    exchange.close()


async def half_a_head(exchange: Exchange) -> None:
    await exchange.say(b"HTTP/1.1 200 OK\r\ncontent-")
    exchange.close()


async def half_a_body(exchange: Exchange) -> None:
    await exchange.head(200, content_length="100")
    await exchange.say(b'{"result": ')
    exchange.close()


async def garbage(exchange: Exchange) -> None:
    await exchange.say(b"\x00\x01 this is no HTTP \r\n\r\n")
    exchange.close()


async def bad_chunks(exchange: Exchange) -> None:
    await exchange.head(200, transfer_encoding="chunked")
    await exchange.say(b"zz\r\n{}\r\n")
    exchange.close()


@pytest.mark.parametrize("script", [reset, close, half_a_head, half_a_body, garbage, bad_chunks])
async def test_a_connection_that_breaks_once_something_was_sent_is_cut(
    upstream: Upstream, script: object
) -> None:
    async with scripted(script) as workspace:  # type: ignore[arg-type]
        sent = await send(upstream, workspace)
    assert sent.outcome is Lost.CUT
    assert len(workspace.requests) == 1


async def hang(exchange: Exchange) -> None:
    await exchange.gone()


async def dribble(exchange: Exchange) -> None:
    await exchange.head(200, content_length="100000")
    while True:
        await exchange.say(b" ")
        await anyio.sleep(0.01)


@pytest.mark.parametrize("script", [hang, dribble])
async def test_a_workspace_that_does_not_answer_before_the_deadline_is_late(script: object) -> None:
    async with (
        Upstream(HERE, connect_timeout=2.0, deadline=0.2) as upstream,
        scripted(script) as workspace,  # type: ignore[arg-type]
    ):
        began = time.monotonic()
        sent = await send(upstream, workspace)
        assert time.monotonic() - began < 5
    assert sent.outcome is Lost.LATE
    assert sent.detail == "0.2 s have passed"


# --- streams ------------------------------------------------------------------------------

TASK = {"kind": "task", "id": "t", "contextId": "c", "status": {"state": "working"}}
FINAL = {
    "kind": "status-update",
    "taskId": "t",
    "contextId": "c",
    "status": {"state": "completed"},
    "final": True,
}


def artifact(text: str) -> dict[str, object]:
    return {"kind": "artifact-update", "taskId": "t", "artifact": {"parts": [{"kind": "text", "text": text}]}}


def texts(events: Sequence[bytes]) -> list[str]:
    results = [json.loads(event)["result"] for event in events]
    return [r["artifact"]["parts"][0]["text"] for r in results if r["kind"] == "artifact-update"]


async def test_the_events_of_a_stream_are_kept_as_they_come_and_the_last_is_the_answer(
    upstream: Upstream,
) -> None:
    kept = Kept()

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream; charset=utf-8")
        await exchange.event(TASK, "1")
        for number in range(2, 5):
            await exchange.event(artifact(str(number)), str(number))
            with anyio.fail_after(5):
                while len(kept.events) < number:
                    await anyio.sleep(0.005)
        await exchange.event(FINAL, "5")
        await exchange.gone()

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM, kept)
    assert "text/event-stream" in workspace.requests[0].headers["accept"]
    assert texts(kept.events) == ["2", "3", "4"]
    assert kept.cursors[-1] == "4"
    assert isinstance(sent.outcome, Reply)
    assert sent.answer is not None
    assert json.loads(sent.answer.body)["result"] == FINAL


async def test_a_stream_is_gone_on_with_behind_its_cursor(upstream: Upstream) -> None:
    kept = Kept()

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, exchange.request.headers["last-event-id"])
        await exchange.event(artifact("more"), "8")
        await exchange.event(FINAL, "9")

    async with scripted(script) as workspace:
        await send(upstream, workspace, STREAM._replace(cursor="7"), kept)
    assert len(kept.events) == 1
    assert texts(kept.events) == ["more"]


async def test_a_stream_that_breaks_off_is_cut_and_its_reader_is_told(upstream: Upstream) -> None:
    kept = Kept()

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "1")
        await exchange.event(artifact("half"), "2")
        exchange.close()

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM, kept)
    assert sent.outcome is Lost.CUT
    assert b"restarting" in kept.events[-1]
    assert texts(kept.events) == ["half"]


async def test_a_stream_that_says_the_workspace_restarts_goes_again_without_a_strike(
    upstream: Upstream,
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "1")
        status = {"kind": "status-update", "taskId": "t", "status": {"state": "working"}, "final": True}
        await exchange.event({**status, "final": False, "metadata": {"restarting": True}}, "2")
        exchange.close()

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM)
    assert isinstance(sent.outcome, Reply)
    assert sent.outcome.says("restarting")
    assert sent.answer is None


async def test_a_stream_whose_lease_was_lost_is_read_no_further(upstream: Upstream) -> None:
    kept = Kept(wanted=False)

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "1")
        await exchange.gone()

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM, kept)
    assert sent.outcome is Lost.CUT
    assert len(kept.events) == 1


async def test_a_stream_may_last_longer_than_the_deadline_while_it_says_something() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "1")
        for _ in range(12):
            await anyio.sleep(0.1)
            await exchange.say(b": still here\n\n")
        await exchange.event(FINAL, "2")

    async with Upstream(HERE, deadline=0.6) as upstream, scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM)
    assert sent.answer is not None


async def test_a_stream_that_falls_silent_is_late() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "1")
        await exchange.gone()

    async with Upstream(HERE, deadline=0.2) as upstream, scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM)
    assert sent.outcome is Lost.LATE


async def test_a_refusal_of_a_stream_is_read_as_one_of_a_message(upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(503, {"error": "full", "busy": True, "retry_after": 3})

    async with scripted(script) as workspace:
        sent = await send(upstream, workspace, STREAM)
    assert sent.outcome == Reply(status=503, body={"error": "full", "busy": True, "retry_after": 3})


# --- what passes through ------------------------------------------------------------------


async def test_a_request_passes_through_with_its_own_headers_and_our_secret(upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(207, exchange.request.body[::-1], x_more="yes", content_encoding="gzip")

    headers = {"Content-Type": "application/json", "A2A-Version": "1.0"}
    async with scripted(script) as workspace:
        opened = upstream.open(at(workspace.url), "PUT", "/v1/x%2Fy?q=a%20b", headers, b"abc")
        async with opened as response:
            body = b"".join([chunk async for chunk in response.chunks()])
    (request,) = workspace.requests
    assert (request.method, request.path, request.body) == ("PUT", "/v1/x%2Fy?q=a%20b", b"abc")
    assert request.headers["a2a-version"] == "1.0"
    assert request.headers["authorization"] == "Bearer s3cret"
    assert (response.status, response.headers["x-more"], body) == (207, "yes", b"cba")


async def test_what_passes_through_streams_both_ways(upstream: Upstream) -> None:
    heard = anyio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, transfer_encoding="chunked")
        await exchange.say(b"5\r\nfirst\r\n")
        await heard.wait()
        await exchange.say(b"4\r\nlast\r\n0\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    chunks = []
    async with (
        scripted(script) as workspace,
        upstream.open(at(workspace.url), "POST", "/", {}, body()) as response,
    ):
        async for chunk in response.chunks():
            chunks.append(chunk)
            heard.set()
    assert chunks == [b"first", b"last"]
    assert workspace.requests[0].body == b"onetwo"


async def test_what_cannot_pass_through_says_whether_it_may_have_arrived(upstream: Upstream) -> None:
    with pytest.raises(WorkspaceUnreachable, match="POST /x at workspace w") as unreached:
        async with upstream.open(at(f"http://127.0.0.1:{closed_port()}"), "POST", "/x", {}, None):
            raise AssertionError("there was a response")
    assert not unreached.value.sent
    async with scripted(reset) as workspace:
        with pytest.raises(WorkspaceUnreachable) as cut:
            async with upstream.open(at(workspace.url), "POST", "/x", {}, b"{}"):
                raise AssertionError("there was a response")
    assert cut.value.sent


async def test_a_body_that_breaks_off_while_it_passes_through_is_no_whole_one(upstream: Upstream) -> None:
    async with (
        scripted(half_a_body) as workspace,
        upstream.open(at(workspace.url), "GET", "/", {}, None) as response,
    ):
        with pytest.raises(WorkspaceUnreachable):
            _ = [chunk async for chunk in response.chunks()]


async def test_hanging_up_on_what_passes_through_closes_its_connection(upstream: Upstream) -> None:
    gone = anyio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, transfer_encoding="chunked")
        await exchange.say(b"5\r\nfirst\r\n")
        await exchange.gone()
        gone.set()

    async with scripted(script) as workspace:
        async with upstream.open(at(workspace.url), "GET", "/", {}, None) as response:
            async for _ in response.chunks():
                break
        with anyio.fail_after(5):
            await gone.wait()
