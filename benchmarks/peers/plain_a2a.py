"""A plain server of the A2A SDK, put together as its documentation does; an echo, all in memory.

``python -m benchmarks.peers.plain_a2a PORT``. ``DefaultRequestHandler`` with ``InMemoryTaskStore``,
``uvicorn.run`` with its defaults but for the log of each request; both dialects.
"""

from __future__ import annotations

import sys

import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Artifact,
    Part,
    Task,
    TaskState,
    TaskStatus,
)
from starlette.applications import Starlette


class Echo(AgentExecutor):
    """Answers with the question, as a Task that is complete: one event, and the store keeps it."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer."""
        asked = context.get_user_input()
        await event_queue.enqueue_event(
            Task(
                id=context.task_id or "",
                context_id=context.context_id or "",
                status=TaskStatus(state=TaskState.TASK_STATE_COMPLETED),
                artifacts=[Artifact(artifact_id="answer", parts=[Part(text=asked)])],
            )
        )

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Nothing that could be cancelled."""


def run(executor: AgentExecutor, port: int) -> None:
    """Serve until it is told to stop."""
    application = application_of(executor, f"http://127.0.0.1:{port}")
    uvicorn.run(application, host="127.0.0.1", port=port, access_log=False)


def application_of(executor: AgentExecutor, url: str) -> Starlette:
    """Build the application."""
    card = AgentCard(
        name="peer",
        description="Answers.",
        version="1",
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version=version)
            for version in ("1.0", "0.3")
        ],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text"],
        default_output_modes=["text"],
        skills=[AgentSkill(id="peer", name="peer", description="Answers.", tags=["peer"])],
    )
    handler = DefaultRequestHandler(agent_executor=executor, task_store=InMemoryTaskStore(), agent_card=card)
    routes = [
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
    ]
    return Starlette(routes=routes)


if __name__ == "__main__":
    run(Echo(), int(sys.argv[1]))
