"""``python -m workspace_adapter``, and the console script.

A SIGTERM or Ctrl-C that comes to ``serve`` while the rest is still being imported ends the
process cleanly: as PID 1 it would be ignored otherwise. Each half's ``serve.py`` takes the
signals over.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def _too_early(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # an exception would be the failure of whatever is being imported


def main() -> int:
    """Run the command line."""
    if sys.argv[1:2] == ["serve"] or sys.argv[1:3] == ["platform", "serve"]:
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, _too_early)
        # What a boot imports stays: looking through all of it for garbage would take a tenth of
        # the boot. Each half's ``serve.py`` turns it on again.
        gc.disable()
    from .cli import run

    return run(sys.argv[1:], os.environ)  # noqa: TID251  # the process's own edge


if __name__ == "__main__":
    sys.exit(main())
