"""Whether the runtime can be used at all, found out at the start and again until it can."""

from __future__ import annotations

import logging

import anyio

from ..adapter import RuntimeAdapter
from ..errors import AdapterError, ContractBroken
from .fence import fence

logger = logging.getLogger(__name__)

AGAIN = 60.0
"""Seconds after which a runtime that cannot be used is looked at again."""

_LONGEST = 300
"""Characters that the agent card quotes of why."""


class RuntimeCheck:
    """Says what would otherwise be found out by the first message, and when it is mended."""

    def __init__(self, adapter: RuntimeAdapter, *, again: float = AGAIN) -> None:
        self._adapter = adapter
        self._again = again
        self.told: dict[str, str] = {}
        """What the agent card says of it, as the existing platform's runtimes do; nothing before a look."""

    async def run(self) -> None:
        """Look until it can be used, or never will be."""
        said = ""
        while True:
            try:
                with fence("check"):
                    version = await self._adapter.check()
            except AdapterError as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                self.told = {
                    "configuration_status": "not_configured",
                    "configuration_error": why[:_LONGEST],
                }
                if said != why:
                    said = why
                    logger.error("the runtime %s cannot be used: %s", self._adapter.name, error)
                if isinstance(error, ContractBroken):
                    return  # waiting mends no mistake of the adapter's
                await anyio.sleep(self._again)
            else:
                self.told = {"configuration_status": "ready"}
                logger.info("runtime %s %s", self._adapter.name, version)
                return
