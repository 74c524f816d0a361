"""What a conversation's transcript says about an interrupted turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...resume import Evidence


def evidence(lines: Iterable[bytes], prompts: Sequence[str]) -> Evidence:
    """Read off a transcript what became of a turn.

    Args:
        lines: of the transcript; torn and foreign ones are passed over.
        prompts: the uuids the turn's attempts sent their prompts under.
    """
    seen = current = False
    answer: str | None = None
    for entry in _entries(lines):
        if entry["type"] == "assistant":
            answer = _final_text(entry, answer)
            continue
        answer = None
        if _is_prompt(entry):
            current = entry.get("uuid") in prompts
            seen = seen or current
    if not seen:
        return Evidence.unseen()
    return Evidence.answered(answer) if current and answer is not None else Evidence.seen()


def _entries(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The main conversation's messages."""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(entry, dict)
            and entry.get("type") in ("user", "assistant")
            and isinstance(entry.get("message"), dict)
            and not entry.get("isSidechain")
        ):
            yield entry


def _blocks(entry: dict[str, Any]) -> list[dict[str, Any]]:
    content = entry["message"].get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content or () if isinstance(block, dict)]


def _is_prompt(entry: dict[str, Any]) -> bool:
    """Whether somebody asked for something here; tool results are user entries too."""
    return not entry.get("isMeta") and any(block.get("type") != "tool_result" for block in _blocks(entry))


def _final_text(entry: dict[str, Any], before: str | None) -> str | None:
    """The answer as far as it is known after one more block of the assistant's."""
    message = entry["message"]
    if (
        message.get("stop_reason") != "end_turn"
        or message.get("model") == "<synthetic>"
        or entry.get("isApiErrorMessage")
    ):
        return None
    texts = [block["text"] for block in _blocks(entry) if block.get("type") == "text"]
    return texts[-1] if texts else before
