from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter import wire
from workspace_adapter.shim.door.envelope import BadCall, Call, NotAllowed, Sender, read

NOBODY = Sender(identity=None, operator=True)
PEER = Sender(identity="ws-peer", workspace_id="ws-peer")
CALLER = Sender(identity="caller:ci")


def call(body: Any, sender: Sender = NOBODY, **headers: str) -> Call:
    ids = itertools.count(1)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return read(raw, workspace_id="ws", sender=sender, headers=names, new_id=lambda: f"new-{next(ids)}")


def envelope(message: Any, *, method: str = "message/send", **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"message": message, **params}}


def message(**members: Any) -> dict[str, Any]:
    told = {"role": "user", "messageId": "m", "parts": [{"kind": "text", "text": "hi"}], **members}
    return {name: value for name, value in told.items() if value is not None}


def made_of(body: Any, sender: Sender = NOBODY) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(body, sender).body)["params"]["message"]
    return found


# --- what is made regular -----------------------------------------------------------------


def test_a_regular_message_is_sent_on_to_the_byte() -> None:
    body = json.dumps(envelope(message(contextId="c")), indent=3).encode()
    found = call(body)
    assert found.body is body
    assert found.message is not None
    assert found.message.body is body
    assert found.message.turn_key == wire.turn_key(None, "c", "m")
    assert found.message.content_hash == wire.content_hash(message())
    assert (found.message.context_id, found.message.caller, found.message.priority) == ("c", None, 50)


def test_what_is_no_json_rpc_is_wrapped_and_loses_what_else_it_has() -> None:
    found = call({"method": "message/send", "params": {"message": message()}, "odd": 1})
    assert json.loads(found.body) == {**envelope(message()), "id": "new-1"}
    assert found.request_id == "new-1"


def test_a_callers_own_id_is_kept_and_a_missing_one_made() -> None:
    assert call({"id": "mine", "method": "tasks/get"}).request_id == "mine"
    assert call({"jsonrpc": "2.0", "id": None, "method": "tasks/get"}).request_id == "new-1"
    assert json.loads(call({"jsonrpc": "2.0", "method": "tasks/get"}).body)["id"] == "new-1"


def test_a_missing_message_id_and_role_are_made() -> None:
    assert made_of(envelope(message(messageId=None, role=None))) == message(messageId="new-1")
    assert made_of(envelope(message(messageId="", role=""))) == message(messageId="new-1")


@pytest.mark.parametrize(
    "content", ["hi", [{"kind": "text", "text": "hi"}], [{"type": "text", "text": "hi"}]]
)
def test_content_becomes_parts(content: Any) -> None:
    assert made_of(envelope(message(parts=None, content=content))) == message()


def test_a_part_with_a_type_has_a_kind() -> None:
    sent = [{"type": "text", "text": "hi"}, {"type": "x", "kind": "text", "text": "ho"}]
    parts = made_of(envelope(message(parts=sent)))["parts"]
    assert parts == [{"kind": "text", "text": "hi"}, {"type": "x", "kind": "text", "text": "ho"}]


@pytest.mark.parametrize("method", ["SendMessage", "SendStreamingMessage"])
def test_a_message_of_a2a_1_0_is_made_what_that_knows(method: str) -> None:
    sent = {"parts": [{"kind": "text", "text": "hi"}, {"url": "u", "mediaType": "t"}]}
    assert made_of(envelope(sent, method=method)) == {
        "messageId": "new-1",
        "role": "ROLE_USER",
        "parts": [{"text": "hi"}, {"url": "u", "mediaType": "t"}],
    }
    assert made_of(envelope({"content": "hi"}, method=method))["parts"] == [{"text": "hi"}]
    found = call(envelope(sent, method=method)).message
    assert found is not None
    assert found.headers == {"a2a-version": "1.0"}


def test_what_goes_along_is_named() -> None:
    found = call(
        envelope(message()), traceparent="00-a", cookie="c", authorization="Bearer x", a2a_version="0.3"
    )
    assert found.message is not None
    assert found.message.headers == {"traceparent": "00-a", "a2a-version": "0.3"}


def test_the_canvas_has_one_context_and_nobody_else_is_the_canvas() -> None:
    canvas: dict[str, Any] = {"metadata": {"source": "canvas_user"}}
    assert made_of(envelope(message(), **canvas))["contextId"] == "canvas-ws"
    assert made_of(envelope(message(**canvas)))["contextId"] == "canvas-ws"
    assert made_of(envelope(message(contextId="c"), **canvas))["contextId"] == "c"
    for sender in (PEER, CALLER):
        assert "contextId" not in made_of(envelope(message(), **canvas), sender)
    assert "contextId" not in made_of(envelope(message()))


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [(60, 60.0), (0.5, 0.5), (0, None), (-1, None), ("60", None), (True, None), (None, None)],
)
def test_a_senders_time_limit_is_read_as_the_existing_platform_reads_it(
    sent: Any, seconds: float | None
) -> None:
    found = call(envelope(message(), expires_in_seconds=sent)).message
    assert found is not None
    assert found.expires_in == seconds


def test_any_other_method_is_passed_on_as_it_is() -> None:
    for params in ({"id": "t"}, [1], "x", {"message": {"odd": 1}}):
        body = json.dumps({"jsonrpc": "2.0", "id": 3, "method": "tasks/get", "params": params}).encode()
        found = call(body)
        assert (found.body, found.message, found.request_id) == (body, None, 3)


@pytest.mark.parametrize(("method", "streamed"), [("message/stream", True), ("message/send", False)])
def test_a_stream_is_known_by_its_method(method: str, streamed: bool) -> None:
    assert call(envelope(message(), method=method)).streamed is streamed


# --- who may say what -----------------------------------------------------------------------


def test_the_sender_is_part_of_a_messages_identity() -> None:
    keys = [call(envelope(message()), sender).message for sender in (NOBODY, PEER, CALLER)]
    assert len({key.turn_key for key in keys if key is not None}) == 3


@pytest.mark.parametrize(
    "metadata", [{"source_type": "self-stall"}, {"kind": "restart_context"}, {"source_type": "self-anything"}]
)
def test_only_an_operator_speaks_as_the_platform_and_a_workspace_to_itself(metadata: dict[str, str]) -> None:
    itself = Sender(identity="ws", workspace_id="ws")
    for body in (envelope(message(metadata=metadata)), envelope(message(), metadata=metadata)):
        for sender in (PEER, CALLER):
            with pytest.raises(NotAllowed, match="operator"):
                call(body, sender)
        for sender in (NOBODY, itself):
            assert call(body, sender).message is not None


def test_priority_is_that_of_a_task_unless_it_is_said() -> None:
    def priority(sender: Sender, *, metadata: Any = None, **params: Any) -> int:
        found = call(envelope(message(metadata=metadata), **params), sender).message
        assert found is not None
        return found.priority

    assert priority(CALLER) == 50
    assert priority(CALLER, priority=10) == 10
    assert priority(NOBODY, priority=100) == 100
    assert priority(NOBODY, metadata={"kind": "restart_context"}) == 90
    with pytest.raises(NotAllowed, match="above 50"):
        priority(CALLER, priority=51)
    for odd in (-1, 101, 1.5, "50", True):
        with pytest.raises(BadCall, match="0 to 100"):
            priority(NOBODY, priority=odd)


# --- what cannot be -------------------------------------------------------------------------

SECRET = "do-not-quote-me"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{" + SECRET.encode(),
        b'{"method": NaN}',
        b'{"method": "tasks/get", "id": 1e400}',
        b"[" * 100_000,
        b'{"method": "message/send", "params": ' + b"[" * 70 + b"]" * 70 + b"}",
        [envelope(message())],
        SECRET,
        5,
        {},
        {"method": 5},
        {"method": ""},
        {"method": "message/send"},
        {"method": "message/send", "params": [SECRET]},
        {"jsonrpc": "1.0", "method": "message/send", "params": {"message": message()}},
        {"jsonrpc": "2.0", "id": [SECRET], "method": "tasks/get"},
        {"jsonrpc": "2.0", "id": True, "method": "tasks/get"},
        b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "tasks/get"}',
        b'{"method": "tasks/get", "params": "\\ud800"}',
        envelope(SECRET),
        envelope(message(parts=None)),
        envelope(message(parts=[])),
        envelope(message(parts=None, content={"text": SECRET})),
        envelope(message(parts=None, content=[])),
        envelope(message(parts=SECRET)),
        envelope(message(parts=[SECRET])),
        envelope(message(parts=None, content=[SECRET])),
        envelope(message(role=SECRET)),
        envelope(message(messageId=[SECRET])),
        envelope(message(messageId="x" * 513)),
        envelope(message(contextId="c\0")),
        envelope(message(metadata=[SECRET])),
        envelope(message(), metadata=SECRET),
        envelope(message(), configuration=[SECRET]),
        b'{"method": "message/send", "params": {"message": {"content": "\\udc00"}}}',
    ],
)
def test_what_cannot_be_is_refused_with_a_hint_and_quotes_nothing(body: Any) -> None:
    with pytest.raises(BadCall) as refused:
        call(body)
    assert str(refused.value)
    assert refused.value.hint
    assert SECRET not in str(refused.value) + refused.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"text": st.text(), "kind": JSON, "type": JSON, "data": JSON, "file": JSON}
    ),
    max_size=3,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "messageId": st.text(max_size=4) | JSON,
        "role": st.sampled_from(["user", "agent", "ROLE_USER", ""]) | JSON,
        "parts": PARTS | JSON,
        "content": st.text() | PARTS | JSON,
        "contextId": st.text(max_size=4) | JSON,
        "metadata": JSON,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": JSON,
        "method": st.sampled_from(["message/send", "message/stream", "SendMessage", "tasks/get"]) | JSON,
        "params": st.fixed_dictionaries({}, optional={"message": MESSAGES | JSON, "priority": JSON}) | JSON,
    },
)


@given(BODIES | JSON)
def test_whatever_is_sent_is_made_regular_once_or_refused(body: Any) -> None:
    try:
        once = call(body)
    except (BadCall, NotAllowed):
        return
    again = call(once.body)
    assert again.body == once.body
    assert again.request_id == once.request_id
    if once.message is not None:
        assert again.message is not None
        assert again.message.turn_key == once.message.turn_key
        assert again.message.content_hash == once.message.content_hash


@given(MESSAGES)
def test_making_a_message_regular_changes_nothing_of_what_it_says(sent: dict[str, Any]) -> None:
    try:
        found = call(envelope(sent))
    except (BadCall, NotAllowed):
        return
    if sent.get("parts") or "parts" not in sent:
        said = dict(sent)
        if isinstance(said.get("content"), str) and "parts" not in said:
            said["content"] = [{"kind": "text", "text": said["content"]}]
        assert found.message is not None
        assert found.message.content_hash == wire.content_hash(said)
