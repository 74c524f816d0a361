"""Those who ask an agent through the platform, as patient as the existing ones are."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import anyio
import httpx

from .answers import answer_text

_ATTEMPTS = 5
"""Of a peer whose connection to the platform fails."""
_BUDGET = 600.0
"""Seconds for them."""


def message(text: str, *, message_id: str | None = None, context_id: str | None = None) -> dict[str, Any]:
    """Build an envelope."""
    built: dict[str, Any] = {
        "role": "user",
        "messageId": message_id or str(uuid.uuid4()),
        "parts": [{"kind": "text", "text": text}],
    }
    if context_id is not None:
        built["contextId"] = context_id
    return {
        "jsonrpc": "2.0",
        "id": str(uuid.uuid4()),
        "method": "message/send",
        "params": {"message": built},
    }


class Canvas:
    """A person at the platform's page; without a context of its own, as there."""

    def __init__(self, client: httpx.AsyncClient, workspace_id: str) -> None:
        self._client = client
        self._path = f"/workspaces/{workspace_id}/a2a"

    async def send(self, text: str, *, message_id: str | None = None) -> httpx.Response:
        """Send one message once; the page sends nothing again but where the platform says ``warming``.

        Raises:
            httpx.TransportError: the platform was lost.
        """
        body = message(text, message_id=message_id)
        body["params"]["metadata"] = {"source": "canvas_user", "user_identity_status": "UNAUTHENTICATED"}
        return await self._client.post(self._path, json=body)


class StockPeer:
    """Another workspace with the stock client, which makes a new message of every attempt."""

    def __init__(self, client: httpx.AsyncClient, workspace_id: str, *, peer_id: str) -> None:
        self._client = client
        self._path = f"/workspaces/{workspace_id}/a2a"
        self._headers = {"X-Workspace-ID": peer_id}
        self.sent: list[dict[str, Any]] = []
        """Every envelope, the latest last."""

    async def send(self, text: str, *, context_id: str | None = None) -> httpx.Response:
        """Send a message; again, under a new id, where the connection failed, and nowhere else.

        Raises:
            httpx.TransportError: the platform was lost for too long.
        """
        until = time.monotonic() + _BUDGET
        for attempt in range(1, _ATTEMPTS + 1):
            self.sent.append(message(text, context_id=context_id))
            try:
                return await self._client.post(self._path, json=self.sent[-1], headers=self._headers)
            except httpx.TransportError:
                if attempt == _ATTEMPTS or time.monotonic() > until:
                    raise
                await anyio.sleep(min(2.0**attempt, 30.0))
        raise AssertionError("there is a last attempt")

    @staticmethod
    def read(reply: Mapping[str, Any]) -> str:
        """Read an answer as the stock client does."""
        return answer_text(reply) or "(no response)"
