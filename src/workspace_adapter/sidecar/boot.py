"""The plan's moving half: reap, look, plan, resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from ..adapter import InterruptedTurn, RuntimeAdapter
from ..errors import AdapterError, BadMessage
from ..events import SessionHandle
from ..resume import Evidence, Limits, Verdict, given_up_note, plan
from ..turns import State, Turn
from ..wire import SentData, SentFile, SentText, parse_parts
from .children import reap_other_lives
from .fence import fence
from .insist import insist
from .journal import Journal

logger = logging.getLogger(__name__)


class Recovery:
    """Finds out what became of turns nobody runs; at boot and in life by the same path."""

    def __init__(
        self,
        *,
        adapter: RuntimeAdapter,
        journal: Journal,
        limits: Limits,
        look_limit: float,
        workdir: Path,
        adapter_dir: Path,
        awaited: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._awaited = awaited
        self._adapter = adapter
        self._journal = journal
        self._limits = limits
        self._look_limit = look_limit
        self._workdir = workdir
        self._adapter_dir = adapter_dir
        self._clock = clock

    async def unfinished(self) -> list[Turn]:
        """End what other lives left running; return what must go in line, oldest first.

        A turn found ``running`` becomes ``interrupted``: its process is gone.
        """
        reaped = await reap_other_lives(self._journal)
        if reaped:
            logger.warning("ended %d processes that an earlier life had left running", reaped)
        found = self._journal.unfinished()
        async with anyio.create_task_group() as writes:
            for turn in found:
                if turn.state is State.RUNNING:
                    writes.start_soon(self._interrupted, turn)
        return self._journal.unfinished()

    async def _interrupted(self, turn: Turn) -> None:
        await insist(
            lambda: self._journal.change(
                turn.id,
                expect=(State.RUNNING,),
                to=State.INTERRUPTED,
                cause="found running at boot",
                now=self._clock(),
            )
        )

    async def judge(
        self, turn: Turn, *, evidence: Evidence | None = None, asked_again: bool = False
    ) -> Verdict:
        """Look at one interrupted turn and decide; logs the verdict with its reason.

        Args:
            evidence: where it is known already, so that the runtime need not look.
        """
        now = self._clock()  # before the look, which takes time in which the clock may be set
        text = text_of(message_of(self._journal.message(turn.id)))
        if evidence is None:
            evidence = await self._look(turn, text)
        verdict = plan(
            turn,
            self._journal.calls(turn.id),
            evidence,
            text=text,
            now=now,
            limits=self._limits,
            asked_again=asked_again,
            awaited=self._awaited(turn.id),
        )
        logger.info(
            "turn %s: %s%s, because %s (found %s, attempt %d so far)",
            turn.id,
            verdict.action,
            f" ({verdict.resumption})" if verdict.action == "resume" else "",
            verdict.because,
            evidence.found,
            turn.attempt,
            extra={"turn_id": turn.id, "session_id": turn.session_id},
        )
        return verdict

    def opening_note(self, turn: Turn) -> str | None:
        """Tell a new turn what its session must know of the one before it."""
        before = self._journal.previous_in_session(turn)
        return given_up_note(before) if before and before.state is State.SUSPENDED else None

    async def _look(self, turn: Turn, text: str) -> Evidence:
        session = self._journal.session(turn.session_id)
        handle: SessionHandle | None = session.handle if session else None
        asked = InterruptedTurn(
            id=turn.id,
            attempts=turn.attempt,
            session_id=turn.session_id,
            handle=handle,
            workdir=self._workdir,
            state_dir=self._adapter_dir,
            text=text,
        )
        try:
            with anyio.fail_after(self._look_limit), fence("recover"):
                evidence = await self._adapter.recover(asked)
                if not (isinstance(evidence, Evidence) and isinstance(evidence.answer, str | None)):
                    raise TypeError("it must return an Evidence, with an answer of text")
                return evidence
        except (AdapterError, TimeoutError) as error:
            logger.warning("turn %s: no evidence (%s); taken as seen", turn.id, type(error).__name__)
            return Evidence.seen()


def message_of(stored: bytes | None) -> dict[str, Any] | None:
    """Read a journalled message; ``None`` where it was lost, or damaged so that nobody can."""
    try:
        message = json.loads(stored or b"null")
        if isinstance(message, dict):
            parse_parts(message)
            return message
    except (ValueError, BadMessage):
        pass
    return None


def text_of(message: Mapping[str, Any] | None) -> str:
    """Return a message as text, for a note to quote and a runtime to search for."""
    if message is None:
        return ""
    lines = []
    for part in parse_parts(message):
        match part:
            case SentText(text=text):
                lines.append(text)
            case SentFile(uri=uri, name=name):
                lines.append(f"[file {name}: {uri}]")
            case SentData(value=value):
                lines.append(json.dumps(value, ensure_ascii=False))
            case _:
                lines.append(f"[file {part.name}]")
    return "\n".join(lines)
