"""The messages that a workspace sends itself: one when it begins, others while it is idle."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import anyio

from ...errors import JournalUnavailable, Refused
from ...settings import Settings
from ...turns import INITIAL_PROMPT, Turn
from ...wire import canvas_context, content_hash
from ..journal import Accepted, Journal, NewTurn, new_id

logger = logging.getLogger(__name__)

_IDLE_PROMPT = "self-idle"

_ONCE = "initial-prompt"
"""What the journal remembers of the first; also its identity, which no message of a caller can have."""

_RETRY = 5.0
_LOOK = 1.0


class OwnPrompts:
    """Puts them in line as anybody's message, in the conversation with the user of the canvas.

    Args:
        submit: puts a turn in line.
        idle: whether nothing runs or waits, and work is taken.
        clock: the wall clock's time.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        settings: Settings,
        submit: Callable[[Turn], None],
        idle: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._settings = settings
        self._submit = submit
        self._idle = idle
        self._clock = clock

    async def run(self) -> None:
        """Send what there is to send, until cancelled."""
        if self._settings.initial_prompt is not None:
            await self._begin(self._settings.initial_prompt)
        if self._settings.idle_prompt is not None:
            await self._while_idle(self._settings.idle_prompt)

    async def _begin(self, text: str) -> None:
        """Send the first, unless this journal has known one; what was cut of it is resumed as any work."""
        said = False
        while True:
            try:
                accepted = await self._journal.accept_once(
                    self._new(text, INITIAL_PROMPT, key=_ONCE), fact=_ONCE, **self._limits()
                )
            except (Refused, JournalUnavailable) as error:
                if not said:
                    logger.warning("WORKSPACE_INITIAL_PROMPT has to wait: %s", error)
                said = True
                await anyio.sleep(_RETRY)
                continue
            if accepted is not None and not accepted.joined:
                self._put_in_line(accepted, "WORKSPACE_INITIAL_PROMPT")
            return

    async def _while_idle(self, text: str) -> None:
        """Send the others, each when nothing was done for as long as is set."""
        interval = self._settings.idle_interval
        idle_since = anyio.current_time()
        while True:
            await anyio.sleep(min(_LOOK, interval / 4))
            now = anyio.current_time()
            if not self._idle():
                idle_since = now
            elif now - idle_since >= interval:
                idle_since = now
                await self._send_idle(text)

    async def _send_idle(self, text: str) -> None:
        new = self._new(text, _IDLE_PROMPT, key=f"{_IDLE_PROMPT} {new_id()}")
        try:
            accepted = await self._journal.accept(new, **self._limits())
        except (Refused, JournalUnavailable) as error:
            logger.info("WORKSPACE_IDLE_PROMPT is left out this time: %s", error)
        else:
            self._put_in_line(accepted, "WORKSPACE_IDLE_PROMPT")

    def _put_in_line(self, accepted: Accepted, what: str) -> None:
        turn = accepted.turn
        logger.info("turn %s: %s", turn.id, what, extra={"turn_id": turn.id, "session_id": turn.session_id})
        self._submit(turn)

    def _limits(self) -> dict[str, int]:
        return {
            "inbox_limit": self._settings.inbox_limit,
            "limit_bytes": self._settings.journal_limit_bytes,
        }

    def _new(self, text: str, source: str, *, key: str) -> NewTurn:
        session_id = canvas_context(self._settings.workspace_id)
        message: dict[str, Any] = {
            "role": "user",
            "messageId": key,
            "contextId": session_id,
            "parts": [{"kind": "text", "text": text}],
            "metadata": {"source_type": source},
        }
        return NewTurn(
            turn_id=new_id(),
            task_id=new_id(),
            session_id=session_id,
            turn_key=key,
            content_hash=content_hash(message),
            message_id=key,
            caller=None,
            source=source,
            message=json.dumps(message).encode(),
            accepted_at=self._clock(),
            expires_at=None,
        )
