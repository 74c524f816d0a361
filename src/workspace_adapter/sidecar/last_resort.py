"""The end of the process where nothing else brings it in time.

A runtime that swallows its cancellation, or blocks the event loop, must not keep the
workspace from stopping. What is cut here is continued by the next start, as after SIGKILL.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class LastResort:
    """Ends the process from a thread of its own.

    Args:
        clean_up: called before; it ends what would outlive the process, and must not wait
            for the event loop.
    """

    def __init__(self, clean_up: Callable[[], object]) -> None:
        self._clean_up = clean_up

    def within(self, seconds: float) -> None:
        """End the process when it has not ended by itself by then; the earliest call counts."""
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        logger.error(
            "something does not stop: the process is ended without it, and the next start continues"
            " what is cut"
        )
        try:
            self._clean_up()
        finally:
            os._exit(1)
