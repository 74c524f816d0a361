"""What a scraper is told of the shim, read at the moment it asks.

The first scrape imports the Prometheus client: a shim that nobody scrapes has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import anyio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from .. import __version__
from ..queueing import LIVE, State
from .store.contract import Counts, Status, Store

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_FRESH = 1.0
"""Seconds for which all who ask are told the same: counting takes a moment."""

_PREFIX = "workspace_shim_"


class Now(NamedTuple):
    """What the rooms of this replica say."""

    dispatching: int
    """Dispatches under way."""
    held: int
    """Callers held open."""
    stranded: int
    """Messages that wait where nothing can be sent."""
    heartbeats: Mapping[str, int]
    """Of this life, by what came of them."""


class Metrics(Collector):
    """The shim as a scraper sees it, in a registry of its own."""

    def __init__(self, store: Store, boot_id: str, now: Callable[[], Now]) -> None:
        self._store = store
        self._boot_id = boot_id
        self._now = now
        self._counts = Counts({}, {})
        self._one_by_one = anyio.Lock()
        self._told = b""
        self._told_at = float("-inf")
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def scrape(self) -> bytes:
        """Read the rooms and the store, and render what they say.

        Raises:
            StoreUnavailable: it cannot be counted.
        """
        async with self._one_by_one:
            if anyio.current_time() - self._told_at >= _FRESH:
                self._counts = await self._store.counts()
                self._told = generate_latest(self._registry)
                self._told_at = anyio.current_time()
            return self._told

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of ours."""
        who = {"version": __version__, "boot_id": self._boot_id}
        info = GaugeMetricFamily(
            f"{_PREFIX}info", "Which version and life this replica is; always 1.", labels=list(who)
        )
        info.add_metric(list(who.values()), 1)
        yield info
        now, counts = self._now(), self._counts
        yield _labelled(
            GaugeMetricFamily(f"{_PREFIX}workspaces", "Workspaces, by status.", labels=["status"]),
            {status: counts.workspaces.get(status, 0) for status in Status if status != Status.REMOVED},
        )
        yield _labelled(
            GaugeMetricFamily(
                f"{_PREFIX}queue_items", "Messages that have not ended, by state.", labels=["state"]
            ),
            {state: counts.items.get(state, 0) for state in sorted(LIVE)},
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}dead_letters", "Messages that were given up on.", counts.items.get(State.FAILED, 0)
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}stranded_items", "Messages that wait where nothing can be sent.", now.stranded
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}dispatches", "Messages that this replica is sending.", now.dispatching
        )
        yield GaugeMetricFamily(f"{_PREFIX}held_callers", "Callers that this replica holds open.", now.held)
        yield _labelled(
            CounterMetricFamily(
                f"{_PREFIX}heartbeats", "Heartbeats of this life, by what came of them.", labels=["result"]
            ),
            now.heartbeats,
        )


def _labelled(family: Any, values: Mapping[Any, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([str(label)], value)
    metric: Metric = family
    return metric
