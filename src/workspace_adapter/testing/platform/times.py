"""Every time the existing platform keeps, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The platform's own values; a test scales all of them at once."""

    beat: float = 10.0
    """Longest between two beats of one life: the platform takes any, but believes in young ones alone."""
    recent_heartbeat: float = 15.0
    """How young the last beat must be for the platform to believe that a workspace lives."""
    liveness: float = 180.0
    """Without a beat for so long a workspace is offline; only a registration makes it live again."""
    register_failure: float = 300.0
    """How long a failed registration keeps a workspace degraded whose beats carry no card."""
    rate_window: float = 60.0
    """In which ``rate_limit`` requests are allowed."""

    connect: float = 10.0
    """For a connection to the workspace."""
    idle: float = 1800.0
    """Without a heartbeat, after which a forwarded message is given up, where the workspace says no other."""
    ceiling: float = 1800.0
    """For a forwarded message of an agent; one from the canvas has none."""
    canvas: float = 90.0
    """After which the canvas is told that its message is queued, while the work goes on."""
    delegate_retry: float = 8.0
    """Before the one retry of a delegation."""

    transient_retry: float = 5.0
    """Before a queued message is tried again that met a gateway's status."""
    settling: float = 180.0
    """Of such retries, after which a queued message is dropped."""
    sweep: float = 10.0
    """Between two looks of the sweeper."""

    signal: float = 10.0
    """For the answer to a signal, for which nobody waits."""
    interrupted_provisioning: float = 10.0
    """Before a cycle that meets a workspace being provisioned."""
    debounce: float = 60.0
    """After the start of a cycle, in which another request for one is dropped."""
    settle_window: float = 30.0
    """After the start of a cycle, in which a missing container must be missed twice."""
    fresh_beat: float = 2.0
    """For a first beat after a restart, before a container is called dead."""
    probe_again: float = 0.5
    """Between two looks for a container that is not there."""
    until_online: float = 30.0
    """For a restarted workspace to be online; then its restart context is queued."""
    until_beating: float = 30.0
    """For the first beat of a workspace that is online; then its restart context is dropped."""
    poll: float = 0.5
    """Between two looks while waiting for these."""
    restart_context_ttl: float = 1800.0
    """Of a restart context that was queued."""

    silent: float = 720.0
    """Without activity of a busy workspace, before it is probed."""
    stall_grace: float = 300.0
    """For activity after the probe, before the workspace is restarted."""
    stall_cooldown: float = 1800.0
    """Between two restarts for silence."""
    phantom: float = 600.0
    """Without activity, after which the platform counts a busy workspace's tasks as none."""

    def scaled(self, scale: float) -> Self:
        """Multiply every time by one factor."""
        return replace(self, **{field.name: getattr(self, field.name) * scale for field in fields(self)})
