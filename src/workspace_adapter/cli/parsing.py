"""How commands and their arguments are declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable, MutableMapping
from typing import Any

from ..settings import integer, seconds

Command = Callable[[argparse.Namespace, MutableMapping[str, str]], int]
"""From the options and the environment to the exit code."""


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


def duration(text: str) -> float:
    """Take seconds from the command line."""
    try:
        return seconds()(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Take a count from the command line."""
    try:
        return integer(1)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
