"""What a scraper is told, read from the rooms at the moment it asks.

The first scrape imports this, and the Prometheus client with it: a workspace that nobody
scrapes has neither. The rooms know nothing of metrics; a few keep durations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import anyio.to_thread
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ... import __version__
from ...drain import DrainState
from ...errors import JournalError
from ...resume import Resumption
from ...turns import OutcomeKind
from ..app import Scraped
from ..children import alive
from ..drainer import CLOSED_BY
from ..durations import Durations
from ..gate import UNWRITABLE
from ..journal import Journal
from ..platform.pulse import Pulse
from .standing import Standing

logger = logging.getLogger(__name__)

_FRESH = 0.25
"""Seconds for which all who ask are told the same: counting a large journal takes a moment."""


class Metrics(Collector):
    """The workspace as a scraper sees it, in a registry of its own."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._children = 0
        self._one_by_one = anyio.Lock()
        self._told: tuple[float, Scraped | None] = (0.0, None)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def scrape(self) -> Scraped:
        """Read the rooms and render what they say; who waits for that is told the same."""
        async with self._one_by_one:
            at, scraped = self._told
            if scraped is None or anyio.current_time() - at >= _FRESH:
                if self._standing.journal is not None:
                    self._children = await anyio.to_thread.run_sync(alive, self._standing.journal)
                scraped = Scraped(generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)
                self._told = anyio.current_time(), scraped
            return scraped

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of ours; what the journal knows is left out while it cannot be read."""
        yield from self._workspace()
        yield from self._turns()
        yield from self._limits()
        if self._standing.pulse is not None:
            yield from _platform(self._standing.pulse)
        if self._standing.journal is not None:
            yield from self._kept()
            yield from self._writes(self._standing.journal)
            try:
                yield from list(_on_disk(self._standing.journal))
            except JournalError as error:
                logger.info("scraped without what is on disk: %s", error)

    # --- what there is ----------------------------------------------------------------

    def _workspace(self) -> Iterator[Metric]:
        standing = self._standing
        who = {
            "workspace_id": standing.settings.workspace_id,
            "version": __version__,
            "adapter": standing.adapter.name,
            "boot_id": standing.boot_id,
        }
        info = GaugeMetricFamily(
            f"{_PREFIX}info", "Which workspace, version and life this is; always 1.", labels=list(who)
        )
        info.add_metric(list(who.values()), 1)
        yield info
        yield _gauge("start_time_seconds", "When this life began, in UTC epoch seconds.", standing.began_at)
        if (seconds := standing.opened_after) is not None:
            yield _gauge("boot_seconds", "From this life's beginning until messages were accepted.", seconds)
        yield _gauge("ready", "1 while messages are accepted.", standing.ready()[0])
        now = standing.state()
        yield _gauges(
            "state",
            "1 for the state that the workspace is in.",
            ("state", {state: state == now for state in ("booting", *DrainState)}),
        )
        yield _gauges(
            "gate_closed",
            "1 for who holds the gate closed: while anybody does, no tool call and no turn starts.",
            ("by", {who: who in standing.switch.closed_by for who in (CLOSED_BY, UNWRITABLE)}),
        )

    def _turns(self) -> Iterator[Metric]:
        tally = self._standing.tally
        yield _gauge("active_tasks", "Turns that a runtime works on.", len(self._standing.ledger))
        yield _gauge("held_callers", "Requests that are held open.", len(self._standing.room))
        yield _counters(
            "attempts",
            "Attempts begun, by how.",
            ("resumption", {how: tally.attempts[how] for how in Resumption}),
        )
        yield _counters(
            "turns_ended",
            "Turns that came to an end, or were suspended, by outcome.",
            ("outcome", {kind: tally.ends[kind] for kind in OutcomeKind}),
        )
        yield _counters("tokens", "Tokens that runtimes say ended turns took.", ("kind", tally.tokens))
        yield _histogram("turn_seconds", "From a message's acceptance to its turn's end.", tally.took)
        yield _histogram(
            "resume_seconds",
            "From an interrupted attempt's last sign of life to the start of the next one.",
            tally.resumed,
        )
        runtimes = (
            list(self._standing.sessions.runtimes().values()) if self._standing.sessions is not None else []
        )
        yield _gauges(
            "sessions",
            "Sessions whose runtime is open and idle, or runs a turn.",
            ("runtime", {what: runtimes.count(what) for what in ("open", "running")}),
        )
        yield _gauge("children", "Processes of the runtimes, and of the tools they run.", self._children)

    def _limits(self) -> Iterator[Metric]:
        settings = self._standing.settings
        for name, setting, limit in (
            (
                "active_tasks_limit",
                "WORKSPACE_MAX_CONCURRENT_TURNS",
                settings.max_concurrent_turns,
            ),
            ("held_callers_limit", "WORKSPACE_HELD_LIMIT", settings.held_limit),
            ("inbox_limit", "WORKSPACE_INBOX_LIMIT", settings.inbox_limit),
            (
                "journal_limit_bytes",
                "WORKSPACE_JOURNAL_LIMIT_BYTES",
                settings.journal_limit_bytes,
            ),
        ):
            yield _gauge(name, f"{setting}.", limit)

    def _kept(self) -> Iterator[Metric]:
        """Counters that go on from life to life: a zero before they are read would look like a reset."""
        lives = self._standing.lives
        yield _counters(
            "restarts",
            "Starts of this workspace, its first left out, by how the life before ended.",
            ("after", {"stop": lives.stopped, "cut": lives.cut}),
        )
        yield _histogram(
            "drain_seconds", "From a drain's beginning to its acknowledgement.", self._standing.drainer.took
        )

    def _writes(self, journal: Journal) -> Iterator[Metric]:
        yield _gauge(
            "journal_writable", "1 while the journal can be written.", self._standing.housekeeping.healthy
        )
        yield _gauge(
            "journal_salvaged",
            "1 where this life found the journal damaged and saved what it could.",
            journal.salvaged is not None,
        )
        yield _histogram(
            "journal_commit_seconds", "What each commit took, its fsync included.", journal.commits
        )
        yield CounterMetricFamily(
            f"{_PREFIX}journal_commit_failures", "Commits that came to nothing.", journal.failures
        )


def _platform(pulse: Pulse) -> Iterator[Metric]:
    results = ("ok", "failed")
    yield _counters(
        "heartbeats",
        "Heartbeats, by what came of them.",
        ("result", {result: pulse.beats[result] for result in results}),
    )
    yield _counters(
        "registrations",
        "Registrations with the platform, by what came of them.",
        ("result", {result: pulse.registrations[result] for result in results}),
    )
    stands = pulse.status()
    yield _gauge("wedged", "1 while heartbeats say so.", stands["wedged"] is not None)
    if (ago := stands["answered_seconds_ago"]) is not None:
        yield _gauge("heartbeat_answered_seconds", "How long ago the platform last took a heartbeat.", ago)


def _on_disk(journal: Journal) -> Iterator[Metric]:
    yield _gauge("journal_bytes", "What the journal holds, large bodies included.", journal.size_bytes())
    yield _gauges("turns", "Turns on disk, by state.", ("state", journal.counts()))
    oldest = journal.oldest_waiting()
    yield _gauge(
        "inbox_oldest_seconds",
        "How long the message that waits longest has waited to be started; 0 where none waits.",
        0.0 if oldest is None else max(0.0, journal.time() - oldest),
    )
    yield _gauge(
        "turn_attempts_max",
        "Attempts of the turn that was begun most often, of those that have not ended.",
        journal.most_attempts(),
    )


_PREFIX = "workspace_adapter_"

_Labelled = tuple[str, Mapping[Any, float]]
"""A label's name, and the value for each of its values."""


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, help, value)


def _gauges(name: str, help: str, values: _Labelled) -> Metric:
    return _labelled(GaugeMetricFamily(_PREFIX + name, help, labels=[values[0]]), values)


def _counters(name: str, help: str, values: _Labelled) -> Metric:
    return _labelled(CounterMetricFamily(_PREFIX + name, help, labels=[values[0]]), values)


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: _Labelled) -> Metric:
    for label, value in values[1].items():
        family.add_metric([str(label)], value)
    return family


def _histogram(name: str, help: str, durations: Durations) -> Metric:
    classes = [(str(bound).replace("inf", "+Inf"), count) for bound, count in durations.classes()]
    return HistogramMetricFamily(_PREFIX + name, help, buckets=classes, sum_value=durations.sum)
