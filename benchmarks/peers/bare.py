"""A bare Starlette application under uvicorn with its defaults: ``bare.py HOST PORT``."""

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
    application = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    host, port = sys.argv[1:]
    uvicorn.run(application, host=host, port=int(port), access_log=False)
