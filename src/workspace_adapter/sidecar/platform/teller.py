"""Tells the user of the canvas, through the platform, what no caller was there to hear."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from functools import partial

import anyio

from ...errors import JournalUnavailable, PlatformError
from ...telling import Tries, is_refusal, notification
from ...turns import TOLD, Turn
from ..insist import RETRY, insist
from ..journal import Journal
from .errand import errand

logger = logging.getLogger(__name__)


class Teller:
    """Sends each such end until the platform takes it or refuses it for good.

    The journal is the queue: what was not recorded as told is found there by every life.

    Args:
        patience: seconds that an end waits for its caller to collect it; from the start of
            this life on for what earlier ones left.
        heard: whether a turn's end is on its way to a caller.
        clock: the wall clock's time.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        patience: float,
        heard: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._patience = patience
        self._heard = heard
        self._clock = clock
        self._due: dict[str, float] = {}
        """Turns that are not to be told yet, and until when."""
        self._tries = Tries()
        self._held_until = -math.inf
        self._look_at = math.inf
        self._sooner = anyio.Event()

    def ended(self, turn: Turn) -> None:
        """A turn ended, or was suspended: whoever waits for it hears it now."""
        if turn.canvas:
            self._wait(turn.id, self._patience)

    async def run(self, notify: Callable[[str], object]) -> None:
        """Tell until cancelled.

        Args:
            notify: shows the user a message; blocks, and raises ``PlatformError``.
        """
        # What earlier lives left waits as long: its caller may be on the way back.
        self._held_until = anyio.current_time() + self._patience
        self._look(self._held_until)
        while True:
            sooner = self._sooner
            if (wait := self._look_at - anyio.current_time()) > 0:
                with anyio.move_on_after(None if wait == math.inf else wait):
                    await sooner.wait()
                continue
            self._look_at = math.inf
            try:
                await self._tell_all(notify)
            except JournalUnavailable:
                self._look(anyio.current_time() + RETRY)

    async def _tell_all(self, notify: Callable[[str], object]) -> None:
        untold = self._journal.untold()
        for gone in self._due.keys() - {*untold}:  # heard by its caller meanwhile, or running again
            del self._due[gone]
        now = anyio.current_time()
        for turn_id in self._tries.in_order(untold):
            due = max(self._due.get(turn_id, now), self._held_until)
            if due > now:
                self._look(due)
            elif self._heard(turn_id):
                self._wait(turn_id, self._patience)
            elif (turn := self._journal.turn(turn_id)) is not None and _is_untold(turn):
                await self._tell(turn, notify)

    async def _tell(self, turn: Turn, notify: Callable[[str], object]) -> None:
        refused = None
        try:
            # Not waited for when the stop comes: at worst the next life tells it once more.
            await errand(partial(notify, notification(turn)))
        except PlatformError as error:
            if is_refusal(error.status):
                refused = f"HTTP {error.status}"
                logger.error("turn %s: its user will not be told how it ended: %s", turn.id, error)
            elif not _was_taken(error.status):
                self._try_again(turn, error)
                return
        # Only now: dying before this line tells the user twice, dying after it never.
        await insist(
            lambda: self._journal.notified(turn.id, turn.attempt, refused=refused, now=self._clock())
        )
        if self._tries.fail_for_all:
            logger.warning("the platform can be told again how turns ended")
        self._tries.told()
        if refused is None:
            logger.info("turn %s: told to the user of the canvas", turn.id, extra={"turn_id": turn.id})

    def _try_again(self, turn: Turn, error: PlatformError) -> None:
        # The chance is for spreading tries, not for secrets.
        wait = self._tries.failed(
            turn.id, status=error.status, asked=error.retry_after, chance=random.random()
        )
        if wait.own is not None:
            self._wait(turn.id, wait.own)
        if wait.all is not None:
            self._held_until = anyio.current_time() + wait.all
            self._look(self._held_until)
        if wait.is_news:
            logger.warning(
                "turn %s: its user could not be told how it ended: %s. Tried again for as long as the turn is"
                " kept",
                turn.id,
                error,
            )

    def _wait(self, turn_id: str, seconds: float) -> None:
        self._due[turn_id] = anyio.current_time() + seconds
        self._look(self._due[turn_id])

    def _look(self, at: float) -> None:
        if at < self._look_at:
            self._look_at = at
            self._sooner.set()
            self._sooner = anyio.Event()


def _is_untold(turn: Turn) -> bool:
    return turn.state in TOLD and turn.delivered_at is None and turn.notified_at is None


def _was_taken(status: int | None) -> bool:
    """Whether it was taken, though the reply cannot be read."""
    return status is not None and 200 <= status < 300
