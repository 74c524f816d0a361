"""What answers ``/metrics``: loads what renders them when somebody asks for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from ..app import MetricsMissing, Scraped
from .standing import Standing

if TYPE_CHECKING:
    from .metrics import Metrics


class Scrape:
    """Asked by each scraper."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._metrics: Metrics | None = None

    async def __call__(self) -> Scraped:
        """Return what a scraper is told.

        Raises:
            MetricsMissing: the extra is not installed.
        """
        if self._metrics is None:
            made = await anyio.to_thread.run_sync(_load)
            self._metrics = self._metrics or made(self._standing)
        return await self._metrics.scrape()


def _load() -> type[Metrics]:
    """Import what renders metrics, and the extra with it.

    Raises:
        MetricsMissing: it is not installed.
    """
    try:
        from .metrics import Metrics
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise MetricsMissing(
            "metrics need an extra that is not installed: pip install 'workspace-adapter[metrics]'"
        ) from None
    return Metrics
