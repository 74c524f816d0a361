"""The commands for who tries the product, or writes an adapter for it."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

from ..errors import SettingsError
from .parsing import add, duration
from .printing import printable

_STOPS = (signal.SIGTERM, signal.SIGHUP)


def declare(commands: Any) -> None:
    """Declare them."""
    demo = add(commands, "demo", "Kill a workspace in front of you, and see its callers answered.", _demo)
    attempt = add(commands, "try", "Kill your own adapter, and see its callers answered.", _try)
    attempt.add_argument("--adapter", metavar="MODULE:CLASS", help="else what WORKSPACE_ADAPTER says")
    attempt.add_argument(
        "--prompt",
        nargs="+",
        metavar="TEXT",
        help="what to send: a message whose work takes some seconds, with a tool where there is one;"
        " of several, one a scene",
    )
    attempt.add_argument(
        "--patience", type=duration, default=60.0, metavar="SECONDS", help="how long any step may take (60)"
    )
    for room in (demo, attempt):
        room.add_argument("--keep", action="store_true", help="leave it running, and say how to talk to it")
    new = add(
        commands, "new-adapter", "Write a package to begin an adapter with; its tests pass.", _new, json=False
    )
    new.add_argument("name", metavar="NAME", help="of the package and the runtime, such as my-agent")
    new.add_argument("--directory", type=Path, metavar="DIR", help="where to; ./NAME by default")


def _demo(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader
    from ..testing.demo import demonstrate
    from ..testing.timeline import Timeline

    timeline = Timeline(machine=options.json, printable=printable)
    return _play(partial(demonstrate, environ, Reader.open, keep=options.keep, timeline=timeline))


def _try(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..sidecar.journal import Reader
    from ..testing.timeline import Timeline
    from ..testing.trial import PROMPT, attempt

    adapter = options.adapter or environ.get("WORKSPACE_ADAPTER")
    if not adapter:
        raise SettingsError(("which adapter? give --adapter module:Class, or set WORKSPACE_ADAPTER",))
    trying = partial(
        attempt,
        environ,
        Reader.open,
        adapter=adapter,
        prompts=options.prompt or [PROMPT],
        patience=options.patience,
        keep=options.keep,
        timeline=Timeline(machine=options.json, printable=printable),
    )
    return _play(trying)


def _play(walk: Callable[[], Awaitable[int]]) -> int:
    """Run a walk; what it started ends with it, also where it is ended itself."""
    for stop in _STOPS:
        if signal.getsignal(stop) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(stop, _as_interrupt)
    try:
        return anyio.run(walk)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None  # such as that nobody reads our output any more


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """Do as Ctrl-C does, once: a second one would break off the clearing up."""
    for stop in _STOPS:
        signal.signal(stop, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


def _new(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..testing.scaffold import write

    directory = options.directory or Path(options.name)
    for path in write(options.name, directory):
        print(path)
    print(f"\nNext: cd {directory}, and what README.md says there.")
    return 0
