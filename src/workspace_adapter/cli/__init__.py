"""The command line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import MutableMapping, Sequence

from .. import __version__
from ..errors import SettingsError, WorkspaceAdapterError
from . import author, journal, platform, sessions, turns, workspace
from .parsing import Command


def run(arguments: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Run one command; return the process's exit code.

    0 done; 1 it could not be done; 2 the command line or a setting is wrong; and for
    ``drain`` 3 not everything settled, 4 no sidecar runs; for ``try`` 3 answered, but too
    soon to be interrupted; 130 ended by Ctrl-C, and ``try`` and ``demo`` by SIGTERM or SIGHUP.
    """
    options = _parser().parse_args(arguments)
    command: Command = options.command
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command(options, environ)
        if sys.stdout is not None:  # as it is when it was closed
            sys.stdout.flush()
        return code
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except WorkspaceAdapterError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _print_no_more()
        return 0
    except OSError as error:
        print(f"{error.filename or 'the output'}: {error.strerror or error}", file=sys.stderr)
        _print_no_more()
        return 1
    except KeyboardInterrupt:
        return 130


def _print_no_more() -> None:
    """Have Python not try again at its exit to print what cannot be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workspace-adapter", description="Nothing an agent in a container was asked is ever lost."
    )
    parser.add_argument("--version", action="version", version=f"workspace-adapter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for room in (workspace, sessions, turns, journal, author, platform):
        room.declare(commands)
    return parser
