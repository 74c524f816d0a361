"""A bare Starlette application under uvicorn with its defaults: ``python -m benchmarks.peers.bare PORT``."""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def answer(request: Request) -> PlainTextResponse:
    """Answer anything."""
    await request.body()
    return PlainTextResponse("ok")


if __name__ == "__main__":
    application = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), access_log=False)
