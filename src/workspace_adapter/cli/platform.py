"""The commands of the half on the platform."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from .parsing import add

logger = logging.getLogger(__name__)

_EXTRA = ("aiodocker", "aiohttp", "asyncpg", "httptools", "uvloop")


def declare(commands: Any) -> None:
    """Declare them."""
    what = "The shim: the half on the platform."
    platform: argparse.ArgumentParser = commands.add_parser("platform", help=what, description=what)
    verbs = platform.add_subparsers(required=True, metavar="verb")
    add(verbs, "serve", "Run the shim: a durable queue before each workspace.", _serve, json=False)


def _serve(options: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    from ..logs import set_up
    from ..port import bind

    if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
        print(
            f"`platform serve` needs {', '.join(missing)}: pip install 'workspace-adapter[platform]'",
            file=sys.stderr,
        )
        return 2
    from ..shim.settings import ShimSettings, unknown

    settings = ShimSettings.from_env(environ)
    set_up(settings.log_level, settings.log_format)
    for name in unknown(environ):
        logger.warning("%s is no setting of this version, and changes nothing", name)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        logger.error(
            "SHIM_HOST=%s SHIM_PORT=%d cannot be listened on: %s",
            settings.host,
            settings.port,
            error.strerror,
        )
        return 2
    from ..shim.serve import serve

    return serve(settings, listener, environ)
