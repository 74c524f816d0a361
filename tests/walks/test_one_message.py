"""The walk of one message, over a real socket, a real journal and real tools."""

from __future__ import annotations

import uuid
from pathlib import Path

import anyio
import httpx

from .workspace import answer_of, script, workspace


async def test_a_message_is_answered_with_what_its_tools_did_once(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        reply = await ws.send(script({"tool": "sh", "input": "echo one >> effects"}, {"answer": "did one"}))
        assert reply.status_code == 200
        assert answer_of(reply.json()) == "did one"
        assert ws.lines() == ["one"]


async def test_the_same_message_again_gets_the_stored_answer_even_after_a_restart(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(script({"tool": "sh", "input": "echo one >> effects"}, {"answer": "did one"}))
        first = await ws.post(body)
        again = await ws.post({**body, "id": "another"})
        ws.kill_everything()
        await ws.start()
        after = await ws.post(body)
        answers = {answer_of(reply.json()) for reply in (first, again, after)}
        assert answers == {"did one"}
        assert ws.lines() == ["one"]


async def test_two_callers_with_one_message_share_one_turn(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(script({"tool": "sh", "input": "sleep 0.2; echo one >> effects"}, {"answer": "x"}))
        replies: list[httpx.Response] = []

        async def call() -> None:
            replies.append(await ws.post(body))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            callers.start_soon(call)
        assert [answer_of(reply.json()) for reply in replies] == ["x", "x"]
        assert ws.lines() == ["one"]


async def test_a_caller_who_hangs_up_collects_later(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 0.3; echo done >> effects"},
                {"answer": "x"},
            )
        )
        with anyio.move_on_after(5):
            async with anyio.create_task_group() as caller:
                caller.start_soon(ws.post, body)
                await ws.until_effect("begun")
                caller.cancel_scope.cancel()
        assert answer_of(await ws.ask_until_answered(body)) == "x"
        assert ws.lines() == ["begun", "done"]


async def test_turns_of_one_session_run_in_order_and_remember(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_MAX_CONCURRENT_TURNS="2") as ws:
        first = script(
            {"tool": "sh", "input": "until [ -s effects ]; do sleep 0.01; done; echo first >> effects"},
            {"answer": "1"},
        )
        second = script({"tool": "sh", "input": "echo second >> effects"}, {"recall": True})
        other = script({"tool": "sh", "input": "echo other >> effects"}, {"answer": "3"})
        replies: dict[str, str] = {}

        async def call(name: str, text: str, context: str) -> None:
            replies[name] = answer_of((await ws.send(text, context_id=context)).json())

        async with anyio.create_task_group() as callers:
            callers.start_soon(call, "first", first, "c1")
            await ws.until(lambda: ws.turns(), "the first turn")
            callers.start_soon(call, "second", second, "c1")
            callers.start_soon(call, "other", other, "c2")
        assert ws.lines() == ["other", "first", "second"]
        assert "echo first" in replies["second"]


async def test_an_agent_that_asks_back_goes_on_with_the_answer(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        asked = (await ws.send(script({"ask": "which one?"}), context_id="c")).json()["result"]
        assert asked["parts"][0]["text"] == "which one?"
        body = ws.envelope(script({"answer": "the red one"}), context_id="c")
        body["params"]["message"]["taskId"] = asked["taskId"]
        told = (await ws.post(body)).json()["result"]
        assert told["parts"][0]["text"] == "the red one"
        assert told["taskId"] == asked["taskId"]


async def test_a_retryable_failure_is_tried_again_by_a_re_send_and_a_final_one_is_not(
    tmp_path: Path,
) -> None:
    async with workspace(tmp_path) as ws:
        retryable = ws.envelope(
            script({"fail": "model unreachable", "retryable": True, "times": 1}, {"answer": "at last"})
        )
        final = ws.envelope(script({"fail": "no", "times": 1}, {"answer": "never"}))
        failed = (await ws.post(retryable)).json()["result"]
        assert failed["parts"][0]["text"].startswith("Agent error: ")
        assert failed["metadata"]["retryable"] is True
        assert answer_of((await ws.post(retryable)).json()) == "at last"
        for _ in range(2):
            refused = (await ws.post(final)).json()["result"]
            assert refused["parts"][0]["text"] == "Agent error: no"
            assert refused["metadata"]["retryable"] is False


async def test_an_exception_outside_the_contract_fails_the_turn_and_not_the_session(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        broken = await ws.send(script({"raise": "a bug"}), context_id="c")
        assert answer_of(broken.json()).startswith("Agent error: ")
        assert answer_of((await ws.send(script({"answer": "fine"}), context_id="c")).json()) == "fine"
        assert ws.logged().count("Traceback") == 1


async def test_a_silent_runtime_is_stopped_at_the_idle_limit_but_a_working_tool_is_not(
    tmp_path: Path,
) -> None:
    async with workspace(tmp_path, WORKSPACE_TURN_IDLE_LIMIT="0.2", WORKSPACE_STOP_GRACE="0.2") as ws:
        patient = script({"tool": "sh", "input": "sleep 0.6; echo done >> effects"}, {"answer": "fine"})
        assert answer_of((await ws.send(patient)).json()) == "fine"
        silent = await ws.send(script({"hang": True}))
        assert "WORKSPACE_TURN_IDLE_LIMIT" in answer_of(silent.json())


async def test_a_message_its_sender_gives_little_time_expires_in_line(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        async with anyio.create_task_group() as callers:
            callers.start_soon(ws.send, script({"tool": "sh", "input": "echo a >> effects; sleep 1.5"}))
            await ws.until_effect("a")
            late = await ws.send(script({"answer": "late"}), expires_in_seconds=0.1)
        assert "time limit" in answer_of(late.json())


async def test_an_idle_session_makes_room_for_another_and_comes_back(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_SESSIONS_OPEN="1") as ws:
        await ws.send(script({"answer": "1"}), context_id="one")
        await ws.send(script({"answer": "2"}), context_id="two")
        assert "session one: closed to make room" in ws.logged()
        back = await ws.send(script({"recall": True}), context_id="one")
        assert '{"answer": "1"}' in answer_of(back.json())


async def test_a_canceled_turn_stops_its_tool_and_frees_the_session(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script({"tool": "sh", "input": "echo begun >> effects; sleep 30; echo done >> effects"}),
            context_id="c",
        )
        replies: list[httpx.Response] = []

        async def call() -> None:
            replies.append(await ws.post(body))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            await ws.until_effect("begun")
            (turn,) = ws.turns()
            cancel = {
                "jsonrpc": "2.0",
                "id": "1",
                "method": "tasks/cancel",
                "params": {"id": turn["task_id"]},
            }
            task = (await ws.post(cancel)).json()["result"]
            assert task["status"]["state"] == "canceled"
        assert replies[0].json()["result"]["metadata"]["state"] == "canceled"
        assert answer_of((await ws.send(script({"answer": "next"}), context_id="c")).json()) == "next"
        assert ws.lines() == ["begun"]


async def test_a_message_in_the_newer_dialect_is_answered_with_a_task(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = {
            "jsonrpc": "2.0",
            "id": "1",
            "method": "SendMessage",
            "params": {
                "message": {
                    "messageId": uuid.uuid4().hex,
                    "role": "ROLE_USER",
                    "parts": [{"text": script({"answer": "done"})}],
                }
            },
        }
        reply = (await ws.post(body, **{"A2A-Version": "1.0"})).json()
        task = reply["result"]["task"]
        assert task["status"]["state"] == "TASK_STATE_COMPLETED"
        assert task["artifacts"][0]["parts"][0]["text"] == "done"


async def test_files_images_and_data_reach_the_runtime(tmp_path: Path) -> None:
    async with workspace(tmp_path, "workspace_adapter.runtimes.echo:EchoAdapter") as ws:
        (ws.workdir / "x.txt").write_text("hello")
        body = ws.envelope("look")
        body["params"]["message"]["parts"] += [
            {
                "kind": "file",
                "file": {
                    "uri": f"workspace:{ws.workdir}/x.txt",
                    "name": "x.txt",
                    "mimeType": "text/plain",
                    "size": 5,
                },
            },
            {"kind": "file", "file": {"bytes": "aGVsbG8=", "name": "p.png", "mime_type": "image/png"}},
            {"kind": "data", "data": {"n": 1}},
        ]
        text = answer_of((await ws.post(body)).json())
        assert str(ws.workdir / "x.txt") in text
        assert "p.png (image/png)" in text
        assert '{"n": 1}' in text or '{"n":1}' in text


async def test_what_nobody_could_work_on_is_refused_and_not_journalled(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope("secret words")
        body["params"]["message"]["parts"] = [{"kind": "file", "file": {"uri": "/etc/passwd"}}]
        refused = (await ws.post(body)).json()
        assert refused["error"]["code"] == -32602
        assert ws.turns() == []
        assert "secret words" not in ws.logged()
