"""What the extension point does by itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
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
    TurnRequest,
)
from workspace_adapter.events import TurnEvent, TurnFinished
from workspace_adapter.resume import Evidence, Resumption
from workspace_adapter.testing.recording import Record, RecordingChildren


class LeastSession(RuntimeSession):
    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        yield TurnFinished()


class LeastAdapter(RuntimeAdapter):
    name = "least"
    capabilities = Capabilities(gate=None)

    def open_session(self, context: SessionContext) -> AbstractAsyncContextManager[RuntimeSession]:
        raise NotImplementedError


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


def test_two_methods_make_an_adapter_and_one_a_session() -> None:
    assert RuntimeAdapter.__abstractmethods__ == {"open_session"}
    assert RuntimeSession.__abstractmethods__ == {"run_turn"}
    with pytest.raises(TypeError):
        RuntimeSession()  # type: ignore[abstract]


async def test_everything_else_has_a_default(tmp_path: Path) -> None:
    adapter = LeastAdapter("settings")
    assert adapter.settings == "settings"
    assert await adapter.check() == ""
    children = RecordingChildren(Record(lambda: 0, lambda moment: None), {}, "mark")
    async with adapter.running(children, tmp_path):
        await LeastSession().stop(StopReason.RESTART)


async def test_in_doubt_an_interrupted_turn_was_seen(tmp_path: Path) -> None:
    turn = InterruptedTurn(
        id="t", attempts=1, session_id="s", handle=None, workdir=tmp_path, state_dir=tmp_path, text="Do it."
    )
    assert await LeastAdapter().recover(turn) == Evidence.seen()
