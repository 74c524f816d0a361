from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter.sidecar.door.cursor import Cursor

numbers = st.integers(0, 10**18 - 1)
cursors = st.builds(Cursor, numbers, numbers, st.integers(0, 2))


@given(cursors)
def test_a_cursor_comes_back_as_it_was_given(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@given(numbers, numbers)
def test_the_end_is_past_the_last_entry_and_before_the_next(seq: int, n: int) -> None:
    assert Cursor(seq, n) < Cursor(seq, n, 1) < Cursor(seq, n, 2) < Cursor(seq, n + 1)


@given(st.text() | st.none() | st.integers())
def test_what_is_no_cursor_of_ours_is_none(text: object) -> None:
    parsed = Cursor.parse(text)
    assert parsed is None or Cursor.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "5", "a.b", "1.2.3.4", "1.-2", "1.2 ", "٣.٤", "1." + "9" * 30, None, 7])
def test_odd_ones_are_no_error(text: object) -> None:
    assert Cursor.parse(text) is None
