"""Wakes whoever waits for a turn to change."""

from __future__ import annotations

from weakref import WeakValueDictionary

import anyio


class Bell:
    """One event a turn, replaced each time it rings; it lasts while somebody listens.

    Listen first, then read the journal, then wait: a change between the two is not missed.
    """

    def __init__(self) -> None:
        self._events: WeakValueDictionary[str, anyio.Event] = WeakValueDictionary()

    def listen(self, turn_id: str) -> anyio.Event:
        """Return an event that is set by the next ring for this turn."""
        event = self._events.get(turn_id)
        if event is None:
            event = self._events[turn_id] = anyio.Event()
        return event

    def heard(self, turn_id: str) -> bool:
        """Whether anyone listens for this turn."""
        return turn_id in self._events

    def ring(self, turn_id: str) -> None:
        """Wake everyone who listens for this turn."""
        event = self._events.pop(turn_id, None)
        if event is not None:
            event.set()
