"""What is done to the journal from time to time: found writable again, and pruned."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import anyio

from ..errors import JournalUnavailable
from .door.parts import Uploads
from .gate import UNWRITABLE, Switch
from .journal import Journal

logger = logging.getLogger(__name__)

_PRUNE_EVERY = 60.0
_PROBE_EVERY = 0.5


class Housekeeping:
    """Closes the gate while the journal cannot be written, and forgets what is old.

    Args:
        retention: seconds; see ``WORKSPACE_JOURNAL_RETENTION``.
    """

    def __init__(self, switch: Switch, *, retention: float) -> None:
        self._switch = switch
        self._retention = retention
        self.healthy = True
        """Whether the journal can be written."""

    def on_health(self, healthy: bool) -> None:
        """The journal found out whether it can be written."""
        if healthy is self.healthy:
            return
        self.healthy = healthy
        if not healthy:
            logger.error("the journal cannot be written: no tool call and no turn starts until it can")
            self._switch.close(UNWRITABLE)

    async def run(self, journal: Journal, uploads: Uploads, reopened: Callable[[], None]) -> None:
        """Look after them until cancelled; ``reopened`` is called when turns may start again.

        Raises:
            JournalDamaged: once the journal was found damaged.
        """
        pruned = -math.inf  # a life may be shorter than the time between two
        while True:
            await anyio.sleep(_PROBE_EVERY)
            journal.check()
            try:
                if UNWRITABLE in self._switch.closed_by:
                    await journal.probe(room=True)
                    logger.warning("the journal can be written again")
                    if self._switch.open(UNWRITABLE):
                        reopened()
                elif anyio.current_time() - pruned > _PRUNE_EVERY:
                    pruned = anyio.current_time()
                    await self._prune(journal, uploads)
            except JournalUnavailable:
                continue

    async def _prune(self, journal: Journal, uploads: Uploads) -> None:
        await journal.prune(retention=self._retention, now=journal.clock())
        try:
            await uploads.prune(before=journal.time() - 2 * self._retention)
        except OSError as error:
            logger.warning("old uploads could not be removed: %s", error)
        if journal.has_traces:  # a life before this one did not come to it
            try:
                await journal.drive_out()
            except JournalUnavailable as error:
                logger.warning("what was forgotten still stands in unused parts of the journal: %s", error)
