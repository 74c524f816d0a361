"""The container engine, spoken to as an operator does: through its command line."""

from __future__ import annotations

import shutil
import subprocess

LIMIT = 60.0
"""Seconds that any command of it may take; a build may take ten times as long."""


def docker(*arguments: str, limit: float = LIMIT) -> str:
    """Run a command; return what it printed.

    Raises:
        AssertionError: it failed, with what it said.
    """
    done = attempt(*arguments, limit=limit)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


def attempt(*arguments: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail."""
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=limit, check=False, errors="replace"
    )


def answers() -> bool:
    """Whether there is an engine."""
    return shutil.which("docker") is not None and attempt("info").returncode == 0


def has(image: str) -> bool:
    """Whether an image is there, or could be fetched."""
    return any(
        attempt(*how, image, limit=10 * LIMIT).returncode == 0 for how in (("image", "inspect"), ("pull",))
    )


def build(tag: str, directory: str, *options: str) -> None:
    """Build an image; what did not change since an earlier build is taken from the engine's cache."""
    docker("build", "--quiet", "--tag", tag, *options, directory, limit=10 * LIMIT)
