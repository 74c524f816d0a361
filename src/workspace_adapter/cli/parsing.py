"""How commands and their arguments are declared."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from ..settings import integer, seconds

Command = Callable[[argparse.Namespace, MutableMapping[str, str]], int]
"""From the options and the environment to the exit code."""

MOST = 50
"""How many rows a listing has where nobody says otherwise."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add(
    commands: Any, name: str, what: str, command: Command, *, json: bool = True
) -> argparse.ArgumentParser:
    """Declare a command; ``commands`` is what argparse calls sub-parsers.

    Args:
        json: whether it has ``--json``.
    """
    added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    added.set_defaults(command=command)
    if json:
        added.add_argument("--json", action="store_true", help="for machines")
    return added


def add_verb(verbs: Any, name: str, what: str, command: Command) -> argparse.ArgumentParser:
    """Declare a verb of a command, with ``--json``; ``verbs`` are the command's sub-parsers.

    An option that the command has too counts on either side of the verb, so one that is
    not given here is left as the command has it.
    """
    added: argparse.ArgumentParser = verbs.add_parser(
        name, help=what, description=what, argument_default=argparse.SUPPRESS
    )
    added.set_defaults(command=command)
    added.add_argument("--json", action="store_true", help="for machines")
    return added


def duration(text: str) -> float:
    """Take seconds from the command line."""
    try:
        return seconds()(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def moment(text: str) -> float:
    """Take a time from the command line, as UTC epoch seconds: an age such as ``90m``, or a date."""
    if aged := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return time.time() - float(aged[1]) * _SECONDS[aged[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an age such as 45s, 90m, 12h, 7d nor a time such as 2026-01-31T23:59"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def count(text: str) -> int:
    """Take a count from the command line, of what fits into memory."""
    try:
        return integer(1, 1_000_000)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
