"""The hooks by which Claude Code asks before a tool call and tells of its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from ...adapter import Permit, ToolGate
from ...events import ToolCall

if TYPE_CHECKING:
    from claude_agent_sdk import HookContext, HookMatcher
    from claude_agent_sdk.types import HookEvent, HookJSONOutput

_STOPPED = "The workspace stopped the turn here."
_REFUSED = f"{_STOPPED} This call was not made."
_PATIENCE = 7 * 24 * 3600.0
"""Seconds a hook may take; the default of ten minutes would refuse the call."""


class Calls:
    """One session's tool calls, between its CLI and its gate.

    ``stopped`` says whether the running turn was told to stop at the gate.
    """

    def __init__(self, gate: ToolGate) -> None:
        self._gate = gate
        self._open: set[str] = set()
        self._failed: set[str] = set()
        self._running = False
        self.stopped = False

    def begin(self) -> None:
        """A turn begins."""
        self._running, self.stopped = True, False

    def cut(self) -> None:
        """The turn is over for us; nobody saw its open calls end."""
        self._running = False
        self._open.clear()
        self._failed.clear()

    async def end(self) -> None:
        """The turn ended, and with it every call that is still open."""
        self._running = False
        for call_id in tuple(self._open):
            await self._ended(call_id, ok=False)
        self._failed.clear()

    async def result(self, call_id: str, *, ok: bool) -> None:
        """A call's result came by in the stream.

        A failure that no hook told of was refused by the permission rules; or it is what a
        CLI that is being killed says of a tool it takes along, whose outcome is unknown.
        It counts as an end only when the CLI goes on from there.
        """
        if ok:
            await self._ended(call_id, ok=True)
        else:
            self._failed.add(call_id)

    async def _ended(self, call_id: str, *, ok: bool) -> None:
        """Only the first to say so is heard."""
        if call_id in self._open:
            self._open.discard(call_id)
            await self._gate.ended(call_id, ok=ok)

    def hooks(self) -> dict[HookEvent, list[HookMatcher]]:
        """What the CLI is given. A hook that fails refuses the call."""
        from claude_agent_sdk import HookMatcher

        hooks = {
            "PreToolUse": HookMatcher(hooks=[self._before], timeout=_PATIENCE, on_failure="block"),
            "PostToolUse": HookMatcher(hooks=[self._after], timeout=_PATIENCE),
            "PostToolUseFailure": HookMatcher(hooks=[self._after], timeout=_PATIENCE),
            "PostToolBatch": HookMatcher(hooks=[self._boundary], timeout=_PATIENCE),
        }
        # PostToolBatch is missing from the SDK's list of names; the CLI knows it.
        return {cast("HookEvent", event): [matcher] for event, matcher in hooks.items()}

    async def _before(self, asked: Any, call_id: str | None, _: HookContext) -> HookJSONOutput:
        call = ToolCall(
            id=asked["tool_use_id"],
            name=asked["tool_name"],
            arguments=json.dumps(asked["tool_input"], sort_keys=True, ensure_ascii=False),
        )
        if self._running:
            # Open before it is asked for: the permit may be on disk though we never hear of it.
            self._open.add(call.id)
            if await self._gate.ask(call) is Permit.GRANTED:
                return {}
            self._open.discard(call.id)
        self.stopped = True
        return {
            "continue_": False,
            "stopReason": _STOPPED,
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse",
                "permissionDecision": "deny",
                "permissionDecisionReason": _REFUSED,
            },
        }

    async def _after(self, told: Any, call_id: str | None, _: HookContext) -> HookJSONOutput:
        await self._ended(told["tool_use_id"], ok=told["hook_event_name"] == "PostToolUse")
        return self._go_on()

    async def _boundary(self, told: Any, batch_id: str | None, _: HookContext) -> HookJSONOutput:
        while self._failed:
            await self._ended(self._failed.pop(), ok=False)
        return self._go_on()

    def _go_on(self) -> HookJSONOutput:
        """Stop the turn here when the gate has closed; a subagent's stop must reach its parent."""
        if self._gate.opened() and not self.stopped:
            return {}
        self.stopped = True
        return {"continue_": False, "stopReason": _STOPPED}
