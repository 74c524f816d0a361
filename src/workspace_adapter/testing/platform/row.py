"""What the platform knows of its workspace: one row of its table, and what moves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .times import Times

_FULL = 1000
"""Tasks no workspace has: what one says that is not to be dispatched to."""


class Status(StrEnum):
    """The platform's words."""

    PROVISIONING = "provisioning"
    ONLINE = "online"
    OFFLINE = "offline"
    DEGRADED = "degraded"
    FAILED = "failed"
    REMOVED = "removed"
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    AWAITING_AGENT = "awaiting_agent"


_AT_REST = frozenset({Status.REMOVED, Status.PAUSED, Status.HIBERNATED})
_HEALED_BY_A_BEAT = frozenset({Status.PROVISIONING, Status.OFFLINE, Status.AWAITING_AGENT, Status.FAILED})


@dataclass(slots=True)
class Row:
    """One workspace as the platform sees it; times are of the monotonic clock."""

    times: Times
    status: Status = Status.PROVISIONING
    url: str = ""
    provisioned_url: str = ""
    """What the provisioner published; kept, whatever the workspace registers."""
    agent_card: Mapping[str, Any] | None = None
    delivery_mode: str = "push"
    generation: int = 1
    active_tasks: int = 0
    last_error: str = ""
    runtime_metadata: Mapping[str, Any] = field(default_factory=dict)
    heartbeat_at: float | None = None
    alive_until: float | None = None
    register_failed_at: float | None = None
    boot_id: str | None = None
    """Which life of the workspace spoke last; no word of the platform's own wire, but ours says it."""
    uptime: int = 0
    restart_started_at: float | None = None
    restarting: bool = False
    """Whether a cycle of the automatic kind is under way; the button's is not known here, which is a flaw."""
    boot_turn: bool = False
    """Whether the restart context is under way or still to be sent: meanwhile nobody else is heard."""
    active_at: float | None = None
    """When the workspace last said what its agent does."""
    draining_since: float | None = None
    """When the workspace was told to drain; ``None`` when it has said since that it has room."""
    said_full: bool = False

    def spoke(self, boot_id: str | None) -> bool:
        """Note which life speaks; return whether it is the one that spoke last."""
        if same := boot_id == self.boot_id:
            return same
        self.boot_id, self.uptime = boot_id, 0
        self.draining_since, self.said_full = None, False
        return False

    def registered(self, body: Mapping[str, Any], now: float) -> None:
        """Take a registration; at rest nothing moves but the URL, which is a flaw of the platform."""
        self.url = self.provisioned_url or body.get("url") or body["agent_card"]["url"]
        self.heartbeat_at = now
        self.alive_until = now + self.times.liveness
        self.register_failed_at = None
        self.delivery_mode = body.get("delivery_mode") or self.delivery_mode
        self.agent_card = body["agent_card"]
        if self.status not in _AT_REST:
            self.status = Status.ONLINE

    def beat(self, body: Mapping[str, Any], now: float) -> None:
        """Take a heartbeat."""
        self.heartbeat_at = now
        if self.alive_until is not None and now < self.alive_until:
            self.alive_until = now + self.times.liveness
        self.active_tasks = body.get("active_tasks", 0)
        self.uptime = body.get("uptime_seconds", 0)
        self.last_error = body.get("sample_error", "")
        self.runtime_metadata = body.get("runtime_metadata") or {}
        if body.get("agent_card"):
            self.agent_card = self.agent_card or body["agent_card"]
            self.register_failed_at = None
        full = self.active_tasks >= _FULL
        if self.said_full and not full:
            self.draining_since = None
        self.said_full = full
        self._move(body, now)

    def _move(self, body: Mapping[str, Any], now: float) -> None:
        rate, wedged = body.get("error_rate", 0), body.get("runtime_state") == "wedged"
        managed = self.runtime_metadata.get("capabilities", {}).get("status_mgmt", False)
        failed = self.register_failed_at is not None and (
            now - self.register_failed_at < self.times.register_failure
        )
        if self.status in _HEALED_BY_A_BEAT:
            self.status = Status.ONLINE
        if self.status is Status.ONLINE and (wedged or failed or (rate >= 0.5 and not managed)):
            self.status = Status.DEGRADED
        elif self.status is Status.DEGRADED and not (wedged or failed or (rate >= 0.1 and not managed)):
            self.status = Status.ONLINE

    def recently_alive(self, now: float) -> bool:
        """Whether the last beat is young enough to believe in."""
        return self.heartbeat_at is not None and now - self.heartbeat_at <= self.times.recent_heartbeat
