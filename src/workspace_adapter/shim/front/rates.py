"""How often one caller may ask: a bucket of requests for each, filled as time passes."""

from __future__ import annotations

from collections import OrderedDict

_CALLERS = 10_000
"""Buckets kept at once. Who asked longest ago has a full one again, or nearly."""


class Rates:
    """Counts requests.

    Args:
        per_minute: what one caller may make; as many at once. 0 is no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, now: float) -> float:
        """Count one request; return 0, or the seconds until there is room for it."""
        if self.per_minute == 0:
            return 0.0
        left, at = self._buckets.get(who, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - at) * self.per_minute / 60)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self.per_minute
        self._buckets[who] = (left - 1 if wait == 0 else left), now
        self._buckets.move_to_end(who)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        return wait
