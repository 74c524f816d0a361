"""Workspaces that a program of yours stops and starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream

from ...errors import ProvisionerError
from ..store.contract import Workspace
from .contract import common_problems

_LIMITS = {"prepare": 900.0, "start": 120.0, "stop": 60.0, "running": 10.0, "remove": 120.0}
"""Seconds that a verb may take; ``stop`` gets the grace besides."""

_YES, _NO = 0, 1
"""What ``running`` exits with; anything else is that it cannot be known."""

_SAID = 2000
"""Bytes of what a program says that are told."""

_REST = 0.5
"""Seconds for the rest of it, once the program has ended."""


class CommandProvisioner:
    """Runs ``PROGRAM VERB WORKSPACE-ID`` with JSON on standard input.

    Args:
        program: an executable.
        environ: the shim's own; the program gets it without the shim's variables.
    """

    certain = False

    def __init__(self, program: str, *, environ: Mapping[str, str]) -> None:
        self._program = program
        self._environ = {name: value for name, value in environ.items() if not name.startswith("SHIM_")}

    def problems(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(common_problems(spec, None))

    async def prepare(self, workspace: Workspace) -> None:
        await self._do("prepare", workspace)

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None:
        await self._do("start", workspace, environ=dict(environ), secrets=dict(secrets))

    async def stop(self, workspace: Workspace, grace: float) -> None:
        await self._do("stop", workspace, allowed=grace, grace=grace)

    async def running(self, workspace: Workspace) -> bool | None:
        try:
            code, _ = await self._run("running", workspace, {}, _LIMITS["running"])
        except ProvisionerError:
            return None
        return {_YES: True, _NO: False}.get(code)

    async def remove(self, workspace: Workspace) -> None:
        await self._do("remove", workspace)

    def log(self, workspace_id: str) -> str:
        return "its log"

    def ended(self) -> list[str]:
        return []

    async def _do(self, verb: str, workspace: Workspace, *, allowed: float = 0.0, **told: Any) -> None:
        code, said = await self._run(verb, workspace, told, _LIMITS[verb] + allowed)
        if code != 0:
            raise ProvisionerError(
                f"`{self._program} {verb} {workspace.id}` exited with {code}: {said or 'it said nothing'}"
            )

    async def _run(
        self, verb: str, workspace: Workspace, told: Mapping[str, Any], limit: float
    ) -> tuple[int, str]:
        """Run the program; return its exit code and the end of what it said on standard error."""
        about = {"workspace_id": workspace.id, "url": workspace.url, "spec": dict(workspace.spec), **told}
        try:
            process = await anyio.open_process(
                [self._program, verb, workspace.id],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            raise ProvisionerError(
                f"SHIM_PROVISIONER_COMMAND={self._program} cannot be run: {error.strerror}"
            ) from None
        assert process.stdin is not None
        assert process.stderr is not None
        said = _Said()
        try:
            with anyio.fail_after(limit):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(said.read, process.stderr)
                    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it need not read
                        await process.stdin.send(json.dumps(about).encode())
                        await process.stdin.aclose()
                    code = await process.wait()
                    # What it started goes on, and may have its standard error still.
                    with anyio.move_on_after(_REST):
                        await said.all.wait()
                    tasks.cancel_scope.cancel()
                return code, said.text
        except TimeoutError:
            raise ProvisionerError(
                f"`{self._program} {verb} {workspace.id}` took longer than {limit:g} s, and was ended"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await process.aclose()


class _Said:
    """The end of what a program says."""

    def __init__(self) -> None:
        self._bytes = b""
        self.all = anyio.Event()

    @property
    def text(self) -> str:
        return self._bytes.decode(errors="replace").strip()

    async def read(self, stream: ByteReceiveStream) -> None:
        async for more in stream:
            self._bytes = (self._bytes + more)[-_SAID:]
        self.all.set()
