"""``python -m workspace_adapter.testing.platform``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from .platform import FakePlatform
from .process import Process

_LOOK_EVERY = 0.1
"""Seconds between two looks for news."""


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _tell(platform: FakePlatform) -> None:
    """Print what comes, for as long as there is a platform."""
    heard = complained = 0
    while not platform.broken:
        for entry in platform.received[heard:]:
            heard += 1
            _say(f"{entry.method} {entry.path} -> {entry.fault or entry.status}")
        for sentence in platform.violations[complained:]:
            complained += 1
            _say(f"VIOLATION {sentence}")
        time.sleep(_LOOK_EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m workspace_adapter.testing.platform",
        description="Be the existing platform for one workspace; prints its URL, then what it hears.",
        epilog="With a command after --, the workspace is started with it, and restarted when asked to.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--workspace-id", default="ws-test")
    parser.add_argument("--configs-dir", type=Path, help="the workspace's CONFIGS_DIR, for its token")
    parser.add_argument("--org-id", help="demanded in X-Molecule-Org-Id")
    parser.add_argument("--scale", type=float, default=1.0, help="of all the platform's times")
    parser.add_argument("command", nargs="*", help="what starts the workspace")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the workspace must not outlive us
    environ = dict(os.environ)  # noqa: TID251  # the process's own edge
    process = Process(given.command, environ) if given.command else None
    with FakePlatform(
        given.workspace_id,
        configs_dir=given.configs_dir,
        container=process,
        org_id=given.org_id,
        scale=given.scale,
        port=given.port,
    ) as platform:
        _say(platform.url)
        environ |= {"PLATFORM_URL": platform.url, "WORKSPACE_ID": given.workspace_id}
        if given.configs_dir is not None:
            environ["CONFIGS_DIR"] = str(given.configs_dir.absolute())
        with suppress(KeyboardInterrupt):
            if process is not None:
                platform.restart(button=True)
            _tell(platform)
        if process is not None:
            process.stop()


if __name__ == "__main__":
    main()
