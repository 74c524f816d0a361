"""What a scripted model says next, decided from the conversation alone.

A script is JSON that rides in a user message, between ``<<<`` and ``>>>``::

    Please do this. <<<[
      {"tool": "Bash", "input": {"command": "echo one >> f"}},
      {"tools": [{"tool": "Bash", "input": {…}}, {"tool": "Read", "input": {…}}]},
      {"text": "done"}
    ]>>>

Steps, each an object with exactly one of these keys and its options:

``tool``
    One tool call: the tool's name, with ``input``. ``say`` is text written before it.
    ``may_fail``: any result will do; without it a result that is an error is no result.
``tools``
    Several calls in one message: a list of objects as above. ``say`` as above.
``text``
    The final answer. ``chunks`` pieces, ``chunk_delay`` seconds apart; ``stop_reason``
    (``end_turn``). A script without it ends with ``(end of script)``.
``recall``
    The final answer: what this regular expression's group finds last in the messages before.
``delay``
    Wait so many seconds before whatever comes next.
``error``
    Answer with this HTTP status; ``message`` and ``headers``.
``hang``, ``drop``
    Never answer; break the connection off in the middle. The value is ``true``.

``error``, ``hang`` and ``drop`` take ``times``: so often, then the script goes on; without
it, for ever. That count is the only thing remembered outside the conversation, per
script and step, by the endpoint's process.

Everything else is read off the conversation. A call's id names its script and step,
``toolu_<hash>_<step>[_<which>]``, and the call is done when the history holds a result for
it that is no error. Denied, interrupted and missing results are asked for again, under
an id that ends in ``_r2``, ``_r3``, …, unless a workspace notice in the history says that
a call with this tool and input finished. So a script continues where it was after a resume, a fork, a restart
of the runtime or of the endpoint; quoting it once more changes nothing; and sending the
same script as a second message of one conversation finds it done, so make them differ
(any step may carry a ``note``). The newest message that holds a script decides which one
is played.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ScriptError(ValueError):
    """A script nobody can play; the text names the step and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call the model makes."""

    id: str
    name: str
    input: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A message from the model."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    stop_reason: str = "end_turn"
    chunks: int = 1
    chunk_delay: float = 0.0
    """Seconds between two pieces of the text."""
    delay: float = 0.0
    """Seconds before the first byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Anything but a message."""

    status: int
    """Of the HTTP error; or ``HANG``, or ``DROP``."""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


HANG, DROP = -1, -2

_OPTIONS = {
    "tool": {"input", "say", "may_fail"},
    "tools": {"say"},
    "text": {"chunks", "chunk_delay", "stop_reason"},
    "recall": set[str](),
    "delay": set[str](),
    "error": {"message", "headers", "times"},
    "hang": {"times"},
    "drop": {"times"},
}
_TOOL_ID = re.compile(r"(toolu_[0-9a-f]{12}_\d+(?:_\d+)?)(?:_r\d+)?")
_OPEN, _CLOSE = "<<<", ">>>"
_FINISHED = re.compile(r"finished; do not make them again:((?:\n- .*)+)")


def decide(messages: Sequence[Mapping[str, Any]], made: Counter[str]) -> Reply | Fault:
    """Return what the model does now.

    Args:
        messages: the conversation, as the Messages API is sent it.
        made: faults made so far, by script and step; counted up here.

    Raises:
        ScriptError: the current script is not one.
    """
    steps = _current(messages)
    if steps is None:
        return Reply(text="(no script)")
    history = _History(messages)
    name = hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()[:12]
    delay = 0.0
    for index, step in enumerate(steps):
        kind = _kind(index, step)
        if kind == "delay":
            delay += float(step["delay"])
        elif kind in ("error", "hang", "drop"):
            key = f"{name}_{index}"
            if "times" in step and made[key] >= step["times"]:
                delay = 0.0
                continue
            made[key] += 1
            return Fault(
                status=int(step["error"]) if kind == "error" else HANG if kind == "hang" else DROP,
                message=str(step.get("message", "scripted")),
                headers=step.get("headers", {}),
                delay=delay,
            )
        elif kind == "text":
            return Reply(
                text=str(step["text"]),
                stop_reason=step.get("stop_reason", "end_turn"),
                chunks=int(step.get("chunks", 1)),
                chunk_delay=float(step.get("chunk_delay", 0)),
                delay=delay,
            )
        elif kind == "recall":
            return Reply(text=history.recall(step["recall"]), delay=delay)
        else:
            calls = tuple(history.missing(f"toolu_{name}_{index}", step, index))
            if calls:
                return Reply(text=step.get("say", ""), calls=calls, stop_reason="tool_use", delay=delay)
            delay = 0.0
    return Reply(text="(end of script)", delay=delay)


def _kind(index: int, step: Any) -> str:
    if not isinstance(step, dict):
        raise ScriptError(f"step {index} must be an object")
    kinds = [key for key in _OPTIONS if key in step]
    if len(kinds) != 1:
        raise ScriptError(f"step {index} must have exactly one of {', '.join(_OPTIONS)}")
    unknown = step.keys() - _OPTIONS[kinds[0]] - {kinds[0], "note"}
    if unknown:
        raise ScriptError(f"step {index} ({kinds[0]}) cannot have {', '.join(sorted(unknown))}")
    return kinds[0]


def _current(messages: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """The script of the newest message that holds one."""
    for message in reversed(messages):
        if message.get("role") == "user":
            scripts = [script for text in _texts(message) for script in _scripts(text)]
            if scripts:
                return scripts[-1]
    return None


def _blocks(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    elif isinstance(content, list):
        yield from (block for block in content if isinstance(block, dict))


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    for block in _blocks(message):
        if block.get("type") == "text" and not str(block["text"]).startswith("<system-reminder>"):
            yield str(block["text"])


def _scripts(text: str) -> Iterator[list[Any]]:
    """The scripts in a text. One inside another's strings belongs to whoever is sent that string."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find(f"{_OPEN}[", at)) >= 0:
        at += len(_OPEN)
        try:
            script, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            continue
        if text[end:].lstrip().startswith(_CLOSE):
            yield script
        at = end


class _History:
    """Which calls were asked for, and which of them are done."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self._asked: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._done: set[str] = set()
        self._told: set[str] = set()
        self._said = [text for message in messages[:-1] for text in _texts(message)]
        for message in messages:
            for block in _blocks(message):
                if block.get("type") == "tool_use" and (id := _TOOL_ID.fullmatch(block["id"])):
                    self._asked[id[1]] += 1
                elif block.get("type") == "tool_result" and (id := _TOOL_ID.fullmatch(block["tool_use_id"])):
                    (self._failed if block.get("is_error") else self._done).add(id[1])
            if message.get("role") == "user":
                for text in _texts(message):
                    for finished in _FINISHED.finditer(text):
                        self._told.update(finished[1].split("\n- ")[1:])

    def missing(self, id: str, step: Mapping[str, Any], index: int) -> Iterator[Call]:
        """The calls of a step that are not done."""
        for which, call in enumerate(step.get("tools", [step])):
            if not isinstance(call, dict) or "tool" not in call:
                raise ScriptError(f"step {index}: call {which} has no tool")
            base = f"{id}_{which}" if "tools" in step else id
            if base in self._done or (base in self._failed and call.get("may_fail")):
                continue
            if self._was_told(call):
                continue
            again = f"_r{self._asked[base] + 1}" if self._asked[base] else ""
            yield Call(base + again, str(call["tool"]), call.get("input", {}))

    def recall(self, pattern: str) -> str:
        """What the pattern's group finds last, in any message but the newest."""
        found = [match[1] for text in self._said for match in re.finditer(pattern, text)]
        return found[-1] if found else "(nothing to recall)"

    def _was_told(self, call: Mapping[str, Any]) -> bool:
        """Whether a workspace notice says that this call finished; it quotes its beginning."""
        if not self._told:
            return False
        arguments = json.dumps(call.get("input", {}), sort_keys=True, ensure_ascii=False)
        whole = f"{call['tool']} {arguments}"
        return any(whole.startswith(told.removesuffix("…")) for told in self._told)
