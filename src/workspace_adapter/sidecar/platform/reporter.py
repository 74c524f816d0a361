"""Tells the platform from time to time what the agent does, while it does something."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import anyio

from ...errors import PlatformError
from ...telling import Work, activity_due, activity_line
from .errand import errand

logger = logging.getLogger(__name__)

AFTER = 5.0
"""Seconds of work that are worth a word."""

EVERY = 240.0
"""Seconds between two words. The existing platform restarts a workspace that it holds for
stuck: busy, and without an activity for twelve minutes."""

_RETRY = 30.0
"""Seconds after which a word that did not arrive is said again."""

_LOOK = 1.0


class Reporter:
    """One word for the whole workspace, however many turns run; whether it arrives matters to none.

    Args:
        work: what runs now.
        clock: the wall clock's time.
    """

    def __init__(
        self,
        work: Callable[[], Work],
        *,
        clock: Callable[[], float],
        after: float = AFTER,
        every: float = EVERY,
    ) -> None:
        self._work = work
        self._clock = clock
        self._after = after
        self._every = every
        self._warned = False

    async def run(self, post: Callable[[str], object]) -> None:
        """Look, and say what there is, until cancelled.

        Args:
            post: says one line; blocks, and raises ``PlatformError``.
        """
        busy_since: float | None = None
        told_at: float | None = None
        while True:
            await anyio.sleep(min(_LOOK, self._after))
            work, now = self._work(), anyio.current_time()
            if not work.doing:
                busy_since = None
                continue
            busy_since = now if busy_since is None else busy_since
            if now < activity_due(busy_since, told_at, after=self._after, every=self._every):
                continue
            told_at = now
            if not await self._say(activity_line(work, now=self._clock()), post):
                told_at = now - self._every + min(_RETRY, self._every)

    async def _say(self, line: str, post: Callable[[str], object]) -> bool:
        try:
            await errand(partial(post, line))
        except PlatformError as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            logger.log(level, "the platform could not be told what the agent does: %s", error)
            self._warned = True
            return False
        self._warned = False
        return True
