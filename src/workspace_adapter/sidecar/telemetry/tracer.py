"""The moving half of ``traces``: looks the ended turns up in the journal and has their spans sent.

Nobody waits for it. What cannot be sent in time is dropped, and the journal still has it.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ...errors import JournalError
from ...resume import Resumption
from ...traces import KEY, Attempt, Place, Span, spans
from ...turns import ENDED, Turn
from ..boot import message_of
from ..fence import dispensable
from ..journal import Journal
from ..sessions.eventlog import BEGUN

if TYPE_CHECKING:
    from .exporter import Exporter

logger = logging.getLogger(__name__)

_WHAT = "sending traces"

_MOST = 1000
"""Ended turns that may wait for their spans to be made."""


class Tracer:
    """Gives every turn its place in a trace, and tells of those that ended.

    Args:
        endpoint: see ``WORKSPACE_TRACES_ENDPOINT``.
        workspace_id: named in every span.
    """

    def __init__(self, journal: Journal, *, endpoint: str, workspace_id: str) -> None:
        self._journal = journal
        self._endpoint = endpoint
        self._workspace_id = workspace_id
        self._ended: deque[Turn] = deque(maxlen=_MOST)
        self._more = anyio.Event()
        self._loaded = anyio.Event()
        """The exporter is there, or cannot be."""
        self._exporter: Exporter | None = None

    def place(self, turn: Turn) -> Place:
        """Return where a turn stands whose message the journal still has."""
        message = message_of(self._journal.message(turn.id)) or {}
        return Place.of(turn.id, (message.get("metadata") or {}).get(KEY))

    def told(self, turn: Turn) -> None:
        """A turn ended, or was suspended: then it has not ended yet."""
        if turn.state in ENDED:
            self._ended.append(replace(turn, answer=None))
            self._more.set()

    async def run(self) -> None:
        """Tell of turns until cancelled; the first to end has the exporter loaded."""
        await self._more.wait()
        with dispensable(_WHAT):
            try:
                self._exporter = await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True)
            finally:
                self._loaded.set()
            while self._exporter is not None:
                self._more = anyio.Event()
                self._tell(self._exporter)
                await self._more.wait()
        self._exporter = None

    async def close(self, within: float) -> None:
        """Have sent what there is, in so many seconds at most."""
        with anyio.move_on_after(within) as waiting:
            if self._ended:
                await self._loaded.wait()
        if self._exporter is not None:
            with dispensable(_WHAT):
                self._tell(self._exporter)
            left = max(0.0, waiting.deadline - anyio.current_time())
            await anyio.to_thread.run_sync(self._exporter.close, left)

    def _load(self) -> Exporter | None:
        try:
            from .exporter import Exporter
        except ModuleNotFoundError as error:
            logger.warning(
                "no traces: WORKSPACE_TRACES_ENDPOINT needs an extra that is not installed:"
                " pip install 'workspace-adapter[otel]' (%s)",
                error,
            )
            return None
        made = Exporter(self._endpoint, workspace_id=self._workspace_id)
        logger.info("traces go to %s", self._endpoint)
        return made

    def _tell(self, exporter: Exporter) -> None:
        while self._ended:
            turn = self._ended.popleft()
            try:
                place, found = self._look_up(turn)
            except JournalError as error:
                logger.info("turn %s: its spans are not sent: %s", turn.id, error)
            else:
                exporter.export(place, found)

    def _look_up(self, turn: Turn) -> tuple[Place, list[Span]]:
        """Read from the journal what a turn's attempts were, and make spans of them."""
        said = self._journal.last_said(turn.id)
        attempts: dict[int, Attempt] = {}
        sent = None
        for logged in self._journal.events(turn.id, kind="status"):
            body, number = logged.body, logged.attempt
            if number > turn.attempt:  # it was asked for again meanwhile
                break
            if body["state"] == BEGUN:
                sent = body.get(KEY)
                attempts[number] = Attempt(
                    number=number,
                    began_at=logged.at,
                    resumption=body.get("resumption", Resumption.NEW),
                    anew=body.get("anew", False),
                    last_at=said[number],
                )
            elif number in attempts:
                attempts[number] = replace(attempts[number], stopped=body["state"])
        place = Place.of(turn.id, sent)
        return place, spans(turn, place, list(attempts.values()), self._journal.calls(turn.id))
