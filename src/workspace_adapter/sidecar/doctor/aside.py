"""Does what may hang, crash or print in a process of its own.

A look at a dead network mount cannot be interrupted, nor can some name lookups; and an
adapter's code may do anything. Whoever asks waits for each as long as it likes.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

_LEAVING = 0.5
"""Seconds a killed process gets to disappear; one that hangs in the kernel is left to PID 1."""


class Failed(Exception):
    """It raised, or ended without a word; the text says what is known."""


class Aside(Generic[T]):
    """Work begun in a child process. The parent must have one thread only.

    Args:
        work: it has no standard streams; what it returns is copied.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._begun = time.monotonic()
        self._reading, writing = os.pipe()
        self._pid, self._not_begun = 0, ""
        try:
            self._pid = os.fork()
        except OSError as error:
            self._not_begun = f"no process can be started ({error.strerror})"
        else:
            if self._pid == 0:
                _do(work, writing)
        os.close(writing)

    def fileno(self) -> int:
        """What is readable once there is an outcome."""
        return self._reading

    def left(self, limit: float) -> float:
        """Return the seconds until so many have passed since it was begun."""
        return max(0.0, self._begun + limit - time.monotonic())

    def outcome(self, limit: float) -> T:
        """Return what the work returned.

        Args:
            limit: seconds since it was begun.

        Raises:
            TimeoutError: it is still at it.
            Failed: it came to no end.
        """
        if self._not_begun:
            raise Failed(self._not_begun)
        told = b""
        while True:
            if not select.select([self], [], [], self.left(limit))[0]:
                raise TimeoutError
            chunk = os.read(self._reading, 1 << 16)
            if not chunk:
                break
            told += chunk
        done: T
        try:
            done, failed = pickle.loads(told)
        except (EOFError, pickle.UnpicklingError):
            raise Failed("its process was killed") from None
        if failed:
            raise Failed(failed)
        return done

    def end(self) -> None:
        """End it and all it started."""
        os.close(self._reading)
        if not self._pid:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # where it has not come to a group of its own yet
        until = time.monotonic() + _LEAVING
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(0.002)


def _do(work: Callable[[], object], writing: int) -> NoReturn:
    """Work, tell, and end: nothing gets out of here, since the stack above is a copy of the parent's."""
    done, failed = None, ""
    try:
        os.setsid()  # what it starts can be ended with it, and cannot ask at the terminal
        # The pipe is a standard stream where that was closed.
        writing = fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, 3)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        done = work()
    finally:
        try:
            error = sys.exception()
            if error is not None:
                failed = f"{type(error).__name__}: {error}"
            with os.fdopen(writing, "wb") as file:
                file.write(pickle.dumps((done, failed)))
        finally:
            os._exit(0)
