"""One conversation with one Claude Code process."""

from __future__ import annotations

import base64
import logging
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectSendStream
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeSDKClient,
    ClaudeSDKError,
    Message,
    ProcessError,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from ...adapter import FilePart, RuntimeSession, StopReason, TurnRequest
from ...errors import RuntimeLost
from ...events import Activity, Finish, SessionBound, SessionHandle, Text, TurnEvent, TurnFinished, Usage
from ...resume import Resumption
from . import failures
from .calls import Calls
from .names import prompt_uuid

logger = logging.getLogger(__name__)

_BUFFER = 1024
"""Messages a slow consumer may fall behind before the CLI's hooks must wait for it."""

_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_IMAGE_LIMIT = 5 << 20
"""Bytes, encoded; what the API takes. Larger ones, and other files, are given as paths."""


@dataclass(slots=True)
class _Turn:
    """The running turn."""

    prompt: str
    """The uuid its prompt was sent under."""
    messages: MemoryObjectSendStream[Message]
    begun: bool = False
    """The CLI works on it."""
    canceled: bool = False
    failure: str | None = None
    """The class of an error of the API's."""
    said: bool = False
    """Text was yielded."""


class ClaudeSession(RuntimeSession):
    """One connected client, its reader and its tool calls."""

    def __init__(
        self,
        client: ClaudeSDKClient,
        pid: int,
        calls: Calls,
        stderr: deque[str],
        bound: SessionHandle | None,
        unusable: Callable[[str], None],
    ) -> None:
        self.pid = pid
        """Of the CLI."""
        self._client = client
        self._calls = calls
        self._stderr = stderr
        self._bound = bound
        self._unusable = unusable
        """Told of each plugin that Claude Code could not load, or not all of it."""
        self._turn: _Turn | None = None
        self._left = False
        """A turn was left in the middle, and the CLI goes on with it."""
        self._ended: RuntimeLost | None = None
        """The CLI is gone, and why."""

    async def read(self) -> None:
        """Take in whatever the CLI says, always: what is left unread would block its hooks."""
        try:
            async for message in self._client.receive_messages():
                await self._heard(message)
            self._ended = self._gone("Claude Code ended")
        except ProcessError as error:
            self._ended = self._gone(f"Claude Code ended with exit code {error.exit_code}")
        except ClaudeSDKError as error:
            self._terminate()
            self._ended = self._gone(f"Claude Code could not be understood: {error}")
        finally:
            if self._turn is not None:
                self._turn.messages.close()

    async def _heard(self, message: Message) -> None:
        if isinstance(message, UserMessage) and not isinstance(message.content, str):
            for block in message.content:
                if isinstance(block, ToolResultBlock):
                    await self._calls.result(block.tool_use_id, ok=not block.is_error)
        if self._turn is not None:
            # Broken or closed: the turn was left this very moment.
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self._turn.messages.send(message)
        elif isinstance(message, ResultMessage):
            logger.info("a result nobody asked for was ignored: %s", message.terminal_reason)

    def _gone(self, how: str) -> RuntimeLost:
        return RuntimeLost("\n  ".join([how, *self._stderr]))

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Send one prompt and follow it to its result."""
        if self._ended is not None:
            raise self._ended
        if self._left:
            raise RuntimeLost("Claude Code is still busy with a turn that was left in the middle")
        send, messages = anyio.create_memory_object_stream[Message](_BUFFER)
        running = self._turn = _Turn(prompt_uuid(turn.id, turn.attempt), send)
        self._calls.begin()
        result: ResultMessage | None = None
        try:
            await self._send(running.prompt, await anyio.to_thread.run_sync(_content, turn))
            async for message in messages:
                if isinstance(message, ResultMessage):
                    if not _answers(message, running.prompt):
                        logger.info("a result of another prompt was ignored: %s", message.terminal_reason)
                        continue
                    result = message
                    break
                for event in self._events(running, message):
                    yield event
                if isinstance(message, SystemMessage) and message.subtype == "init":
                    running.begun = True
                    if running.canceled:
                        await self._interrupt()
        finally:
            messages.close()
            send.close()
            self._turn = None
            if result is None:
                self._left = True
                self._calls.cut()
        if result is None:
            raise self._ended or self._gone("Claude Code ended")
        await self._calls.end()
        for event in self._last_events(running, result):
            yield event

    async def _send(self, prompt: str, content: str | list[dict[str, Any]]) -> None:
        async def messages() -> AsyncIterator[dict[str, Any]]:
            yield {
                "type": "user",
                "uuid": prompt,
                "message": {"role": "user", "content": content},
                "parent_tool_use_id": None,
            }

        try:
            await self._client.query(messages())
        except ClaudeSDKError as error:
            raise self._gone(f"Claude Code took no prompt: {error}") from error

    def _events(self, turn: _Turn, message: Message) -> Iterator[TurnEvent]:
        match message:
            case AssistantMessage(error=str(failure)):
                turn.failure = failure  # the result says it in words
            case AssistantMessage(parent_tool_use_id=None, content=blocks):
                for block in blocks:
                    if isinstance(block, TextBlock) and block.text:
                        yield Text(f"\n\n{block.text}" if turn.said else block.text)
                        turn.said = True
                    elif isinstance(block, ToolUseBlock):
                        yield Activity(_activity(block))
            case AssistantMessage(content=blocks):
                for block in blocks:
                    if isinstance(block, ToolUseBlock):
                        yield Activity(f"subagent: {_activity(block)}")
            case SystemMessage(subtype="init", data=data):
                # The prompt is on disk by now, so that this session can be resumed.
                yield from self._bind(data["session_id"])
                for trouble in data.get("plugin_errors") or ():
                    self._unusable(f"{trouble.get('plugin')}: {trouble.get('message')}")
            case SystemMessage(subtype="api_retry", data=data):
                reason = data.get("error_status") or data.get("error") or "unreachable"
                yield Activity(
                    f"waiting for the model's API ({reason}),"
                    f" try {data.get('attempt')} of {data.get('max_retries')}"
                )

    def _bind(self, session_id: str) -> Iterator[SessionBound]:
        if session_id != self._bound:
            self._bound = SessionHandle(session_id)
            yield SessionBound(self._bound)

    def _last_events(self, turn: _Turn, result: ResultMessage) -> Iterator[TurnEvent]:
        """What a result comes to.

        Raises:
            TurnFailed, RuntimeUnusable: it is neither an answer nor a stop of ours.
        """
        yield from self._bind(result.session_id)
        if result.usage:
            yield _usage(result.usage)
        if result.terminal_reason == "hook_stopped" and self._calls.stopped:
            yield TurnFinished(finish=Finish.PARKED)
        elif result.terminal_reason in ("completed", None) and not result.is_error:
            yield TurnFinished(answer=result.result)
        else:
            raise failures.of_result(result, turn.failure)

    async def stop(self, why: StopReason) -> None:
        """Cancel by an interrupt, after which the session is good; restart by SIGTERM.

        An interrupt would tell the model that the user had rejected its tool call; after
        SIGTERM it reads that the outcome is unknown.
        """
        if why is StopReason.RESTART:
            self._terminate()
        elif self._turn is not None:
            self._turn.canceled = True
            if self._turn.begun:  # else the CLI would forget it; it is said once the turn has begun
                await self._interrupt()

    async def _interrupt(self) -> None:
        with suppress(ClaudeSDKError):  # the CLI died, as the reader will hear
            await self._client.interrupt()

    async def close(self) -> None:
        """End the CLI: an idle one by the end of its input, a busy one by SIGTERM.

        Bounded by the SDK, which goes on to SIGTERM and SIGKILL.
        """
        if self._turn is not None or self._left:
            self._terminate()
        with anyio.CancelScope(shield=True):
            await self._client.disconnect()

    def _terminate(self) -> None:
        """Send SIGTERM, on which the CLI ends its tools and itself."""
        if self._ended is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def _answers(result: ResultMessage, prompt: str) -> bool:
    """Whether a result is of this prompt; background work has results of its own."""
    if result.user_message_uuid is None:
        return result.origin is None
    return prompt in (result.user_message_uuid, *(result.user_message_uuids or ()))


def _usage(usage: dict[str, Any]) -> Usage:
    sent = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return Usage(
        input_tokens=sum(usage.get(name) or 0 for name in sent),
        output_tokens=usage.get("output_tokens") or 0,
    )


def _activity(use: ToolUseBlock) -> str:
    """What a tool is used for, in one line; never its arguments, which may hold anything."""
    lines = str(use.input.get("description") or "").splitlines()
    return f"{use.name}: {lines[0][:200]}" if lines else use.name


def _content(turn: TurnRequest) -> str | list[dict[str, Any]]:
    """The prompt: text, and images as images where the model takes them."""
    images = [] if turn.resumption is Resumption.CONTINUE else list(_images(turn))
    return [{"type": "text", "text": turn.prompt}, *images] if images else turn.prompt


def _images(turn: TurnRequest) -> Iterator[dict[str, Any]]:
    for part in turn.parts:
        if isinstance(part, FilePart) and part.mime_type in _IMAGES:
            try:
                data = base64.b64encode(part.path.read_bytes()).decode()
            except OSError as error:
                logger.warning("image %s is given as a path only: %s", part.name, error.strerror)
                continue
            if len(data) <= _IMAGE_LIMIT:
                source = {"type": "base64", "media_type": part.mime_type, "data": data}
                yield {"type": "image", "source": source}
