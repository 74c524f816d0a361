"""Children that end when we do, whatever becomes of us.

A runtime that outlives its sidecar goes on working, tools included, while its successor
starts another one on the same session. What survives even this (a tool whose runtime was
killed, say) is found by the mark in its environment and ended before anything is resumed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import leash


def launcher(directory: Path, command: Path) -> Path:
    """Write an executable that stands for ``command`` and runs it on our leash.

    For libraries that take the path of one program. Started with :func:`leashed`'s
    environment, the program gets SIGTERM at the death of the thread that started it.

    Args:
        directory: where to write it; one file per command name.

    Raises:
        OSError: it cannot be written there.
    """
    line = shlex.join([sys.executable, "-I", str(Path(leash.__file__)), str(command)])
    script = f'#!/bin/sh\nexec {line} "$@"\n'
    path = directory / f"{command.name}.leashed"
    if not path.exists() or path.read_text() != script:
        draft = directory / f".{path.name}.{os.getpid()}"
        draft.write_text(script)
        draft.chmod(0o700)
        draft.replace(path)
    return path


def leashed(environ: Mapping[str, str], *, also: Iterable[str] = ()) -> dict[str, str]:
    """Return an environment for a :func:`launcher`, whose program gets exactly ``environ``.

    Whatever a library adds from its own process's environment is taken out again, but for
    the names in ``also``.
    """
    leash_of_ours = {"parent": os.getpid(), "keep": [*environ, *also]}
    return {**environ, leash.VARIABLE: json.dumps(leash_of_ours)}
