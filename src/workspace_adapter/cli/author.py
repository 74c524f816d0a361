"""The commands for who tries the product, or writes an adapter for it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio

from .parsing import add


def declare(commands: Any) -> None:
    """Declare them."""
    demo = add(commands, "demo", "Kill a workspace in front of you, and see its callers answered.", _demo)
    demo.add_argument("--keep", action="store_true", help="leave it running, and say how to talk to it")


def _demo(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..testing.demo import demonstrate

    return anyio.run(partial(demonstrate, environ, keep=options.keep, machine=options.json))
