"""The walk of one message through shim and sidecar, both real, and both killed on the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.walks.workspace import answer_of, script
from workspace_adapter.shim.streams import Event, Parser

from .shim import Shim, house

pytestmark = pytest.mark.anyio


async def test_a_message_and_what_its_caller_may_do(tmp_path: Path) -> None:
    async with house(tmp_path) as (shim, workspace):
        first = await shim.post(body := workspace.envelope("hello", message_id="m"))
        assert (first.status_code, answer_of(first.json())) == (200, "hello")
        again = await shim.post({**body, "id": "another"})
        assert again.json() == {**first.json(), "id": "another"}
        task_id = first.json()["result"]["taskId"]
        get = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": task_id}}
        assert (await shim.post(get)).json()["result"]["status"]["state"] == "completed"
        odd = await shim.post(workspace.envelope("other words", message_id="m"))
        assert odd.json()["error"]["code"] == -32602

        modern = {**body, "method": "SendMessage", "params": {"message": {"messageId": "n", "content": "hi"}}}
        task = (await shim.post(modern)).json()["result"]["task"]
        assert task["artifacts"][0]["parts"] == [{"text": "hi"}]
        modern |= {"method": "SendStreamingMessage"}
        modern["params"]["message"]["messageId"] = "o"
        told = [json.loads(event.data)["result"] async for event in events(shim, modern)]
        assert told[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"

        # One that fills the door to its last bytes, to be told apart from one that does not fit.
        large = workspace.envelope("x" * ((16 << 20) - 500))
        found = await shim.post(large)
        assert (found.status_code, len(answer_of(found.json()))) == (200, (16 << 20) - 500)
        too_large = await shim.post(workspace.envelope("x" * (16 << 20)))
        assert (too_large.status_code, too_large.json()["max_bytes"]) == (413, 16 << 20)

        # Who hangs up takes nothing back, who does not wait is told where its message is.
        slow = workspace.envelope(
            script({"tool": "sh", "input": "echo one >> effects"}, {"sleep": 0.5}, {"answer": "late"})
        )
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(timeout=0.3) as client:
                await client.post(f"{shim.url}/workspaces/ws-test/a2a", json=slow)
        told = (await shim.post(slow, prefer="wait=0")).json()
        assert told["queued"] is True

        async def completed() -> Any:
            standing = await shim.call("GET", f"/workspaces/ws-test/a2a/queue/{told['queue_id']}")
            return standing.json() if standing.json()["status"] == "completed" else None

        assert answer_of((await shim.until(completed, "the answer"))["response_body"]) == "late"
        assert answer_of((await shim.post(slow)).json()) == "late"
        assert workspace.lines() == ["one"]


async def test_curl_is_answered_through_the_death_of_the_workspace_and_the_stop_of_the_shim(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as (shim, workspace):
        body = workspace.envelope(
            script({"tool": "sh", "input": "echo one >> effects"}, {"sleep": 0.4}, {"answer": "done"})
        )
        retrying = ("--retry", "20", "--retry-all-errors", "--retry-delay", "1", "--fail")
        address = f"{shim.url}/workspaces/ws-test/a2a"
        curl = subprocess.Popen(
            ["curl", "-sS", *retrying, "--json", json.dumps(body), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            await workspace.until_ended()
            workspace.kill_everything()
            assert await shim.stop() == 0
            await shim.start()
            await workspace.start()
            with anyio.fail_after(20):
                out, err = await anyio.to_thread.run_sync(curl.communicate)
        finally:
            curl.kill()
        assert answer_of(json.loads(out)) == "done", err
        assert workspace.lines() == ["one"]
        assert "platform restarting" not in out.decode()


async def events(shim: Shim, body: Any, after: str = "0") -> AsyncIterator[Event]:
    parser = Parser()
    async with (
        httpx.AsyncClient(timeout=20) as client,
        client.stream(
            "POST", f"{shim.url}/workspaces/ws-test/a2a", json=body, headers={"last-event-id": after}
        ) as response,
    ):
        async for chunk in response.aiter_raw():
            for event in parser.feed(chunk):
                yield event


async def test_a_stream_is_whole_through_the_death_of_the_workspace_and_then_of_the_shim(
    tmp_path: Path,
) -> None:
    steps = script(
        {"say": "a "},
        {"tool": "sh", "input": "echo one >> effects"},
        {"say": "b "},
        {"sleep": 1},
        {"tool": "sh", "input": "echo two >> effects"},
        {"say": "c "},
        {"sleep": 0.6},
        {"say": "d"},
    )
    async with house(tmp_path) as (shim, workspace):
        body = workspace.envelope(steps, method="message/stream", message_id="m")
        seen: list[Event] = []
        first_life = workspace.process
        async with aclosing(events(shim, body)) as told:  # type: ignore[type-var]
            async for event in told:
                seen.append(event)
                if workspace.process is first_life and b'b "' in event.data:  # said once "one" has ended
                    workspace.kill_everything()
                    await workspace.start()
                if workspace.lines() == ["one", "two"]:
                    break
        shim.kill()
        await shim.start()
        seen += [event async for event in events(shim, body, after=seen[-1].id or "")]
        assert [event.id for event in seen] == [str(n) for n in range(1, len(seen) + 1)]
        results = [json.loads(event.data)["result"] for event in seen]
        assert sum(result.get("metadata", {}).get("restarting") is True for result in results) == 1
        assert [result["kind"] for result in results].count("task") == 1
        assert results[-1]["status"]["state"] == "completed"
        assert results[-1]["final"] is True

        # What was told in pieces is what the workspace keeps: nothing is missed, and nothing twice.
        said = ""
        for result in results:
            if result["kind"] == "artifact-update":
                text = result["artifact"]["parts"][0]["text"]
                said = said + text if result["append"] else text
        get = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": results[0]["id"]}}
        kept = (await shim.post(get)).json()["result"]["artifacts"][-1]["parts"][0]["text"]
        assert said == kept
        assert workspace.lines() == ["one", "two"]
        cursors = [
            result["metadata"]["cursor"] for result in results if "cursor" in result.get("metadata", {})
        ]
        assert len(set(cursors)) == len(cursors)
