"""A server of the Bedrock AgentCore SDK whose work outlasts the request, as its documentation does it.

``python -m benchmarks.peers.agentcore PORT DIRECTORY``: an asynchronous task, told to the host by ``/ping``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from bedrock_agentcore import BedrockAgentCoreApp  # type: ignore[import-not-found]  # of the peers' environment

from benchmarks.effects import Work, World


def application(world: World) -> BedrockAgentCoreApp:
    """Build the application."""
    app = BedrockAgentCoreApp()
    tasks: set[asyncio.Task[str]] = set()

    async def work(text: str) -> str:
        return await world.perform(Work.read(text))

    in_background = app.async_task(work)

    async def invoke(payload: dict[str, Any]) -> dict[str, str]:
        task = asyncio.create_task(in_background(payload["prompt"]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return {"status": "accepted"}

    app.entrypoint(invoke)
    return app


if __name__ == "__main__":
    application(World(Path(sys.argv[2]))).run(port=int(sys.argv[1]))
