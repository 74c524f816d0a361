"""The Claude runtime, turn by turn, against the real CLI."""

from __future__ import annotations

import base64
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest

from workspace_adapter.adapter import FilePart, ForgottenSession, StopReason
from workspace_adapter.errors import SessionLost, TurnFailed
from workspace_adapter.events import Activity, Finish, SessionHandle, ToolCall, TurnFinished, Usage
from workspace_adapter.resume import Evidence, Found, Resumption
from workspace_adapter.runtimes.claude import ClaudeAdapter, ClaudeSettings

from .claude_stand import MARK, Run, Stand, bash, follow, script, stand, turn, until

__all__ = ["stand"]

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def test_every_call_is_permitted_before_it_is_made_and_ended_before_the_next(stand: Stand) -> None:
    effects_when_asked: list[list[str]] = []
    stand.gate.on_ask = lambda call: effects_when_asked.append(stand.effects)
    two = script(
        bash("echo one >> effects", say="First."), bash("echo two >> effects"), {"text": "Both done."}
    )
    async with stand.session() as session:
        run = await follow(session, turn(two))
        again = await follow(session, turn(script({"text": "Again."}), id="turn-2"))
    assert run.finished == TurnFinished(answer="Both done.")
    assert run.text == "First.\n\nBoth done."
    assert Activity("Bash") in run.events
    (usage,) = (event for event in run.events if isinstance(event, Usage))
    assert usage.input_tokens > usage.output_tokens > 0
    assert [call.name for call in stand.gate.asked] == ["Bash", "Bash"]
    assert json.loads(stand.gate.asked[0].arguments) == {"command": "echo one >> effects"}
    assert effects_when_asked == [[], ["one"]]
    assert stand.gate.ends == [(id, True) for id in stand.gate.permits]
    assert again.finished.answer == "Again."
    assert len(stand.children.pids) == 1, "one process for both turns"
    assert await stand.recover(handle=run.handle) == Evidence.seen(), "another turn was answered since"
    assert await stand.recover(id="turn-2", handle=run.handle) == Evidence.answered("Again.")


async def test_a_gate_that_closes_in_a_turn_parks_it_and_only_the_missing_call_is_made_later(
    stand: Stand,
) -> None:
    request = script(
        {"tools": [bash("sleep 0.2; echo one >> effects"), bash("echo two >> effects")]},
        bash("echo three >> effects"),
        {"text": "done"},
    )

    def close_after_the_first(call: ToolCall) -> None:
        stand.gate.closed = len(stand.gate.asked) > 1

    stand.gate.on_ask = close_after_the_first
    async with stand.session() as session:
        parked = await follow(session, turn(request))
        assert parked.finished == TurnFinished(finish=Finish.PARKED)
        assert stand.effects == ["one"]
        assert stand.gate.ends == [(stand.gate.permits[0], True)]
        assert len(stand.model.requests) == 1, "the model was not asked again"
        assert await stand.recover(handle=parked.handle) == Evidence.seen()

    stand.gate.closed, stand.gate.on_ask = False, lambda call: None
    async with stand.session(resume=parked.handle) as session:
        note = f"[workspace notice: go on]\n\nThe request was:\n{request}"
        done = await follow(session, turn(request, attempt=2, resumption=Resumption.CONTINUE, note=note))
    assert done.finished.answer == "done"
    assert stand.effects == ["one", "two", "three"]
    results = [
        (block["tool_use_id"][-4:], block["is_error"])
        for message in stand.model.requests[1]["messages"]
        for block in message["content"]
        if isinstance(block, dict) and block["type"] == "tool_result"
    ]
    assert results == [("_0_0", False), ("_0_1", True)], "one result for each call, none missing"


async def test_a_call_that_runs_while_the_gate_closes_is_the_last_of_its_turn(stand: Stand) -> None:
    slow = script(bash("echo begun >> effects; sleep 0.5; echo ended >> effects"), {"text": "x"})
    async with stand.session() as session, anyio.create_task_group() as tasks:

        async def close_in_the_middle() -> None:
            await until(lambda: stand.effects == ["begun"])
            stand.gate.closed = True

        tasks.start_soon(close_in_the_middle)
        run = await follow(session, turn(slow))
    assert run.finished.finish is Finish.PARKED
    assert stand.effects == ["begun", "ended"]
    assert stand.gate.open == []
    assert len(stand.model.requests) == 1


async def test_an_answer_that_needs_no_more_calls_is_given_at_the_closed_gate(stand: Stand) -> None:
    stand.gate.closed = True
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "no tool needed"})))
    assert run.finished.answer == "no tool needed"


@pytest.mark.parametrize("reopens", [False, True], ids=["closed", "reopened at once"])
async def test_a_subagents_call_asks_the_gate_and_a_refusal_reaches_the_whole_turn(
    stand: Stand, reopens: bool
) -> None:
    stand.gate.reopens = reopens
    inner = script(bash("echo inner >> effects"), {"text": "inner done"})
    agent = {"description": "Do it", "prompt": inner, "subagent_type": "general-purpose"}

    def close_inside(call: ToolCall) -> None:
        stand.gate.closed = call.name == "Bash"

    stand.gate.on_ask = close_inside
    request = script({"tool": "Agent", "input": agent}, bash("echo outer >> effects"), {"text": "done"})
    async with stand.session() as session:
        parked = await follow(session, turn(request))
        assert [call.name for call in stand.gate.asked] == ["Agent", "Bash"]
        assert parked.finished.finish is Finish.PARKED
        assert Activity("Agent: Do it") in parked.events
        assert Activity("subagent: Bash") in parked.events
        assert "inner done" not in parked.text
        stand.gate.on_ask = lambda call: None
        stand.gate.closed = False
        done = await follow(
            session,
            turn(script(bash("echo after >> effects"), {"text": "done"}), attempt=2),
        )
    assert done.finished.answer == "done"
    assert stand.effects == ["after"]
    assert stand.gate.open == []


async def test_a_tool_of_an_mcp_server_asks_the_gate(stand: Stand, tmp_path: Path) -> None:
    server = Path(__file__).with_name("mcp_echo.py")
    config = tmp_path / "mcp.json"
    config.write_text(
        json.dumps({"mcpServers": {"echo": {"command": sys.executable, "args": [str(server)]}}})
    )
    stand.use(ClaudeSettings(mcp_config=str(config)))
    async with stand.session() as session:
        run = await follow(
            session, turn(script({"tool": "mcp__echo__say", "input": {"text": "hi"}}, {"text": "done"}))
        )
    assert run.finished.answer == "done"
    assert [call.name for call in stand.gate.asked] == ["mcp__echo__say"]
    assert "you said hi" in stand.told()


async def test_a_call_that_the_permission_mode_refuses_is_ended_by_its_result(stand: Stand) -> None:
    stand.use(ClaudeSettings(permission_mode="default"))
    request = script(bash("touch effects", may_fail=True), bash("true"), {"text": "done"})
    async with stand.session() as session:
        run = await follow(session, turn(request))
    assert run.finished.answer == "done"
    assert not (stand.workdir / "effects").exists()
    assert stand.gate.ends == [(stand.gate.permits[0], False), (stand.gate.permits[1], True)]


async def test_a_call_that_a_pattern_refuses_is_ended_by_its_result(stand: Stand) -> None:
    stand.use(ClaudeSettings(disallowed_tools=("Bash(touch *)",)))
    request = script(
        {"tools": [bash("touch effects", may_fail=True), bash("echo ok")]}, bash("true"), {"text": "done"}
    )
    async with stand.session() as session:
        run = await follow(session, turn(request))
    assert run.finished.answer == "done"
    assert not (stand.workdir / "effects").exists()
    assert sorted(ok for _, ok in stand.gate.ends) == [False, True, True]
    assert stand.gate.open == []


async def test_tools_that_ask_a_person_or_outlive_the_turn_are_not_offered(stand: Stand) -> None:
    async with stand.session() as session:
        await follow(session, turn(script({"text": "done"})))
    offered = {tool["name"] for tool in stand.model.requests[-1]["tools"]}
    assert "Bash" in offered
    assert not offered & {"AskUserQuestion", "ExitPlanMode", "Monitor", "ScheduleWakeup", "CronCreate"}
    shell = next(tool for tool in stand.model.requests[-1]["tools"] if tool["name"] == "Bash")
    assert "run_in_background" not in shell["input_schema"]["properties"]


async def test_text_that_looks_like_a_command_or_a_file_is_only_text(stand: Stand) -> None:
    (stand.workdir / "secret").write_text("do not read me")
    async with stand.session() as session:
        first = await follow(session, turn(f"/clear @{stand.workdir}/secret {script({'text': 'one'})}"))
        assert first.finished.answer == "one"
        assert "do not read me" not in stand.told()
        second = await follow(session, turn(script({"text": "two"}), id="turn-2"))
        assert second.finished.answer == "two"
        assert "/clear @" in stand.told(), "the conversation went on"


async def test_images_are_shown_to_the_model_and_other_files_named(stand: Stand) -> None:
    picture, notes = stand.workdir / "dot.png", stand.workdir / "notes.txt"
    picture.write_bytes(PIXEL)
    notes.write_text("…")
    parts = (
        FilePart(path=picture, name="dot.png", mime_type="image/png"),
        FilePart(path=notes, name="notes.txt", mime_type="text/plain"),
        FilePart(path=stand.workdir / "gone.png", name="gone.png", mime_type="image/png"),
    )
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "seen"}), parts=parts))
        assert run.finished.answer == "seen"
        images = [
            block
            for message in stand.model.requests[-1]["messages"]
            for block in message["content"]
            if isinstance(block, dict) and block["type"] == "image"
        ]
        assert [image["source"]["media_type"] for image in images] == ["image/png"]
        assert all(str(part.path) in stand.told() for part in parts)


async def test_after_a_cancel_the_session_takes_its_next_turn(stand: Stand) -> None:
    async with stand.session() as session:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await until(lambda: stand.effects == ["begun"])
                await session.stop(StopReason.CANCEL)

            tasks.start_soon(cancel)
            request = script(bash("echo begun >> effects; sleep 30; echo ended >> effects"), {"text": "x"})
            with pytest.raises(TurnFailed, match="interrupted"):
                await follow(session, turn(request))
        assert stand.gate.open == []
        await until(lambda: list(stand.children.alive()) == stand.children.pids, what="the tool is gone")
        run = await follow(session, turn(script({"text": "next"}), id="turn-2"))
        assert run.finished.answer == "next"
    assert stand.effects == ["begun"]
    assert len(stand.children.pids) == 1


async def test_a_cancel_is_heard_at_any_moment_of_a_turn(stand: Stand) -> None:
    async with stand.session() as session:
        for nth, moment in enumerate([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]):
            async with anyio.create_task_group() as tasks:

                async def cancel(after: float) -> None:
                    await anyio.sleep(after)
                    await session.stop(StopReason.CANCEL)

                tasks.start_soon(cancel, moment)
                with anyio.fail_after(5), pytest.raises(TurnFailed, match="interrupted"):
                    await follow(session, turn(script({"hang": True, "note": nth}), id=f"turn-{nth}"))
        run = await follow(session, turn(script({"text": "next"}), id="last"))
    assert run.finished.answer == "next"


async def test_a_hook_of_the_images_own_that_stops_the_turn_is_no_drain(stand: Stand) -> None:
    hook = {"type": "command", "command": """echo '{"continue": false, "stopReason": "house rule"}'"""}
    settings = {"hooks": {"PostToolUse": [{"matcher": "Bash", "hooks": [hook]}]}}
    (stand.home / ".claude").mkdir()
    (stand.home / ".claude" / "settings.json").write_text(json.dumps(settings))
    async with stand.session() as session:
        with pytest.raises(TurnFailed, match="a hook in Claude Code's settings"):
            await follow(session, turn(script(bash("true"), {"text": "x"})))


async def test_a_consumer_that_falls_behind_does_not_block_the_hooks(stand: Stand) -> None:
    calls = 30
    steps = [{"tools": [bash(f"true {n} {k}") for k in range(2)]} for n in range(calls)]
    async with stand.session() as session:
        events = session.run_turn(turn(script(*steps, {"text": "done"})))
        run = Run([await anext(events)])
        await until(lambda: len(stand.gate.ends) == 2 * calls, within=30)
        async for event in events:
            run.events.append(event)
    assert run.finished.answer == "done"


async def test_the_tools_get_the_environment_they_were_given_and_nothing_of_ours(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_PLATFORM", "s3cret")
    async with stand.session() as session:
        await follow(session, turn(script(bash("env > environment"), {"text": "done"})))
    environment = dict(
        line.split("=", 1) for line in (stand.workdir / "environment").read_text().splitlines() if "=" in line
    )
    assert environment[MARK] == stand.children.mark
    assert "A_SECRET_OF_THE_PLATFORM" not in environment
    assert "WORKSPACE_ADAPTER_LEASH" not in environment


async def test_what_the_image_has_in_its_home_counts_but_for_its_conversations(stand: Stand) -> None:
    image = stand.home / ".claude"
    (image / "projects").mkdir(parents=True)
    (image / "settings.json").write_text(json.dumps({"env": {"FROM_THE_IMAGE": "yes"}}))
    (image / "CLAUDE.md").write_text("Remember the word pomegranate.")
    async with stand.session() as session:
        request = script(bash('echo "$FROM_THE_IMAGE" >> effects'), {"text": "done"})
        await follow(session, turn(request))
    assert stand.effects == ["yes"]
    assert "pomegranate" in stand.told()
    assert list((image / "projects").iterdir()) == []
    (image / "late.json").write_text("{}")
    (image / "CLAUDE.md").unlink()
    async with stand.session():
        config = stand.state / "config"
        assert (config / "late.json").resolve() == image / "late.json"
        assert not (config / "CLAUDE.md").is_symlink()


async def test_the_operators_own_config_directory_is_used_as_it_is(stand: Stand, tmp_path: Path) -> None:
    config = tmp_path / "configured"
    stand.use(ClaudeSettings(config_dir=str(config)))
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "done"})))
    assert [path.stem for path in config.glob("projects/*/*.jsonl")] == [run.handle]
    assert (await stand.recover(handle=run.handle)).found is Found.ANSWERED
    assert not (stand.state / "config").exists()


async def test_check_names_the_version(stand: Stand) -> None:
    assert "Claude Code" in await stand.adapter.check()


async def test_settings_reach_the_cli(stand: Stand, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.md"
    prompt.write_text("You are a gardener.")
    stand.use(ClaudeSettings(model="claude-test-1", system_prompt_file=str(prompt), setting_sources=()))
    (stand.home / ".claude").mkdir()
    (stand.home / ".claude" / "CLAUDE.md").write_text("Remember the word pomegranate.")
    async with stand.session() as session:
        await follow(session, turn(script({"text": "done"})))
    request: dict[str, Any] = stand.model.requests[-1]
    assert request["model"] == "claude-test-1"
    assert "You are a gardener." in json.dumps(request["system"])
    assert "pomegranate" not in stand.told()


async def test_what_another_runtime_called_a_conversation_is_no_beginning_of_claudes_names(
    tmp_path: Path,
) -> None:
    transcript = tmp_path / "config" / "projects" / "work" / "1b4e28ba-2fa1-41d2-883f-0016d3cca427.jsonl"
    transcript.parent.mkdir(parents=True)
    transcript.touch()
    asked = ForgottenSession(
        session_id=uuid.uuid4().hex, handle=SessionHandle("1"), workdir=tmp_path, state_dir=tmp_path
    )
    assert await ClaudeAdapter(ClaudeSettings()).forget(asked) == []
    assert transcript.exists()


async def test_a_forgotten_conversation_leaves_nothing_wherever_the_cli_keeps_something(stand: Stand) -> None:
    needle = "needle-in-the-hay"
    async with stand.session() as session, stand.session("ctx-2") as other:
        sub = {"description": needle, "prompt": f"{needle} {script({'text': 'hi'})}"}
        run = await follow(
            session,
            turn(
                f"{needle} "
                + script(
                    {"tool": "Agent", "input": {**sub, "subagent_type": "general-purpose"}},
                    bash(f"yes {needle} | head -n 20000"),
                    {"text": needle},
                )
            ),
        )
        kept = await follow(other, turn(script({"text": "kept"}), id="turn-2"))
    places = (stand.state, Path(f"/tmp/claude-{os.getuid()}"))

    def kept_of(handle: str) -> list[Path]:
        return [path for place in places for path in place.rglob(f"{handle}*")]

    def holding() -> list[Path]:
        files = (path for path in stand.state.rglob("*") if path.is_file())
        return [path for path in files if needle.encode() in path.read_bytes()]

    assert len(holding()) >= 3, "transcript, subagent, large result"
    assert len(kept_of(run.handle)) >= 4
    asked = ForgottenSession(
        session_id="ctx-1", handle=run.handle, workdir=stand.workdir, state_dir=stand.state
    )
    assert set(await stand.adapter.forget(asked)) >= {
        str(stand.state / "config" / "session-env" / run.handle)
    }
    assert holding() == []
    assert kept_of(run.handle) == []
    assert kept_of(kept.handle)
    assert await stand.adapter.forget(asked) == []
    with pytest.raises(SessionLost):
        async with stand.session(resume=run.handle):
            pass
