"""What Claude Code's failures mean: who can do something about them, and what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...errors import AdapterError, RuntimeUnusable, TurnFailed

if TYPE_CHECKING:
    from claude_agent_sdk import ResultMessage


def of_result(result: ResultMessage, kind: str | None) -> AdapterError:
    """Return the error for a result that is neither an answer nor a stop of ours.

    Args:
        kind: the class of the API's error, as the CLI's last message gave it.
    """
    said = _one_line("; ".join(result.errors or ()) or result.result or "it gave no reason")
    match result.terminal_reason:
        case "max_turns":
            return TurnFailed(f"the agent did not finish in time: {said} (WORKSPACE_CLAUDE_MAX_TURNS)")
        case "budget_exhausted":
            return TurnFailed(f"the agent was stopped: {said} (WORKSPACE_CLAUDE_MAX_BUDGET_USD)")
        case "prompt_too_long":
            return TurnFailed(f"the conversation is too long for the model; begin a new one: {said}")
        case "aborted_tools" | "aborted_streaming":
            return TurnFailed("the turn was interrupted")
        case "hook_stopped":
            return TurnFailed(f"a hook in Claude Code's settings stopped the turn: {said}")
    if result.stop_reason == "refusal":
        return TurnFailed(f"the model refused: {said}")
    match kind:
        case "authentication_failed" | "billing_error":
            return RuntimeUnusable(
                f"the model's API does not accept the credentials: {said}; set or renew"
                " ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN or CLAUDE_CODE_OAUTH_TOKEN"
            )
        case "model_not_found":
            return RuntimeUnusable(f"the model cannot be used: {said} Check WORKSPACE_CLAUDE_MODEL")
        case "rate_limit" | "server_error":
            return TurnFailed(f"the model's API failed: {said}", retryable=True)
    return TurnFailed(f"the agent ended without an answer ({result.terminal_reason}): {said}")


def of_start(said: str, stderr: Iterable[str] = ()) -> RuntimeUnusable:
    """Return the error for a CLI that did not start; its own words go before the SDK's."""
    said = _one_line("; ".join(stderr) or said)
    return RuntimeUnusable(f"Claude Code does not start: {said}; check the WORKSPACE_CLAUDE_* settings")


def not_installed(what: str) -> RuntimeUnusable:
    """Return the error for a machine that lacks the SDK or the CLI."""
    return RuntimeUnusable(
        f"{what}: install workspace-adapter[claude], or name the program in WORKSPACE_CLAUDE_CLI"
    )


def _one_line(said: str) -> str:
    return " ".join(said.split())[:500]
