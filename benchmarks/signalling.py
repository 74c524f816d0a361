"""The platform's end of the restart signal, with times."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace_adapter.testing.workspace import Workspace

SECRET = "of-the-benchmark"


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain, in seconds of the monotonic clock, which all processes share."""

    signalled: float
    """Before the first byte of the signal left."""
    acknowledged: float
    """When the whole answer had come."""
    report: Mapping[str, Any]

    @property
    def ms(self) -> float:
        """From the signal to its acknowledgement."""
        return 1e3 * (self.acknowledged - self.signalled)


class Drains(Workspace):
    """A workspace that is told to restart, again and again, and never is."""

    def __init__(self, root: Path, adapter: str, *, cap: float, turns: int = 1) -> None:
        super().__init__(
            root,
            adapter,
            environ={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            settings={
                "WORKSPACE_MAX_CONCURRENT_TURNS": str(turns),
                "WORKSPACE_DRAIN_CAP": str(cap),
                "WORKSPACE_STOP_GRACE": str(cap),
                "WORKSPACE_RESTART_WINDOW": str(cap * 1.1),
            },
        )
        (root / "configs").mkdir()
        (root / "configs" / ".platform_inbound_secret").write_text(SECRET)

    def drain(self) -> Drained:
        """Send the signal on a connection that is open already."""
        body = {"jsonrpc": "2.0", "id": 1, "method": "signals/restart_pending", "params": {}}
        with self._connected() as connection:
            began = time.monotonic()
            connection.request("POST", "/signals/restart_pending", json.dumps(body), self._headers)
            answer = connection.getresponse().read()
            return Drained(began, time.monotonic(), json.loads(answer)["result"])

    def reopened(self) -> bool:
        """Whether the window is over."""
        with self._connected() as connection:
            connection.request("GET", "/status", headers=self._headers)
            return bool(json.loads(connection.getresponse().read())["gate"] == "open")

    async def until_reopened(self) -> None:
        """Wait until work goes on."""
        await self.until(self.reopened, "the end of the window")

    @property
    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.connect()
        try:
            yield connection
        finally:
            connection.close()
