from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import anyio
import httpx
import pytest

from workspace_adapter.resume import Resumption, recovery_note
from workspace_adapter.testing import ScriptedModel
from workspace_adapter.testing.scripted_model.script import DROP, HANG, Fault, Reply, ScriptError, decide
from workspace_adapter.turns import Call

ONE = {"tool": "Bash", "input": {"command": "echo 1"}}
TWO = {"tool": "Read", "input": {"file_path": "/f"}}
DONE = {"text": "done"}


def user(*steps: dict[str, Any], text: str = "Please.") -> dict[str, Any]:
    return {"role": "user", "content": f"{text} <<<{json.dumps(steps)}>>>"}


def said(reply: Reply | Fault) -> dict[str, Any]:
    assert isinstance(reply, Reply)
    calls = [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.input} for c in reply.calls]
    return {"role": "assistant", "content": calls}


def result(id: str, *, error: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": "…", "is_error": error}


def results(reply: Reply | Fault, *, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    assert isinstance(reply, Reply)
    content = [result(call.id, error=at in errors) for at, call in enumerate(reply.calls)]
    return {"role": "user", "content": content}


def play(*messages: dict[str, Any]) -> Reply:
    move = decide(messages, Counter())
    assert isinstance(move, Reply)
    return move


def test_steps_are_played_in_order_and_end_with_the_text() -> None:
    asked = user(ONE, TWO, DONE)
    first = play(asked)
    assert [(call.name, call.input) for call in first.calls] == [("Bash", ONE["input"])]
    second = play(asked, said(first), results(first))
    assert [call.name for call in second.calls] == ["Read"]
    last = play(asked, said(first), results(first), said(second), results(second))
    assert (last.text, last.stop_reason, last.calls) == ("done", "end_turn", ())


def test_a_message_without_a_script_is_answered_all_the_same() -> None:
    assert play({"role": "user", "content": "hello"}).text == "(no script)"
    assert play(user()).text == "(end of script)"


def test_of_parallel_calls_only_the_missing_and_the_failed_are_asked_for_again() -> None:
    asked = user({"tools": [ONE, TWO, ONE]}, DONE)
    first = play(asked)
    assert len({call.id for call in first.calls}) == 3
    answered = {"role": "user", "content": results(first, errors=(1,))["content"][:2]}
    again = play(asked, said(first), answered)
    assert [call.id for call in again.calls] == [f"{first.calls[1].id}_r2", f"{first.calls[2].id}_r2"]
    third = play(asked, said(first), answered, said(again), results(again, errors=(0, 1)))
    assert [call.id for call in third.calls] == [f"{first.calls[1].id}_r3", f"{first.calls[2].id}_r3"]
    done = (said(third), results(third))
    assert (
        play(asked, said(first), answered, said(again), results(again, errors=(0, 1)), *done).text == "done"
    )


def test_a_call_that_may_fail_is_done_whatever_its_result() -> None:
    asked = user(ONE | {"may_fail": True}, DONE)
    first = play(asked)
    assert play(asked, said(first), results(first, errors=(0,))).text == "done"


def test_quoting_the_script_once_more_changes_nothing() -> None:
    asked = user(ONE, TWO, DONE)
    first = play(asked)
    quoted = user(ONE, TWO, DONE, text="[workspace notice: …] The request was:\n")
    assert [call.name for call in play(asked, said(first), results(first), quoted).calls] == ["Read"]


def test_text_merged_behind_a_tool_result_is_read() -> None:
    asked = user(ONE, DONE)
    first = play(asked)
    merged = results(first, errors=(0,))["content"] + [{"type": "text", "text": user(ONE, DONE)["content"]}]
    again = play(asked, said(first), {"role": "user", "content": merged})
    assert [call.id for call in again.calls] == [f"{first.calls[0].id}_r2"]


def test_the_newest_script_is_the_current_one() -> None:
    assert play(user(ONE, DONE), user({"text": "other"})).text == "other"


def test_a_script_inside_a_tools_input_belongs_to_whoever_is_sent_it() -> None:
    inner = f"<<<{json.dumps([{'text': 'inner'}])}>>>"
    outer = user({"tool": "Agent", "input": {"prompt": inner}}, {"text": "outer"})
    first = play(outer)
    assert [call.name for call in first.calls] == ["Agent"]
    assert play(outer, said(first), results(first)).text == "outer"
    assert play({"role": "user", "content": inner}).text == "inner"


def test_scripts_in_reminders_of_the_runtime_do_not_count() -> None:
    reminder = {"type": "text", "text": f"<system-reminder>{user(ONE)['content']}</system-reminder>"}
    asked = {"type": "text", "text": user(DONE)["content"]}
    assert play({"role": "user", "content": [asked, reminder]}).text == "done"


def test_a_call_the_workspace_says_has_finished_is_not_made_again() -> None:
    asked = user(ONE, TWO, DONE)
    first = play(asked)
    lost = (said(first), results(first, errors=(0,)))

    def noted(ended_at: float | None) -> dict[str, Any]:
        call = Call(
            turn_id="turn-1",
            attempt=1,
            id=first.calls[0].id,
            name="Bash",
            digest="…",
            excerpt=json.dumps(ONE["input"])[:12],
            asked_at=1.0,
            permitted_at=1.0,
            ended_at=ended_at,
            withdrawn_at=None,
            outcome=None,
        )
        note = recovery_note([call], asked["content"], resumption=Resumption.CONTINUE)
        return {"role": "user", "content": note}

    assert [call.name for call in play(asked, *lost, noted(ended_at=2.0)).calls] == ["Read"]
    assert [call.name for call in play(asked, *lost, noted(ended_at=None)).calls] == ["Bash"]


def test_the_model_recalls_what_it_was_told_before() -> None:
    told = user({"text": "I see"}, text="The word is one. No, the word is two.")
    asked = user({"recall": r"word is (\w+)"}, text="The word is three.")
    assert play(told, {"role": "assistant", "content": "I see"}, asked).text == "two"
    assert play(asked).text == "(nothing to recall)"


def test_faults_are_made_as_often_as_the_script_says() -> None:
    made: Counter[str] = Counter()
    asked = [user({"error": 529, "times": 2}, {"hang": True, "times": 1}, {"drop": True, "times": 1}, DONE)]
    moves = [decide(asked, made) for _ in range(5)]
    assert [move.status if isinstance(move, Fault) else move.text for move in moves] == [
        529,
        529,
        HANG,
        DROP,
        "done",
    ]


def test_a_delay_goes_before_what_comes_next_and_only_that() -> None:
    asked = user({"delay": 0.5}, ONE, DONE)
    first = play(asked)
    assert first.delay == 0.5
    assert play(asked, said(first), results(first)).delay == 0


@pytest.mark.parametrize(
    "step",
    [{"tol": "Bash"}, {"tool": "Bash", "text": "x"}, {"text": "x", "tims": 1}, {"tools": [{"input": {}}]}, 1],
)
def test_a_script_nobody_can_play_is_refused_with_its_step(step: Any) -> None:
    with pytest.raises(ScriptError, match="step 0"):
        decide([user(step)], Counter())


async def ask(model: ScriptedModel, *messages: dict[str, Any], stream: bool = False) -> httpx.Response:
    body = {"model": "m", "max_tokens": 1, "stream": stream, "messages": list(messages)}
    async with httpx.AsyncClient(timeout=5) as client:
        return await client.post(f"{model.url}/v1/messages?beta=true", json=body)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


async def test_a_stream_carries_the_same_message_as_a_plain_answer() -> None:
    async with ScriptedModel() as model:
        plain = (await ask(model, user({"tools": [ONE, TWO], "say": "Two at once."}))).json()
        streamed = events(await ask(model, user({"tools": [ONE, TWO], "say": "Two at once."}), stream=True))
    assert [block["type"] for block in plain["content"]] == ["text", "tool_use", "tool_use"]
    assert (plain["stop_reason"], plain["model"]) == ("tool_use", "m")
    assert plain["usage"]["output_tokens"] > 0
    assert [event["type"] for event in streamed][:2] == ["message_start", "content_block_start"]
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert deltas[0] == {"type": "text_delta", "text": "Two at once."}
    assert [json.loads(delta["partial_json"]) for delta in deltas[1:]] == [ONE["input"], TWO["input"]]
    assert streamed[-2]["delta"]["stop_reason"] == "tool_use"
    assert streamed[-1]["type"] == "message_stop"


async def test_text_comes_in_as_many_pieces_as_asked_for() -> None:
    async with ScriptedModel() as model:
        response = await ask(model, user({"text": "abcdef", "chunks": 3, "chunk_delay": 0.01}), stream=True)
    pieces = [event["delta"]["text"] for event in events(response) if event["type"] == "content_block_delta"]
    assert pieces == ["ab", "cd", "ef"]


async def test_errors_are_the_apis_own_with_status_and_headers() -> None:
    async with ScriptedModel() as model:
        step = {"error": 429, "message": "slow down", "headers": {"retry-after": "7"}}
        response = await ask(model, user(step))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    error = {"type": "rate_limit_error", "message": "slow down"}
    assert response.json() == {"type": "error", "error": error}


async def test_a_bad_script_is_a_bad_request() -> None:
    async with ScriptedModel() as model:
        response = await ask(model, user({"tol": "Bash"}))
    assert response.status_code == 400
    assert "step 0" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_dropped_connection_breaks_off_in_the_middle(stream: bool) -> None:
    async with ScriptedModel() as model:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(model, user({"drop": True}), stream=stream)


async def test_a_hanging_request_ends_with_the_test() -> None:
    async with ScriptedModel() as model, anyio.create_task_group() as tasks:

        async def hang() -> None:
            with anyio.move_on_after(0.1) as gave_up:
                await ask(model, user({"hang": True}))
            assert gave_up.cancelled_caught

        tasks.start_soon(hang)


async def test_it_remembers_what_it_was_asked_until_reset() -> None:
    async with ScriptedModel() as model:
        await ask(model, user({"error": 500, "times": 1}, DONE))
        assert model.requests[-1]["messages"] == [user({"error": 500, "times": 1}, DONE)]
        async with httpx.AsyncClient(base_url=model.url) as client:
            assert len((await client.get("/_requests")).json()) == 1
            assert (await client.post("/_reset")).status_code == 204
        assert model.requests == []
        assert (await ask(model, user({"error": 500, "times": 1}, DONE))).status_code == 500


async def test_tokens_are_counted_and_other_paths_are_not_found() -> None:
    async with ScriptedModel() as model, httpx.AsyncClient(base_url=model.url) as client:
        counted = await client.post("/v1/messages/count_tokens", json={"messages": [user(DONE)]})
        assert counted.json()["input_tokens"] > 0
        assert (await client.get("/v1/models")).status_code == 404


def test_it_runs_as_a_process_of_its_own_and_prints_its_url() -> None:
    command = [sys.executable, "-m", "workspace_adapter.testing.scripted_model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            body = {"messages": [user(DONE)]}
            assert httpx.post(f"{url}/v1/messages", json=body).json()["content"][0]["text"] == "done"
        finally:
            process.terminate()
