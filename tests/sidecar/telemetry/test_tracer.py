from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import anyio
import pytest

from workspace_adapter.sidecar.journal import Journal, NewEvent
from workspace_adapter.sidecar.telemetry.tracer import Tracer
from workspace_adapter.turns import State

from ..journal.made import NOW, RETRYABLE, answered, running, started

NOWHERE = "http://127.0.0.1:9/v1/traces"
MODULE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    monkeypatch.delitem(sys.modules, "workspace_adapter.sidecar.telemetry.exporter", raising=False)


def with_a_variable_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-5")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (without_the_extra, "pip install 'workspace-adapter[otel]'"),
        (with_a_variable_that_cannot_be_used, "sending traces failed, the workspace goes on without it"),
    ],
)
async def test_what_keeps_traces_from_being_sent_is_said_once_and_stops_nothing_else(
    tmp_path: Path,
    logged: StringIO,
    monkeypatch: pytest.MonkeyPatch,
    given: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    given(monkeypatch)
    journal = await Journal.open(tmp_path, boot_id="one", now=time.time())
    try:
        tracer = Tracer(journal, endpoint=NOWHERE, workspace_id="ws")
        for name in ("m1", "m2"):
            tracer.told(await answered(journal, name))
        with anyio.fail_after(10):
            await tracer.run()
        tracer.told(await answered(journal, "m3"))
        await tracer.close(10)
    finally:
        await journal.close()
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert len([line for line in lines if said in line["message"]]) == 1


async def test_a_turn_that_was_asked_for_again_meanwhile_tells_of_its_end_alone(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, boot_id="one", now=time.time())
    try:
        turn = await running(journal)
        begun = NewEvent(kind="status", body={"state": "working", "attempt": 1})
        await journal.append(turn.id, 1, [begun], now=NOW)
        failed = await journal.finish(
            turn.id, attempt=1, to=State.FAILED, cause="", outcome=RETRYABLE, now=NOW + 5
        )
        assert failed is not None
        await started(journal, failed, now=NOW + 9)
        anew = NewEvent(kind="status", body={"state": "working", "attempt": 2, "anew": True})
        await journal.append(turn.id, 2, [anew], now=NOW + 9)
        _, (whole, attempt) = Tracer(journal, endpoint=NOWHERE, workspace_id="ws")._look_up(failed)
    finally:
        await journal.close()
    assert (whole.began_at, whole.ended_at) == (NOW, NOW + 5)
    assert attempt.attributes["workspace.attempt.number"] == 1


async def test_a_turn_stands_where_its_messages_metadata_says(tmp_path: Path) -> None:
    sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    said = {"parts": [{"kind": "text", "text": "hello"}]}
    journal = await Journal.open(tmp_path, boot_id="one", now=time.time())
    try:
        turn = await running(
            journal, message=json.dumps({**said, "metadata": {"traceparent": sent}}).encode()
        )
        plain = await running(journal, "m2", message=json.dumps({**said, "metadata": None}).encode())
        tracer = Tracer(journal, endpoint=NOWHERE, workspace_id="ws")
        assert tracer.place(turn).sent == sent
        assert tracer.place(plain).sent is None
    finally:
        await journal.close()
