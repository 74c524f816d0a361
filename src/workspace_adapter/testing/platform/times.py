"""Every time the existing platform keeps, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The platform's own values; a test scales all of them at once."""

    beat: float = 10.0
    """Longest between two beats of one life: a third more and the platform sees half of them too late."""
    recent_heartbeat: float = 15.0
    """How young the last beat must be for the platform to believe that a workspace lives."""
    liveness: float = 180.0
    """Without a beat for so long a workspace is offline; only a registration makes it live again."""
    register_failure: float = 300.0
    """How long a failed registration keeps a workspace degraded whose beats carry no card."""
    rate_window: float = 60.0
    """In which ``rate_limit`` requests are allowed."""

    def scaled(self, scale: float) -> Self:
        """Multiply every time by one factor."""
        return replace(self, **{field.name: getattr(self, field.name) * scale for field in fields(self)})
