"""How the workspace stands, as heartbeats say it."""

from __future__ import annotations

import pytest

from workspace_adapter.adapter import Capabilities, RuntimeAdapter, RuntimeSession, TurnEvents, TurnRequest
from workspace_adapter.drain import Drain
from workspace_adapter.errors import RuntimeUnusable
from workspace_adapter.events import TurnFinished
from workspace_adapter.ledger import Ledger
from workspace_adapter.sidecar.drainer import Drainer
from workspace_adapter.sidecar.gate import UNWRITABLE, Switch
from workspace_adapter.sidecar.platform.vitals import VitalSigns


class Moody(RuntimeAdapter):
    """Says of itself what it is told to say."""

    name = "moody"
    capabilities = Capabilities(gate=None)
    mood: object = None
    asked = 0

    class Session(RuntimeSession):
        async def run_turn(self, turn: TurnRequest) -> TurnEvents:
            yield TurnFinished(answer="")

    def wedged(self) -> str | None:
        self.asked += 1
        if isinstance(self.mood, BaseException):
            raise self.mood
        return self.mood  # type: ignore[return-value]  # whatever an author returns


class Signs:
    def __init__(self) -> None:
        self.adapter, self.ledger, self.switch = Moody(), Ledger(2), Switch()
        self.drainer = Drainer(drain=Drain(window=60), ledger=self.ledger, switch=self.switch, cap=5)
        self.signs = VitalSigns(
            adapter=self.adapter,
            ledger=self.ledger,
            switch=self.switch,
            drainer=self.drainer,
            card=lambda: {"name": "n", "url": "http://elsewhere/", "preferredTransport": "JSONRPC"},
            url="http://w:8000",
        )

    def trouble(self, mood: object) -> str | None:
        self.adapter.mood = mood
        self.signs.ask_runtime()
        return self.signs.read().trouble


async def test_it_tells_the_ledger_and_of_the_card_what_the_platform_reads() -> None:
    with_all = Signs()
    with_all.ledger.wait("t1", "s1", seq=1)
    with_all.ledger.wait("t2", "s1", seq=2)
    running = with_all.ledger.start_next()
    assert running is not None
    running.about = "a question"
    vitals = with_all.signs.read()
    assert (vitals.running, vitals.waiting, vitals.current_task) == (1, 1, "a question")
    assert vitals.agent_card == {"name": "n", "url": "http://w:8000"}


async def test_there_is_no_room_while_the_journal_cannot_be_written_but_it_does_not_leave() -> None:
    with_all = Signs()
    assert with_all.signs.read().accepting
    with_all.switch.close(UNWRITABLE)
    vitals = with_all.signs.read()
    assert not vitals.accepting
    assert not vitals.leaving


async def test_what_the_runtime_says_is_said_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    with_all = Signs()
    assert with_all.trouble(None) is None
    assert [with_all.trouble("its server is gone") for _ in range(3)] == ["its server is gone"] * 3
    assert with_all.trouble(RuntimeUnusable("no server")) == "no server"
    assert [line for line in caplog.messages if "cannot work" in line] == [
        "the runtime says that it cannot work: its server is gone"
    ]
    assert with_all.trouble(None) is None


async def test_an_adapter_that_fails_when_asked_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with_all = Signs()
    assert [with_all.trouble(ValueError("oops")) for _ in range(3)] == [None] * 3
    assert with_all.adapter.asked == 1
    assert len(caplog.messages) == 1
