from __future__ import annotations

from math import inf

import pytest

from workspace_adapter.sidecar.durations import MOMENTS, WAITS, WORK, Durations

BOUNDS = (0.1, 1.0)


def observed(*seconds: float) -> Durations:
    durations = Durations(BOUNDS)
    for each in seconds:
        durations.observe(each)
    return durations


def test_each_class_counts_all_that_took_no_longer() -> None:
    durations = observed(0.05, 0.1, 0.5, 7)
    assert durations.classes() == [(0.1, 2), (1.0, 3), (inf, 4)]
    assert durations.sum == pytest.approx(7.65)


def test_what_an_earlier_life_wrote_down_is_added() -> None:
    durations = observed(0.5)
    durations.add(observed(0.05, 7).as_text())
    assert durations.classes() == observed(0.05, 0.5, 7).classes()
    assert durations.sum == pytest.approx(7.55)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"bounds": [0.1], "counts": [1, 1], "sum": 1}',
        '{"bounds": [0.1, 1.0], "counts": [1], "sum": 1}',
        '{"bounds": [0.1, 1.0], "counts": ["x", 1, 1], "sum": 1}',
    ],
)
def test_what_is_not_ours_adds_nothing(text: str | None) -> None:
    durations = observed(0.5)
    durations.add(text)
    assert durations.classes() == observed(0.5).classes()


@pytest.mark.parametrize("bounds", [MOMENTS, WAITS, WORK])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
