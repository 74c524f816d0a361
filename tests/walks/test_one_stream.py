"""The walk of one stream that SIGKILL cuts, resumed by its cursor in the next life."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from .workspace import DEADLINE, Workspace, script, workspace

STEPS = script(
    {"say": "first "},
    {"tool": "sh", "input": "echo one >> effects"},
    {"activity": "looking"},
    {"say": "second "},
    {"artifact": "a file"},
    {"sleep": 0.3},
    {"say": "third"},
)


async def stream(ws: Workspace, body: dict[str, Any], **headers: str) -> AsyncGenerator[str, None]:
    """Read the events of one stream as they came over the wire, ids of the request left out."""
    async with (
        httpx.AsyncClient(base_url=ws.url, timeout=DEADLINE) as client,
        client.stream("POST", "/", json=body, headers=headers) as response,
    ):
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                yield line.removeprefix("data:").strip()


def cursor(event: str) -> str:
    found: str = json.loads(event)["result"]["metadata"]["cursor"]
    return found


def resubscribe(task_id: str, request_id: str) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "tasks/resubscribe",
        "params": {"id": task_id},
    }


@pytest.mark.parametrize("read_before", [1, 2, 3, 5])
async def test_what_follows_the_cursor_after_sigkill_is_the_rest_to_the_byte(
    tmp_path: Path, read_before: int
) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(STEPS, method="message/stream")
        request_id = body["id"]
        before: list[str] = []
        async with aclosing(stream(ws, body)) as events:
            async for event in events:
                before.append(event)
                if len(before) == read_before:
                    break
            task_id = json.loads(before[0])["result"]["id"]
            await ws.until(lambda: ws.turns()[0]["state"] == "answered", "the answer")
            ws.kill_everything()
        await ws.start()
        rest = [
            event
            async for event in stream(
                ws, resubscribe(task_id, request_id), **{"Last-Event-ID": cursor(before[-1])}
            )
        ]
        whole = [
            event
            async for event in stream(
                ws, resubscribe(task_id, request_id), **{"Last-Event-ID": cursor(before[0])}
            )
        ]
        # Each resubscription opens with the task; what follows it continues the stream.
        assert before[1:] + rest[1:] == whole[1:]
        last = json.loads(whole[-1])["result"]
        assert last["final"] is True
        assert last["status"]["state"] == "completed"
        assert ws.lines() == ["one"]


async def test_a_cut_attempt_opens_its_text_anew_and_the_reader_ends_with_the_answer(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script({"say": "half "}, {"sleep": 0.4}, {"say": "whole"}), method="message/stream"
        )
        before: list[str] = []
        async with aclosing(stream(ws, body)) as events:
            async for event in events:
                before.append(event)
                if "half " in event:
                    break
            ws.kill_everything()
        task_id = json.loads(before[0])["result"]["id"]
        await ws.start()
        text = "half "
        async for event in stream(ws, resubscribe(task_id, "2"), **{"Last-Event-ID": cursor(before[-1])}):
            result = json.loads(event)["result"]
            if result["kind"] == "artifact-update":
                said = result["artifact"]["parts"][0]["text"]
                text = text + said if result.get("append") else said
        assert text == "half whole"
