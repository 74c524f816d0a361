"""``python -m workspace_adapter.testing.scripted_model``."""

from __future__ import annotations

import argparse
import sys

import anyio

from . import ScriptedModel


async def _serve(host: str, port: int) -> None:
    async with ScriptedModel(host, port) as model:
        sys.stdout.write(model.url + "\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m workspace_adapter.testing.scripted_model",
        description="Serve a scripted model; prints its URL, serves until it is killed.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    arguments = parser.parse_args()
    try:
        anyio.run(_serve, arguments.host, arguments.port)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
