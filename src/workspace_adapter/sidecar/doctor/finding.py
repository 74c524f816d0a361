"""What one look at the container found."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    SKIPPED = "skipped"  #: there was nothing to look at, and that is no fault
    WARNING = "warning"  #: it works, but something will hurt one day, or cannot be seen from here
    BROKEN = "broken"  #: it does not work, or a promise is not kept


class Finding(NamedTuple):
    """One thing that was looked at, for a person."""

    status: Status
    found: str
    """What it is, with the setting or file concerned."""
    todo: str = ""
    """What to do; empty where there is nothing to do."""

    def __str__(self) -> str:
        return f"{self.found}: {self.todo}" if self.todo else self.found


def ok(found: str) -> Finding:
    return Finding(Status.OK, found)


def skipped(found: str) -> Finding:
    return Finding(Status.SKIPPED, found)


def warning(found: str, todo: str) -> Finding:
    return Finding(Status.WARNING, found, todo)


def broken(found: str, todo: str) -> Finding:
    return Finding(Status.BROKEN, found, todo)
