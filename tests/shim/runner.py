"""A process that runs restarts and dies, by SIGKILL, at the write of one step.

``python -m tests.shim.runner DIRECTORY OWNER [STEP before|after]``. The workspace ``w``
it stops and starts is a file: what was done to it, a line each.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from tests.shim.hand import Hand
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.ranges import THIS_MACHINE_TOO
from workspace_adapter.shim.restart import Restarts, Times
from workspace_adapter.shim.store.contract import OVER, Cycle, Step, Workspace
from workspace_adapter.shim.store.sqlite import SqliteStore
from workspace_adapter.shim.upstream import Upstream

RULES = Rules(lease=0.3, renewal=0.05)


class Mortal(SqliteStore):
    """Dies at the write of a step."""

    dies: tuple[Step, str] | None = None

    async def advance_cycle(self, cycle: Cycle, step: Step, **more: Any) -> Cycle | None:
        if self.dies == (step, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        moved = await super().advance_cycle(cycle, step, **more)
        if self.dies == (step, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return moved


class OnFile(Hand):
    """A workspace that is a file."""

    def __init__(self, file: Path, store: SqliteStore) -> None:
        super().__init__()
        self._file = file
        self._store = store

    @property
    def lines(self) -> list[str]:
        return self._file.read_text().split() if self._file.exists() else []

    async def _do(self, verb: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{verb}\n")

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None:
        await self._do("start")
        boot_id = f"boot-{self.lines.count('start')}"
        await self._store.register("w", url=workspace.url, boot_id=boot_id)

    async def running(self, workspace: Workspace) -> bool | None:
        done = [line for line in self.lines if line != "prepare"]
        return not done or done[-1] == "start"


async def main(*arguments: str) -> None:
    root, owner, *dies = arguments
    async with (
        Mortal(Path(root, "shim.sqlite"), RULES) as store,
        Upstream(Addresses(THIS_MACHINE_TOO)) as upstream,
    ):
        store.dies = (Step(dies[0]), dies[1]) if dies else None
        restarts = Restarts(
            store,
            upstream,
            {"hand": OnFile(Path(root, "done"), store)},
            owner=owner,
            mint=lambda: ("token", os.urandom(8).hex()),
            environ={},
            platform_url="",
            times=Times(drain=0.2, start=5.0, renewal=RULES.renewal),
        )
        store.on_cycle = restarts.ring
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(restarts.run)
            while (await store.cycles("w"))[0].step not in OVER:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], *sys.argv[2:])
