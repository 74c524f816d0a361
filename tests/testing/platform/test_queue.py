"""The life of a queued message, flaws included."""

from __future__ import annotations

from typing import Any

import pytest

from workspace_adapter.testing.platform.callers import message
from workspace_adapter.testing.platform.queue import CannotEnqueue, ItemState, Queue
from workspace_adapter.testing.platform.times import Times


def queue(scale: float = 1.0) -> Queue:
    return Queue(Times().scaled(scale), scale)


def test_one_message_is_enqueued_once_while_it_is_active() -> None:
    rows = queue()
    first = rows.enqueue(message("a", message_id="m"), caller=None, now=0)
    assert rows.enqueue(message("a", message_id="m"), caller=None, now=1) is first
    assert rows.claim(1) is first
    assert rows.enqueue(message("a", message_id="m"), caller=None, now=2) is first
    rows.complete(first, {"result": {}})
    assert rows.enqueue(message("a", message_id="m"), caller=None, now=3) is not first


def test_a_row_without_a_key_is_another_each_time() -> None:
    rows = queue()
    body = message("a", message_id="m")
    assert rows.enqueue(body, caller=None, now=0, keyed=False) is not rows.enqueue(
        body, caller=None, now=0, keyed=False
    )
    assert rows.depth() == 2


def test_what_expired_is_superseded_and_counted_until_then() -> None:
    rows = queue()
    body: dict[str, Any] = message("a", message_id="m")
    body["params"]["expires_in_seconds"] = 5
    old = rows.enqueue(body, caller=None, now=0)
    assert rows.claim(6) is None
    assert (rows.depth(), rows.due(6)) == (1, [])
    assert rows.enqueue(body, caller=None, now=6) is not old
    assert (old.state, old.last_error) == (ItemState.DROPPED, "superseded")


def test_the_next_one_is_the_most_urgent_then_the_oldest() -> None:
    rows = queue()
    late = rows.enqueue(message("late"), caller=None, now=2)
    early = rows.enqueue(message("early"), caller=None, now=1)
    urgent = rows.enqueue(message("urgent"), caller=None, now=3, priority=90)
    assert [rows.claim(4), rows.claim(4), rows.claim(4), rows.claim(4)] == [urgent, early, late, None]


def test_five_failures_end_it_and_none_of_them_waits() -> None:
    rows = queue()
    item = rows.enqueue(message("a"), caller=None, now=0)
    for attempt in range(1, 6):
        assert rows.claim(0) is item
        assert item.attempts == attempt
        rows.fail(item, "500")
    assert item.state is ItemState.FAILED
    assert rows.claim(0) is None


def test_a_gateways_status_waits_and_is_not_charged_until_it_has_settled_for_too_long() -> None:
    rows = queue()
    item = rows.enqueue(message("a"), caller=None, now=0)
    assert rows.claim(10) is item
    assert rows.retry_later(item, "502", 10)
    assert (item.state, item.attempts, item.settling_since) == (ItemState.QUEUED, 0, 10)
    assert rows.claim(14.9) is None
    assert rows.claim(15) is item
    assert rows.retry_later(item, "502", 189)
    assert rows.claim(194) is item
    assert not rows.retry_later(item, "502", 190)
    assert item.state is ItemState.DROPPED


def test_a_body_that_the_column_cannot_hold_is_not_enqueued() -> None:
    with pytest.raises(CannotEnqueue):
        queue().enqueue(message("a\0b"), caller=None, now=0)


def test_a_completed_row_without_an_answer_is_a_lost_message() -> None:
    rows = queue()
    item = rows.enqueue(message("a"), caller=None, now=0)
    assert not item.lost
    rows.complete(item, None)
    assert item.lost
