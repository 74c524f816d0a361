"""What Claude Code's failures mean: who can do something about them, and what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import AdapterError, RuntimeUnusable, TurnFailed

if TYPE_CHECKING:
    from claude_agent_sdk import ResultMessage

_CREDENTIALS = "ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN or CLAUDE_CODE_OAUTH_TOKEN"
_TRANSIENT = {408, 409, 425, 429}


def of_result(result: ResultMessage) -> AdapterError:
    """Return the error for a result that is neither an answer nor a stop of ours."""
    said = _said(result)
    status = result.api_error_status
    match result.subtype:
        case "error_max_turns":
            return TurnFailed(
                f"the agent made {result.num_turns} model calls without finishing"
                " (WORKSPACE_CLAUDE_MAX_TURNS)"
            )
        case "error_max_budget_usd":
            return TurnFailed("the session has spent its budget (WORKSPACE_CLAUDE_MAX_BUDGET_USD)")
    if result.stop_reason == "refusal":
        return TurnFailed(f"the model refused the request: {said}")
    if result.terminal_reason in ("aborted_tools", "aborted_streaming"):
        return TurnFailed("the turn was interrupted")
    if "not logged in" in said.lower() or status in (401, 403):
        return RuntimeUnusable(
            f"the model's API refuses the credentials ({said}): set or renew {_CREDENTIALS}"
        )
    if status == 404:
        return RuntimeUnusable(
            f"the model's API does not know the model ({said}): check WORKSPACE_CLAUDE_MODEL"
        )
    if "prompt is too long" in said.lower():
        return TurnFailed("the conversation no longer fits the model's context; begin a new one")
    if result.terminal_reason == "api_error":
        transient = status is None or status in _TRANSIENT or status >= 500
        return TurnFailed(f"the model's API failed: {said}", retryable=transient)
    return TurnFailed(
        f"the agent stopped without an answer ({result.terminal_reason or result.subtype}): {said}"
    )


def of_start(said: str) -> RuntimeUnusable:
    """Return the error for a CLI that did not start; ``said`` is what it and the SDK wrote."""
    if "root/sudo" in said:
        hint = "run the container as another user, or set IS_SANDBOX=1"
    elif "not found" in said.lower():
        hint = "install workspace-adapter[claude], or name the program in WORKSPACE_CLAUDE_CLI"
    else:
        hint = "check the WORKSPACE_CLAUDE_* settings"
    return RuntimeUnusable(f"Claude Code does not start: {said}; {hint}")


def _said(result: ResultMessage) -> str:
    """The failure in the runtime's own words, in one line."""
    said = "; ".join(result.errors or ()) or result.result or result.terminal_reason or result.subtype
    return " ".join(said.split())[:500]
