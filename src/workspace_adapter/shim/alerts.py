"""What waits where nothing can be sent: counted, logged, told to a person.

An incident is told once, again when it has grown tenfold or lasted another day, and once
more when it is over. What was told stands in the workspace's activity, so a replica does not
tell what another told, nor a shim that was started again; two that look in the very same
moment may.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import anyio

from ..errors import UnknownWorkspace
from .store.contract import Status, Store, Stranded

logger = logging.getLogger(__name__)

ACTIVITY = "alert"
"""The type of what is added to the workspace's activity."""

_MISSED = frozenset({Status.OFFLINE, Status.FAILED})
_GROWTH = 10
_AGAIN = 86400.0
_MOST = 100
"""Alerts that may wait to be told; of more, the log alone tells."""


class Alerts:
    """Looks at what is stranded, and tells of it.

    Args:
        after: seconds for which the oldest message has waited.
        suspect: told at each look of the workspaces that should be there and are not: whoever suspected
            one when it fell silent may have been stopped before it was looked at.
        command: a program that gets the alert's JSON on standard input.
        url: where the same JSON is posted to.
        environ: what the program's environment is.
        patience: seconds either may take.
    """

    def __init__(
        self,
        store: Store,
        *,
        after: float,
        suspect: Callable[[str], None] = lambda _: None,
        command: str | None = None,
        url: str | None = None,
        environ: Mapping[str, str] | None = None,
        patience: float = 30.0,
    ) -> None:
        self._store = store
        self._after = after
        self._suspect = suspect
        self._command = command
        self._url = url
        self._environ = dict(environ or {})
        self._patience = patience
        self._open: dict[str, tuple[int, float]] = {}
        """Incidents that were told: how many waited then, and when."""
        self._untold = deque[dict[str, Any]]()
        self._bell = anyio.Event()
        self.stranded: tuple[Stranded, ...] = ()
        """What was found at the last look, also what does not wait long yet."""

    async def run(self) -> None:
        """Tell, one after the other, until cancelled."""
        while True:
            while self._untold:
                alert = self._untold.popleft()
                if self._command is not None:
                    await self._run(self._command, alert)
                if self._url is not None:
                    await self._post(self._url, alert)
            self._bell = anyio.Event()
            await self._bell.wait()

    async def look(self) -> None:
        """Look once."""
        found = {stranded.workspace_id: stranded for stranded in await self._store.stranded()}
        self.stranded = tuple(found.values())
        for stranded in found.values():
            if stranded.status in _MISSED:
                self._suspect(stranded.workspace_id)
            if time.time() - stranded.oldest >= self._after and self._is_news(stranded):
                await self._begin(stranded)
        for workspace_id in self._open.keys() - found.keys():
            await self._end(workspace_id)

    def _is_news(self, stranded: Stranded) -> bool:
        waited, told_at = self._open.get(stranded.workspace_id, (0, 0.0))
        return stranded.waiting >= _GROWTH * waited or time.time() - told_at >= _AGAIN

    async def _begin(self, stranded: Stranded) -> None:
        workspace_id, seconds = stranded.workspace_id, round(time.time() - stranded.oldest)
        if (told := await self._told(workspace_id)) is not None:
            self._open[workspace_id] = told
            if not self._is_news(stranded):
                return
        alert = {
            "alert": "stranded",
            "workspace_id": workspace_id,
            "status": str(stranded.status),
            "waiting": stranded.waiting,
            "oldest_seconds": seconds,
        }
        if await self._note(workspace_id, alert):
            self._open[workspace_id] = (stranded.waiting, time.time())
            logger.warning(
                "%d messages wait for workspace %s, which is %s, the first of them for %d s",
                stranded.waiting,
                workspace_id,
                stranded.status,
                seconds,
            )
            self._tell(alert)

    async def _end(self, workspace_id: str) -> None:
        told = await self._told(workspace_id)
        alert = {"alert": "over", "workspace_id": workspace_id}
        if told is not None and await self._note(workspace_id, alert):
            logger.warning("nothing waits in vain for workspace %s any more", workspace_id)
            self._tell(alert)
        del self._open[workspace_id]

    async def _told(self, workspace_id: str) -> tuple[int, float] | None:
        """Return what was told last of an incident that is not over, whoever told it."""
        last = await self._store.activity(workspace_id, activity_type=ACTIVITY, most=1)
        if not last or last[0].entry.get("alert") != "stranded":
            return None
        return last[0].entry["waiting"], last[0].created_at

    async def _note(self, workspace_id: str, alert: Mapping[str, Any]) -> bool:
        try:
            await self._store.log(workspace_id, ACTIVITY, alert)
        except UnknownWorkspace:  # removed meanwhile
            return False
        return True

    def _tell(self, alert: dict[str, Any]) -> None:
        if self._command is None and self._url is None:
            return
        if len(self._untold) >= _MOST:
            logger.warning("an alert is only in the log: %d wait to be told already", _MOST)
            return
        self._untold.append(alert)
        self._bell.set()

    async def _run(self, command: str, alert: Mapping[str, Any]) -> None:
        try:
            with anyio.fail_after(self._patience):
                ran = await anyio.run_process(
                    [command],
                    input=json.dumps(alert).encode(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=False,
                    env=self._environ,
                )
        except TimeoutError:
            self._failed("SHIM_ALERT_COMMAND", f"it took longer than {self._patience:g} s")
        except OSError as error:
            self._failed("SHIM_ALERT_COMMAND", str(error))
        else:
            if ran.returncode != 0:
                self._failed("SHIM_ALERT_COMMAND", f"it ended with {ran.returncode}")

    async def _post(self, url: str, alert: Mapping[str, Any]) -> None:
        limit = aiohttp.ClientTimeout(total=self._patience)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(url, json=alert, allow_redirects=False) as response,
            ):
                if not response.ok or response.status >= 300:
                    self._failed("SHIM_ALERT_URL", f"it answered {response.status}")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._failed("SHIM_ALERT_URL", f"{type(error).__name__} {error}")

    def _failed(self, setting: str, why: str) -> None:
        logger.error("an alert could not be told by %s: %s", setting, why)
