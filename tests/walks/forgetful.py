"""Adapters whose ``forget`` is missing, fails, or takes its time; they work like the scripted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from workspace_adapter.adapter import ForgottenSession, RuntimeAdapter
from workspace_adapter.errors import RuntimeUnusable
from workspace_adapter.testing.fakes import ScriptedEnds


class CannotForget(ScriptedEnds):
    """Its author did not write ``forget``."""

    forget = RuntimeAdapter.forget


class Refuses(ScriptedEnds):
    """Its runtime is not there to be asked."""

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Fail."""
        raise RuntimeUnusable("the vault is sealed: unseal it")


class Objects(ScriptedEnds):
    """It names what it erased by objects, which its contract does not have."""

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Erase."""
        erased: list[Any] = [Path(name) for name in await super().forget(session)]
        return erased


class Slow(ScriptedEnds):
    """It erases, says so in the workdir, and takes its time to return until told there to go on."""

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Erase, and wait."""
        erased = await super().forget(session)
        (session.workdir / "erased").touch()
        while not (session.workdir / "go-on").exists():
            await anyio.sleep(0.01)
        return erased
