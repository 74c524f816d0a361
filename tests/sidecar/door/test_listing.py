from __future__ import annotations

import pytest

from workspace_adapter.sidecar.door import listing
from workspace_adapter.sidecar.door.refusal import Refusal


@pytest.mark.parametrize("token", ["1800000000123.7", "-86400000.7"])
def test_a_page_goes_on_where_the_last_one_ended_before_1970_too(token: str) -> None:
    """A clock that starts in 1970 shows what came before it with negative times."""
    at, seq = listing._read_token(token)
    assert f"{at}.{seq}" == token


@pytest.mark.parametrize("token", ["", "x", "1", "1.", ".1", "1.-2", "--1.2", "1.2.3", "1e3.2", "²3.1"])
def test_a_page_token_of_somebody_else_is_refused(token: str) -> None:
    with pytest.raises(Refusal, match="pageToken"):
        listing._read_token(token)
