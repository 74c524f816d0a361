"""How the workspace stands, as heartbeats say it; read on the event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...adapter import RuntimeAdapter
from ...drain import DrainState
from ...errors import AdapterError, ContractBroken
from ...heartbeat import TEXT_LIMIT, Ended, Ends, Vitals
from ...ledger import Ledger
from ...turns import Outcome, OutcomeKind, Turn
from ..drainer import Drainer
from ..fence import fence
from ..gate import Switch

logger = logging.getLogger(__name__)

_TOLD = (
    *("name", "description", "version", "skills", "capabilities"),
    *("configuration_status", "configuration_error"),
)
"""What of our card the platform is told, beside the address that is registered."""


class VitalSigns:
    """What the rooms say of themselves, put together."""

    def __init__(
        self,
        *,
        adapter: RuntimeAdapter,
        ledger: Ledger,
        switch: Switch,
        drainer: Drainer,
        card: Callable[[], Mapping[str, Any]],
        url: str,
    ) -> None:
        self._adapter = adapter
        self._ledger = ledger
        self._switch = switch
        self._drainer = drainer
        self._card = card
        self._url = url
        self._ends = Ends()
        self._trouble: str | None = None
        self._mute = False
        """The adapter cannot be asked."""

    def read(self) -> Vitals:
        """Say how the workspace stands now."""
        state, card = self._drainer.state, self._card()
        return Vitals(
            running=len(self._ledger),
            waiting=len(self._ledger.waiting),
            current_task=next((turn.about for turn in self._ledger if turn.about), ""),
            accepting=self._switch.opened and state is DrainState.SERVING,
            leaving=state is not DrainState.SERVING,
            state=str(state),
            trouble=self._trouble,
            ends=self._ends,
            agent_card={name: card[name] for name in _TOLD if name in card} | {"url": self._url},
        )

    def ask_runtime(self) -> None:
        """Ask the runtime whether it can work; what it says is logged when it changes."""
        if self._mute:
            return
        try:
            with fence("wedged"):
                told = self._adapter.wedged()
            trouble = str(told)[:TEXT_LIMIT] if told else None
        except ContractBroken:  # logged by the fence, once is enough
            self._mute, trouble = True, None
        except AdapterError as error:
            trouble = str(error)[:TEXT_LIMIT]
        if trouble is not None and self._trouble is None:
            logger.error("the runtime says that it cannot work: %s", trouble)
        elif trouble is None and self._trouble is not None:
            logger.info("the runtime says that it can work again")
        self._trouble = trouble

    def told(self, turn: Turn) -> None:
        """A turn ended, or was suspended; that counts for the error rate."""
        failure: str | None = None
        match turn.outcome:
            case Outcome(kind=OutcomeKind.FAILED | OutcomeKind.SUSPENDED as kind, reason=reason):
                failure = reason[:TEXT_LIMIT] or str(kind)
            case Outcome(kind=OutcomeKind.ANSWERED | OutcomeKind.ASKED_BACK):
                pass
            case _:  # who canceled it, or let it expire, says nothing of the workspace
                return
        self._ends = self._ends.and_(Ended(time.monotonic(), failure))
