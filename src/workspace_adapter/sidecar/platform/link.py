"""What ties a workspace to its platform: registered, beating, and telling by itself what nobody asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ...heartbeat import Identity, Pace
from ...settings import Settings
from ...telling import Work
from ...turns import Turn
from ..journal import Journal
from ..secret_file import Secrets
from .pulse import Pulse
from .reporter import Reporter
from .teller import Teller
from .vitals import VitalSigns

if TYPE_CHECKING:
    from .client import PlatformClient

_ANSWER_BY = 60.0
"""Seconds by which the platform should be more patient than we are with a caller we hold."""

_TIMEOUT = 10.0
"""Seconds the platform gets to take what we tell it, beside the heartbeats."""


class Link:
    """The workspace's end of it; made where there is a ``PLATFORM_URL``.

    Args:
        url: where the workspace is called.
        began: when this life did, monotonic.
    """

    def __init__(
        self,
        platform_url: str,
        *,
        settings: Settings,
        url: str,
        boot_id: str,
        version: str,
        began: float,
        secrets: Secrets,
        vitals: VitalSigns,
    ) -> None:
        self._platform_url = platform_url
        self._settings = settings
        self._secrets = secrets
        self._vitals = vitals
        self._teller: Teller | None = None
        pace = Pace(settings.heartbeat_interval)
        self.pulse = Pulse(
            connect=partial(self._connect, pace.timeout),
            identity=Identity(
                workspace_id=settings.workspace_id,
                boot_id=boot_id,
                version=version,
                idle_timeout=settings.hold_limit + _ANSWER_BY,
                began=began,
            ),
            url=url,
            delivery_mode=settings.delivery_mode,
            pace=pace,
            wedged_after=settings.wedged_after,
            read=vitals.read,
            ask_runtime=vitals.ask_runtime,
            require_auth=secrets.require,
        )

    def attend(self, journal: Journal, *, heard: Callable[[str], bool]) -> None:
        """See from now on to it that the ends in this journal are told.

        Args:
            heard: whether a turn's end is on its way to a caller.
        """
        self._teller = Teller(journal, patience=self._settings.notify_after, heard=heard, clock=journal.clock)

    def told(self, turn: Turn) -> None:
        """A turn ended, or was suspended: whoever waits for it hears it now."""
        self._vitals.told(turn)
        if self._teller is not None:
            self._teller.ended(turn)

    async def tell(self, work: Callable[[], Work]) -> None:
        """Say by ourselves what the platform, or its user, would otherwise not hear of, until cancelled.

        Args:
            work: what runs now.
        """
        client = await anyio.to_thread.run_sync(self._connect, _TIMEOUT, abandon_on_cancel=True)
        reporter = Reporter(work, clock=time.time)
        async with anyio.create_task_group() as rooms:
            if self._teller is not None:
                rooms.start_soon(self._teller.run, client.notify)
            rooms.start_soon(
                reporter.run, lambda line: client.activity(activity_type="agent_log", summary=line)
            )

    def _connect(self, timeout: float) -> PlatformClient:
        """Make a client; it is loaded here, so whoever stands alone never imports it."""
        from .client import PlatformClient

        return PlatformClient(
            platform_url=self._platform_url,
            workspace_id=self._settings.workspace_id,
            configs_dir=Path(self._settings.configs_dir),
            org_id=self._settings.org_id,
            timeout=timeout,
            secrets=self._secrets,
        )
