from __future__ import annotations

import pytest

from workspace_adapter.sidecar.telemetry.lives import Lives


def after(*stopped: bool) -> Lives:
    """The life that follows these, each told to stop or not."""
    kept = None
    for told in stopped:
        lives = Lives.parse(kept)
        lives.begin()
        if told:
            lives.stop()
        kept = lives.as_text()
    lives = Lives.parse(kept)
    lives.begin()
    return lives


@pytest.mark.parametrize(
    ("stopped", "counted"),
    [
        ((), (0, 0)),
        ((True,), (1, 0)),
        ((False,), (0, 1)),
        ((True, False, False, True, True), (3, 2)),
    ],
)
def test_each_life_before_this_one_counts_by_its_end(
    stopped: tuple[bool, ...], counted: tuple[int, int]
) -> None:
    lives = after(*stopped)
    assert (lives.stopped, lives.cut) == counted


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"stopped": "x", "cut": 0, "told": true}'])
def test_where_nothing_is_known_there_was_no_life_before(text: str | None) -> None:
    lives = Lives.parse(text)
    lives.begin()
    assert (lives.stopped, lives.cut) == (0, 0)
