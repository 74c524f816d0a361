"""The plain server of the A2A SDK with work that takes time.

``python -m benchmarks.peers.working_a2a PORT DIRECTORY``. As the SDK's documentation does it: the task is
published first, then worked on, then completed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.tasks import TaskUpdater
from a2a.types import Part, Task, TaskState, TaskStatus

from benchmarks.effects import Work, World
from benchmarks.peers.plain_a2a import run


class Worker(AgentExecutor):
    """Does what the message says."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Work."""
        task_id, context_id = context.task_id or "", context.context_id or ""
        await event_queue.enqueue_event(
            Task(
                id=task_id,
                context_id=context_id,
                status=TaskStatus(state=TaskState.TASK_STATE_SUBMITTED),
            )
        )
        updater = TaskUpdater(event_queue, task_id, context_id)
        await updater.start_work()
        answer = await self._world.perform(Work.read(context.get_user_input()))
        await updater.add_artifact([Part(text=answer)])
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Nobody asks for it."""


if __name__ == "__main__":
    run(Worker(World(Path(sys.argv[2]))), int(sys.argv[1]))
