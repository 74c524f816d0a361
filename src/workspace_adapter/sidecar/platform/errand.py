"""A call to the platform that keeps nobody: neither the event loop nor the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.from_thread
import anyio.lowlevel

from ...errors import PlatformError


async def errand(call: Callable[[], object]) -> None:
    """Make a blocking call in a thread of its own; who is cancelled meanwhile leaves it behind.

    The threads that anyio lends are joined when the process ends: a platform that does not
    answer would keep a stopped workspace until its engine kills it.

    Raises:
        PlatformError: as the call raised it.
    """
    token = anyio.lowlevel.current_token()
    over = anyio.Event()
    failures: list[PlatformError] = []

    def run() -> None:
        try:
            call()
        except PlatformError as error:
            failures.append(error)
        finally:
            with suppress(RuntimeError):  # nobody is there any more
                anyio.from_thread.run_sync(over.set, token=token)

    threading.Thread(target=run, name="errand", daemon=True).start()
    await over.wait()
    if failures:
        raise failures[0]
