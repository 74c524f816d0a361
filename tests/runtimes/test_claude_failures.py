"""What a person reads when Claude Code or its model fails; from the real CLI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workspace_adapter.errors import AdapterError, RuntimeUnusable, TurnFailed
from workspace_adapter.events import Activity
from workspace_adapter.runtimes.claude import ClaudeSettings

from ..walks.workspace import answer_of, workspace
from .claude_stand import Run, Stand, bash, follow, script, stand, turn

__all__ = ["stand"]


async def failure(stand: Stand, *steps: dict[str, Any]) -> AdapterError:
    async with stand.session() as session:
        with pytest.raises(AdapterError) as caught:
            await follow(session, turn(script(*steps)))
    return caught.value


@pytest.mark.parametrize("status", [429, 500, 529])
async def test_a_model_that_is_down_or_busy_may_be_tried_again(stand: Stand, status: int) -> None:
    run = Run()
    async with stand.session() as session:
        with pytest.raises(TurnFailed, match="the model's API failed") as caught:
            await follow(session, turn(script({"error": status})), run)
        assert caught.value.retryable
        assert Activity(f"waiting for the model's API ({status}), try 1 of 1") in run.events
        good = await follow(session, turn(script({"text": "up again"}), id="turn-2"))
    assert good.finished.answer == "up again"
    assert len(stand.children.pids) == 1, "the session was still good"


@pytest.mark.parametrize(
    "base_url", ["http://127.0.0.1:9", None], ids=["connection refused", "connection dropped"]
)
async def test_a_model_out_of_reach_may_be_tried_again(stand: Stand, base_url: str | None) -> None:
    if base_url is not None:
        stand.environ["ANTHROPIC_BASE_URL"] = base_url
    error = await failure(stand, {"drop": True})
    assert isinstance(error, TurnFailed)
    assert error.retryable


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_named_with_their_variables(stand: Stand, status: int) -> None:
    error = await failure(stand, {"error": status, "message": "no"})
    assert isinstance(error, RuntimeUnusable)
    assert "ANTHROPIC_API_KEY" in str(error)


async def test_missing_credentials_are_named_with_their_variables(stand: Stand) -> None:
    del stand.environ["ANTHROPIC_API_KEY"]
    error = await failure(stand, {"text": "never asked"})
    assert isinstance(error, RuntimeUnusable)
    assert "ANTHROPIC_API_KEY" in str(error)
    assert stand.model.requests == []


async def test_an_unknown_model_names_its_setting(stand: Stand) -> None:
    stand.use(ClaudeSettings(model="no-such-model"))
    error = await failure(stand, {"error": 404, "message": "model: no-such-model"})
    assert isinstance(error, RuntimeUnusable)
    assert "WORKSPACE_CLAUDE_MODEL" in str(error)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"error": 400, "message": "prompt is too long: 250000 tokens > 200000 maximum"}], "too long"),
        ([{"error": 413, "message": "too large"}], "too large"),
        ([{"error": 400, "message": "bad thing"}], "bad thing"),
        ([{"text": "no", "stop_reason": "refusal"}], "refused"),
        ([{"text": "cut", "stop_reason": "max_tokens"}], "output token maximum"),
    ],
    ids=["prompt too long", "request too large", "bad request", "refusal", "answer too long"],
)
async def test_what_will_not_get_better_is_final(stand: Stand, steps: list[Any], words: str) -> None:
    error = await failure(stand, *steps)
    assert isinstance(error, TurnFailed)
    assert not error.retryable
    assert words in str(error)


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (ClaudeSettings(max_turns=1), "WORKSPACE_CLAUDE_MAX_TURNS"),
        (ClaudeSettings(max_budget_usd=0.001), "WORKSPACE_CLAUDE_MAX_BUDGET_USD"),
    ],
    ids=["turns", "budget"],
)
async def test_a_limit_of_the_operators_is_named_and_final(
    stand: Stand, settings: ClaudeSettings, variable: str
) -> None:
    stand.use(settings)
    error = await failure(stand, bash("true"), bash("true"), {"text": "x"})
    assert isinstance(error, TurnFailed)
    assert not error.retryable
    assert variable in str(error)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ClaudeSettings(cli="/nowhere/claude"), "WORKSPACE_CLAUDE_CLI"),
        (ClaudeSettings(cli="/etc/passwd"), "/etc/passwd: Permission denied"),
        (ClaudeSettings(mcp_config="/nowhere/mcp.json"), "/nowhere/mcp.json"),
        (ClaudeSettings(system_prompt_file="/nowhere/prompt.md"), "/nowhere/prompt.md"),
    ],
    ids=["no CLI", "no program", "no MCP file", "no system prompt"],
)
async def test_a_cli_that_cannot_start_says_why(stand: Stand, settings: ClaudeSettings, words: str) -> None:
    stand.use(settings)
    with pytest.raises(RuntimeUnusable) as caught:
        async with stand.session():
            pass
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_check_fails_where_there_is_no_cli(stand: Stand) -> None:
    stand.use(ClaudeSettings(cli="/nowhere/claude"))
    with pytest.raises(RuntimeUnusable, match="WORKSPACE_CLAUDE_CLI"):
        await stand.adapter.check()


async def test_a_directory_that_cannot_hold_conversations_is_refused(stand: Stand, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    stand.use(ClaudeSettings(config_dir=str(taken)))
    with pytest.raises(RuntimeUnusable, match="CLAUDE_CONFIG_DIR"):
        async with stand.session():
            pass


async def test_a_workspace_without_the_sdk_starts_and_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "claude_agent_sdk.py").write_text("raise ImportError('nothing is here')\n")
    async with workspace(tmp_path, "claude") as ws:
        answer = await ws.send("hello")
    assert "nothing is here: install workspace-adapter[claude]" in answer_of(answer.json())
