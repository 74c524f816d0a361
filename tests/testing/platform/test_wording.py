"""What goes over the wire, letter by letter."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from workspace_adapter.testing.platform.answers import judge_answer
from workspace_adapter.testing.platform.envelope import (
    Unusable,
    normalised,
    restart_context,
    restart_pending,
)
from workspace_adapter.testing.platform.gojson import decode, encode


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"b": 1, "a": [True, None, "x"]}, '{"a":[true,null,"x"],"b":1}'),
        ({"é": 1, "z": 2}, '{"z":2,"é":1}'),
        ("<b> & \u2028", '"\\u003cb\\u003e \\u0026 \\u2028"'),
        ("a\tb\x01", '"a\\tb\\u0001"'),
        ("\ud800", '"\ufffd"'),
        (1.0, "1"),
        (0.5, "0.5"),
        (-0.0, "-0"),
        (100000000000000000000, "100000000000000000000"),
        (9007199254740993, "9007199254740992"),
        (1e21, "1e+21"),
        (1.5e-7, "1.5e-7"),
        (0.000001, "0.000001"),
    ],
)
def test_json_is_written_as_go_writes_it(value: Any, written: str) -> None:
    assert encode(value).decode() == written


@pytest.mark.parametrize("raw", [b"{", b"1e400", b"NaN"])
def test_what_go_cannot_read_is_no_json(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"no float|Expecting|could not"):
        decode(raw)


def test_every_number_has_been_a_float() -> None:
    assert encode(decode(b"[9007199254740993, 1.0]")) == b"[9007199254740992,1]"


def sent(**changes: Any) -> dict[str, Any]:
    message = {"role": "user", "messageId": "m", "parts": [{"kind": "text", "text": "hi"}], **changes}
    return {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}


def message_of(body: dict[str, Any], **how: Any) -> dict[str, Any]:
    message: dict[str, Any] = normalised(body, **{"canvas_of": None, **how})["params"]["message"]
    return message


def test_a_body_without_jsonrpc_is_wrapped_and_loses_what_is_not_known() -> None:
    body = {key: value for key, value in sent().items() if key != "jsonrpc"} | {"trace": "t"}
    wrapped = normalised(body, canvas_of=None)
    assert set(wrapped) == {"jsonrpc", "id", "method", "params"}
    assert wrapped["id"] != 1


def test_what_is_missing_in_a_message_is_put_there() -> None:
    body = sent()
    body["params"]["message"] = {"content": "hi"}
    made = message_of(body)
    assert made["role"] == "user"
    assert len(made["messageId"]) == 36
    assert made["parts"] == [{"kind": "text", "text": "hi"}]
    assert "content" not in made
    assert "contextId" not in made


def test_a_list_of_content_is_parts_and_a_type_is_a_kind() -> None:
    body = sent()
    body["params"]["message"] = {"content": [{"type": "text", "text": "hi"}]}
    assert message_of(body)["parts"] == [{"kind": "text", "text": "hi"}]


def test_a_message_from_the_canvas_gets_its_one_context() -> None:
    assert message_of(sent(), canvas_of="ws-1")["contextId"] == "canvas-ws-1"
    assert message_of(sent(contextId="mine"), canvas_of="ws-1")["contextId"] == "mine"


def test_a_message_without_content_cannot_be_used() -> None:
    with pytest.raises(Unusable):
        normalised(sent(parts=[]), canvas_of=None)


def test_the_restart_context_reads_as_the_platform_writes_it() -> None:
    message = restart_context("ws-1", ended_seconds_ago=33)["params"]["message"]
    assert message["contextId"] == "canvas-ws-1"
    assert message["metadata"] == {"source_type": "self-restart-context", "kind": "restart_context"}
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(
        rf"=== WORKSPACE RESTART CONTEXT ===\nRestart at: {stamp}\n"
        rf"Previous session ended: {stamp} \(33s ago\)\n"
        r"Env vars now available: [A-Z_, ]+\n=== END RESTART CONTEXT ===",
        message["parts"][0]["text"],
    )


def test_the_signal_reads_as_the_platform_writes_it() -> None:
    assert json.loads(encode(restart_pending("ws-1"))) == {
        "jsonrpc": "2.0",
        "method": "signals/restart_pending",
        "params": {"drain_seconds": 20, "workspace_id": "ws-1"},
        "id": None,
    }


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (202, b"{}", "202 to a message"),
        (307, b"", "the platform follows no redirect"),
        (200, b"", "no JSON object"),
        (200, b"<html>", "no JSON object"),
        (200, b'{"error":{"code":-32603}}', "a JSON-RPC error within 200"),
        (200, b'{"result":{"kind":"task","status":{}}}', "first part is no text"),
        (503, b"[]", "no JSON object"),
        (503, b'{"detail":"busy"}', "without an error to relay"),
    ],
)
def test_an_answer_that_does_harm_is_noticed(status: int, body: bytes, sentence: str) -> None:
    assert sentence in judge_answer(status, body)[0]


def test_an_answer_that_everybody_can_read_is_not() -> None:
    assert judge_answer(200, b'{"result":{"parts":[{"kind":"text","text":"hi"}]}}') == []
    assert judge_answer(502, b'{"error":"restarting"}') == []
