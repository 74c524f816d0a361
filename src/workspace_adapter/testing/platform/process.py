"""A workspace that is a child process, removed as a container is: all of it at once, without a warning."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress


class Process:
    """A container that is a process group.

    Args:
        command: what starts the workspace.
        environ: its whole environment.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.command = command
        self.environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """Kill it and whatever it started in its group."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def start(self) -> None:
        """Start a new one."""
        self._process = subprocess.Popen(self.command, env=self.environ, start_new_session=True)

    def running(self) -> bool:
        """Say whether it runs."""
        return self._process is not None and self._process.poll() is None
