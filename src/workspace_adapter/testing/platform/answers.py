"""What a workspace may answer to ``message/send``, and what the platform's readers read from it."""

from __future__ import annotations

import json
from typing import Any


def judge_answer(status: int, body: bytes) -> list[str]:
    """Return what is wrong with an answer, a sentence each."""
    if status == 202:
        return ["202 to a message: the platform takes it for queued again, and the message is lost"]
    if 300 <= status < 400:
        return [f"{status} to a message: the platform follows no redirect"]
    read = parsed(body)
    if not isinstance(read, dict):
        return [f"{status} with a body that is no JSON object: a queued message stays dispatched for ever"]
    if status != 200:
        return [] if isinstance(read.get("error"), str | dict) else [f"{status} without an error to relay"]
    if "error" in read:
        return ["a JSON-RPC error within 200: the platform stores it as the answer"]
    if answer_text(read) is None:
        return ["an answer whose first part is no text: delegations and peers read nothing else"]
    return []


def parsed(body: bytes) -> Any:
    """Read JSON; ``None`` when it is none."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def answer_text(reply: Any) -> str | None:
    """Return the text a peer reads; ``None`` when there is none."""
    try:
        text = reply["result"]["parts"][0]["text"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None
