"""How the platform stops and starts what the workspace runs in."""

from __future__ import annotations

from typing import Protocol


class Container(Protocol):
    """What a provisioner holds; called from threads, one call at a time but for ``running``."""

    def stop(self) -> None:
        """Remove it as ``docker rm -f`` does: SIGKILL, no SIGTERM before."""

    def start(self) -> None:
        """Make a new one on the same volumes, and return at once."""

    def running(self) -> bool:
        """Say whether it is there."""
