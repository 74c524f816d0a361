"""What a collector of traces is told, and what it costs when there is none."""

from __future__ import annotations

import re
import time
from pathlib import Path

import anyio
import httpx
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from .collector import collector, values
from .workspace import Workspace, answer_of, script, workspace

ROOT = Path(__file__).parents[2]
TRACE, SENDER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{SENDER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{SENDER}-00"}


async def test_a_turn_cut_by_sigkill_is_one_trace_with_its_attempts_linked(tmp_path: Path) -> None:
    tool = "echo begun >> effects; test -e go || sleep 60"
    body_text = script({"tools": [{"tool": "sh", "input": tool}]}, {"answer": "done"})
    with collector() as traces:
        async with workspace(
            tmp_path, WORKSPACE_TRACES_ENDPOINT=traces.endpoint, OTEL_BSP_SCHEDULE_DELAY="50"
        ) as ws:
            body = ws.envelope(body_text)
            async with anyio.create_task_group() as callers:
                callers.start_soon(_ignored, ws, body)
                await ws.until_effect("begun")
                ws.kill_everything()
            (ws.workdir / "go").touch()
            await ws.start()
            # Who asks again does not decide whose trace it is.
            assert answer_of((await ws.post(body)).json()) == "done"
            await ws.until(lambda: len(traces.spans) == 5, "five spans")

        (turn,), (cut, resumed), calls = (traces.named(n) for n in ("turn", "attempt", "tool sh"))
        assert {span.trace_id.hex() for span in traces.spans} == {TRACE}
        assert turn.parent_span_id.hex() == SENDER
        assert turn.kind == Span.SPAN_KIND_SERVER
        assert {span.parent_span_id for span in (cut, resumed)} == {turn.span_id}
        assert [call.parent_span_id for call in calls] == [cut.span_id, resumed.span_id]
        assert [link.span_id for link in resumed.links] == [cut.span_id]
        assert values(cut)["workspace.attempt.end"] == "cut"
        assert values(resumed)["workspace.attempt.resumption"] == "continue"
        assert [span.status.code for span in (turn, cut, resumed)] == [
            Status.STATUS_CODE_UNSET,
            Status.STATUS_CODE_ERROR,
            Status.STATUS_CODE_UNSET,
        ]
        assert turn.start_time_unix_nano < cut.start_time_unix_nano < cut.end_time_unix_nano
        assert cut.end_time_unix_nano < resumed.start_time_unix_nano <= turn.end_time_unix_nano
        assert abs(turn.end_time_unix_nano / 1e9 - time.time()) < 60
        assert traces.resources[0]["service.name"] == "workspace-adapter"
        assert traces.resources[0]["workspace.id"] == "ws-test"
        assert "echo begun" not in str(traces.spans)


async def test_who_sends_no_trace_gets_one_and_a_stop_sends_what_waits(tmp_path: Path) -> None:
    with collector() as traces:
        async with workspace(
            tmp_path,
            "tests.walks.placed:Placed",
            PYTHONPATH=str(ROOT),
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=traces.endpoint,
            OTEL_SERVICE_NAME="mine",
            OTEL_BSP_SCHEDULE_DELAY="60000",
        ) as ws:
            unseen = await ws.post(ws.envelope("hello"), **UNSAMPLED)
            placed = await ws.post(ws.envelope("hello"), traceparent="nonsense")
            (newest, _) = ws.turns()
            await ws.until(lambda: "traces go to" in ws.logged(), "the exporter")
            assert traces.spans == []
            ws.terminate()
            assert await ws.exited() == 0
    (turn,), (attempt,) = traces.named("turn"), traces.named("attempt")
    assert turn.trace_id.hex() == newest["id"].replace("-", "")
    assert (turn.parent_span_id, attempt.parent_span_id) == (b"", turn.span_id)
    assert traces.resources[0]["service.name"] == "mine"
    assert answer_of(placed.json()) == f"00-{turn.trace_id.hex()}-{attempt.span_id.hex()}-01"
    assert re.fullmatch(f"00-{TRACE}-(?!{SENDER}).{{16}}-00", answer_of(unseen.json()))


async def test_a_collector_that_hangs_costs_nobody_anything(tmp_path: Path) -> None:
    with collector(answers=False) as traces:
        async with workspace(
            tmp_path, WORKSPACE_TRACES_ENDPOINT=traces.endpoint, OTEL_BSP_SCHEDULE_DELAY="50"
        ) as ws:
            assert answer_of((await ws.send(script({"answer": "first"}))).json()) == "first"
            await ws.until(traces.asked.is_set, "the first spans")
            assert answer_of((await ws.send(script({"answer": "next"}))).json()) == "next"
            began = time.monotonic()
            ws.terminate()
            assert await ws.exited() == 0
            assert time.monotonic() - began < 2


async def _ignored(ws: Workspace, body: dict[str, object]) -> None:
    try:
        await ws.post(body, **SENT)
    except httpx.TransportError:
        return
