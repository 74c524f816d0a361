"""What the extension point does by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from workspace_adapter.adapter import (
    Capabilities,
    DataPart,
    FilePart,
    InterruptedTurn,
    Part,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    StopReason,
    TextPart,
    TurnEvents,
    TurnRequest,
)
from workspace_adapter.events import TurnFinished
from workspace_adapter.resume import Evidence, Resumption
from workspace_adapter.testing.recording import Record, RecordingChildren, RecordingGate


class LeastSession(RuntimeSession):
    async def run_turn(self, turn: TurnRequest) -> TurnEvents:
        yield TurnFinished()


class LeastAdapter(RuntimeAdapter):
    name = "least"
    capabilities = Capabilities(gate=None)
    Session = LeastSession


def context(directory: Path) -> SessionContext:
    record = Record(lambda: 0, lambda moment: None)
    return SessionContext(
        session_id="s",
        workdir=directory,
        state_dir=directory,
        gate=RecordingGate(record, permits=None, hold=False),
        children=RecordingChildren(record, {}, "mark"),
    )


def request(*parts: Part, resumption: Resumption = Resumption.NEW, note: str | None = None) -> TurnRequest:
    return TurnRequest(id="t", attempt=1, parts=parts, resumption=resumption, note=note)


def test_a_message_as_one_text_names_its_files_and_quotes_its_data() -> None:
    turn = request(
        TextPart(text="Look at these."),
        FilePart(path=Path("/w/a.png"), name="a.png", mime_type="image/png"),
        DataPart(json='{"b": 1}'),
    )
    assert turn.text == 'Look at these.\n[file a.png (image/png): /w/a.png]\n{"b": 1}'


def test_a_new_message_is_the_prompt() -> None:
    assert request(TextPart(text="Do it.")).prompt == "Do it."


def test_what_a_new_message_must_know_stands_before_it() -> None:
    assert request(TextPart(text="Do it."), note="[Given up.]").prompt == "[Given up.]\n\nDo it."


def test_a_replayed_message_stands_behind_its_note() -> None:
    turn = request(TextPart(text="Do it."), resumption=Resumption.REPLAY, note="[Restarted.]")
    assert turn.prompt == "[Restarted.]\n\nDo it."


def test_a_continued_conversation_gets_the_note_alone() -> None:
    turn = request(TextPart(text="Do it."), resumption=Resumption.CONTINUE, note="[Restarted: Do it.]")
    assert turn.prompt == "[Restarted: Do it.]"


async def test_an_adapter_that_says_what_its_session_is_opens_it(tmp_path: Path) -> None:
    given = context(tmp_path)
    async with LeastAdapter().open_session(given) as session:
        assert isinstance(session, LeastSession)
        assert session.context is given


def test_a_session_that_runs_no_turn_is_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="run_turn"):
        RuntimeSession(context(tmp_path))  # type: ignore[abstract]


def test_an_adapter_that_opens_no_session_is_none() -> None:
    class Sessionless(RuntimeAdapter):
        name = "sessionless"
        capabilities = Capabilities(gate=None)

    with pytest.raises(TypeError, match="Sessionless needs a `Session`, or an `open_session` of its own"):
        Sessionless()


async def test_everything_else_has_a_default(tmp_path: Path) -> None:
    adapter = LeastAdapter("settings")
    assert adapter.settings == "settings"
    assert await adapter.check() == ""
    given = context(tmp_path)
    async with adapter.running(given.children, tmp_path), adapter.open_session(given) as session:
        await session.stop(StopReason.RESTART)


async def test_in_doubt_an_interrupted_turn_was_seen(tmp_path: Path) -> None:
    turn = InterruptedTurn(
        id="t", attempts=1, session_id="s", handle=None, workdir=tmp_path, state_dir=tmp_path, text="Do it."
    )
    assert await LeastAdapter().recover(turn) == Evidence.seen()
