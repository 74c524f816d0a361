from __future__ import annotations

import pytest

from workspace_adapter.errors import ContractBroken, JournalTaken
from workspace_adapter.sidecar.fence import fence


def test_the_journals_own_error_passes_however_deep_the_adapters_task_groups_wrap_it() -> None:
    taken = JournalTaken("another's now")
    with pytest.raises(JournalTaken, match="another's now"), fence("run_turn"):
        raise ExceptionGroup("", [KeyError(), ExceptionGroup("", [taken])])
    with pytest.raises(ContractBroken, match="run_turn: ExceptionGroup"), fence("run_turn"):
        raise ExceptionGroup("", [KeyError()])
