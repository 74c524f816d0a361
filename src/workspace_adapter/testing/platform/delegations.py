"""Work that one workspace gave another through the platform, and what its source is told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import anyio

from .answers import parsed
from .proxy import Proxy
from .times import Times


class DelegationState(StrEnum):
    """The ledger's words."""

    DISPATCHED = "dispatched"
    QUEUED = "queued"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(slots=True)
class Delegation:
    """One piece of work; the message's id is its own."""

    source: str
    target: str
    task: str
    idempotency_key: str | None = None
    state: DelegationState = DelegationState.DISPATCHED
    answer: str | None = None
    error: str | None = None
    retried: bool = False
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def envelope(self) -> dict[str, Any]:
        """Build the message; a retry sends the same."""
        return {
            "jsonrpc": "2.0",
            "id": self.id,
            "method": "message/send",
            "params": {
                "message": {
                    "role": "user",
                    "messageId": self.id,
                    "parts": [{"kind": "text", "text": self.task}],
                    "metadata": {"delegation_id": self.id},
                }
            },
        }


class Delegations:
    """The ledger of them."""

    def __init__(self, proxy: Proxy, times: Times) -> None:
        self._proxy = proxy
        self._times = times
        self.all: dict[str, Delegation] = {}

    def begin(self, source: str, target: str, task: str, key: str | None) -> tuple[Delegation, bool]:
        """Write one down; return it, and whether it was known by its key."""
        for known in self.all.values():
            if key and known.source == source and known.idempotency_key == key:
                return known, True
        made = Delegation(source, target, task, key)
        self.all[made.id] = made
        return made, False

    async def run(self, delegation: Delegation) -> None:
        """Send it, a second time where the platform thinks that nothing was delivered."""
        outcome = await self._proxy.send(delegation.envelope(), caller=delegation.source)
        told = parsed(outcome.body)
        restarting = isinstance(told, dict) and told.get("restarting") is True
        if outcome.status == 502 or (outcome.status == 503 and restarting):
            delegation.retried = True
            await anyio.sleep(self._times.delegate_retry)
            outcome = await self._proxy.send(delegation.envelope(), caller=delegation.source)
            told = parsed(outcome.body)
        if isinstance(told, dict) and told.get("queued") is True:
            delegation.state = DelegationState.QUEUED
        elif outcome.error is None:
            delegation.state, delegation.answer = DelegationState.COMPLETED, _text(told, outcome.body)
        else:
            delegation.state, delegation.error = DelegationState.FAILED, outcome.error

    def stitch(self, message_id: str, response: Any, *, dropped: bool = False) -> None:
        """Tell the source what became of its queued message."""
        delegation = self.all.get(message_id)
        if delegation is None or delegation.state is not DelegationState.QUEUED:
            return
        if dropped:
            delegation.state, delegation.error = DelegationState.FAILED, "workspace did not settle"
        else:
            delegation.state = DelegationState.COMPLETED
            delegation.answer = _text(response, b"") if response is not None else None


def _text(reply: Any, raw: bytes) -> str:
    """Read an answer as the platform's delegations do: a Task's own text is JSON to them."""
    result = reply.get("result") if isinstance(reply, dict) else None
    if isinstance(result, dict):
        for parts in (result.get("parts"), *(part.get("parts") for part in _artifacts(result))):
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict) and part.get("kind") == "text":
                    return str(part.get("text"))
    return raw.decode(errors="replace") or json.dumps(reply)


def _artifacts(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    artifacts = result.get("artifacts")
    return [one for one in artifacts if isinstance(one, dict)] if isinstance(artifacts, list) else []
