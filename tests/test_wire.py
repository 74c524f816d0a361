from __future__ import annotations

import json
import math
import random
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter import wire
from workspace_adapter.errors import BadMessage

# --- what makes a message the same message ------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
files = st.fixed_dictionaries(
    {"uri": st.text()}, optional={"name": st.text(), "mimeType": st.text(), "size": st.integers(0, 1 << 60)}
) | st.fixed_dictionaries({"bytes": st.text()}, optional={"name": st.text(), "mimeType": st.text()})
parts = st.one_of(
    st.fixed_dictionaries({"kind": st.just("text"), "text": st.text()}),
    st.fixed_dictionaries({"kind": st.sampled_from(["file", "image"]), "file": files}),
    st.fixed_dictionaries({"kind": st.just("data"), "data": values}, optional={"metadata": values}),
)
messages = st.fixed_dictionaries(
    {
        "messageId": st.text(min_size=1),
        "role": st.sampled_from(["user", "agent"]),
        "parts": st.lists(parts, min_size=1, max_size=3),
    }
)


def shuffled(value: Any, order: random.Random) -> Any:
    """Give every object's members another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


def as_floats(value: Any) -> Any:
    """Write numbers as a platform does that knows only floats."""
    if isinstance(value, dict):
        return {key: as_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_floats(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        return float(value)
    return value


def spelt_otherwise(message: dict[str, Any]) -> dict[str, Any]:
    """Spell parts as the existing platform's other callers do."""
    spelt = []
    for part in message["parts"]:
        other = {"type" if key == "kind" else key: value for key, value in part.items()}
        if isinstance(other.get("file"), dict):
            other["file"] = {
                "mime_type" if key == "mimeType" else key: value for key, value in other["file"].items()
            }
        spelt.append(other)
    return {**message, "parts": spelt}


@given(messages, st.randoms(use_true_random=False))
def test_a_message_that_was_serialised_anew_is_the_same_message(
    message: dict[str, Any], order: random.Random
) -> None:
    anew = json.loads(json.dumps(as_floats(spelt_otherwise(shuffled(message, order)))))
    anew["metadata"] = {"queued": True}
    assert wire.content_hash(anew) == wire.content_hash(message)


@given(messages, st.text(), st.integers(0, 2))
def test_a_message_that_says_something_else_is_another(
    message: dict[str, Any], text: str, where: int
) -> None:
    more = [*message["parts"][:where], {"kind": "text", "text": text}, *message["parts"][where:]]
    assert wire.content_hash({**message, "parts": more}) != wire.content_hash(message)


@given(st.dictionaries(st.sampled_from(["type", "kind", "mime_type", "mimeType", "filename"]), st.text()))
def test_members_of_data_are_never_taken_for_members_of_a_part(data: dict[str, str]) -> None:
    def hashed(value: dict[str, str]) -> str:
        return wire.content_hash({"role": "user", "parts": [{"kind": "data", "data": value}]})

    assert hashed(dict(reversed(data.items()))) == hashed(data)
    for key in data:
        assert hashed({**data, key: data[key] + "x"}) != hashed(data)


def test_a_part_spelt_in_two_ways_at_once_has_one_hash_whatever_their_order() -> None:
    file = {"uri": "a", "mime_type": "x", "mimeType": "y", "mediaType": "z"}
    backwards = dict(reversed(file.items()))
    assert wire.content_hash({"parts": [{"file": file}]}) == wire.content_hash(
        {"parts": [{"file": backwards}]}
    )
    other = {**file, "mediaType": "w"}
    assert wire.content_hash({"parts": [{"file": file}]}) != wire.content_hash({"parts": [{"file": other}]})


def test_both_dialects_and_no_role_at_all_mean_the_user() -> None:
    body = {"parts": [{"text": "hi"}]}
    hashes = {wire.content_hash({**body, **role}) for role in ({}, {"role": "user"}, {"role": "ROLE_USER"})}
    assert len(hashes) == 1
    assert wire.content_hash({**body, "role": "agent"}) not in hashes


def test_numbers_no_float_can_hold_have_a_hash_too() -> None:
    wire.content_hash({"parts": [{"data": {"n": 10**400, "zero": -0.0}}]})


names = st.text(min_size=1)


@given(st.none() | names, st.none() | names, names)
def test_identity_is_caller_context_and_message_id(
    caller: str | None, context: str | None, message: str
) -> None:
    key = wire.turn_key(caller, context, message)
    assert wire.turn_key(caller, context, message) == key
    assert wire.turn_key(caller, context, message + "x") != key
    assert wire.turn_key(caller, (context or "") + "x", message) != key
    assert wire.turn_key((caller or "") + "x", context, message) != key
    assert wire.turn_key(context, caller, message) != key or caller == context


def test_an_empty_context_is_none() -> None:
    assert wire.turn_key(None, "", "m") == wire.turn_key(None, None, "m")


# --- reading a message --------------------------------------------------------------------


def sent(**changes: Any) -> dict[str, Any]:
    message = {"role": "user", "messageId": "m-1", "parts": [{"kind": "text", "text": "hi"}], **changes}
    return {"message": {key: value for key, value in message.items() if value is not ...}}


def test_a_message_is_read_as_it_was_sent() -> None:
    read = wire.parse_message(sent(contextId="canvas-" + "0" * 36, taskId="", extra=1))
    assert (read.message_id, read.context_id, read.task_id) == ("m-1", "canvas-" + "0" * 36, None)
    assert json.loads(read.encoded) == read.raw
    assert read.raw["extra"] == 1


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({}, "params.message"),
        ({"message": "secret"}, "params.message"),
        (sent(messageId=...), "messageId is required"),
        (sent(messageId=""), "messageId is required"),
        (sent(messageId=7), "messageId must be a string"),
        (sent(messageId="secret" * 100), "longer than 512"),
        (sent(contextId=["secret"]), "contextId must be a string"),
        (sent(taskId={}), "taskId must be a string"),
        (sent(role="secret"), "role"),
        (sent(metadata="secret"), "message.metadata"),
        ({**sent(), "metadata": "secret"}, "params.metadata"),
        ({**sent(), "configuration": "secret"}, "params.configuration"),
        (sent(parts=[{"text": "secret \ud800"}]), "Unicode"),
        (sent(messageId="\ud800"), "Unicode"),
    ],
)
def test_a_bad_message_is_named_and_never_quoted(params: dict[str, Any], named: str) -> None:
    with pytest.raises(BadMessage, match=named) as refused:
        wire.parse_message(params)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ({"kind": "text", "text": "hi"}, wire.SentText(text="hi")),
        ({"type": "text", "text": "hi"}, wire.SentText(text="hi")),
        ({"text": "hi"}, wire.SentText(text="hi")),
        ({"kind": "data", "data": {"a": 1}}, wire.SentData(value={"a": 1})),
        ({"data": None}, wire.SentData(value=None)),
        *(
            (
                {
                    "kind": kind,
                    "file": {"uri": "workspace:/w/x.pdf", "name": "x.pdf", spelt: "application/pdf"},
                },
                wire.SentFile(
                    where="message.parts[0]",
                    uri="workspace:/w/x.pdf",
                    name="x.pdf",
                    mime_type="application/pdf",
                ),
            )
            for kind in ("file", "image", "audio", "video")
            for spelt in ("mimeType", "mime_type")
        ),
        (
            {"url": "/w/x.pdf", "filename": "x.pdf", "mediaType": "application/pdf"},
            wire.SentFile(
                where="message.parts[0]", uri="/w/x.pdf", name="x.pdf", mime_type="application/pdf"
            ),
        ),
        (
            {"file": {"fileWithUri": "/w/x"}},
            wire.SentFile(
                where="message.parts[0]", uri="/w/x", name="file", mime_type="application/octet-stream"
            ),
        ),
        (
            {"raw": "aGk=", "filename": "x.txt", "mediaType": "text/plain"},
            wire.SentBytes(where="message.parts[0]", base64="aGk=", name="x.txt", mime_type="text/plain"),
        ),
    ],
)
def test_every_spelling_of_a_part_is_read(part: dict[str, Any], read: wire.SentPart) -> None:
    assert wire.parse_parts({"parts": [part]}) == (read,)
    assert wire.parse_parts({"content": [part]}) == (read,)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (None, "must be a list"),
        ([], "at least one part"),
        ("secret", "must be a list"),
        ([{"text": "fine"}, "secret"], r"parts\[1\] must be an object"),
        ([{"kind": "hologram", "file": {"name": "secret"}}], r"parts\[0\] has no text.*hologram"),
        ([{"kind": "a secret, in the wrong place"}], r"parts\[0\] has no text.*unknown"),
        ([{"text": 5}], r"parts\[0\] has no text"),
    ],
)
def test_parts_nobody_can_use_are_named_and_never_quoted(parts: Any, named: str) -> None:
    with pytest.raises(BadMessage, match=named) as refused:
        wire.parse_parts({"parts": parts})
    assert "secret" not in str(refused.value)


@given(st.binary())
def test_bytes_are_read_in_either_alphabet_padded_or_not(content: bytes) -> None:
    for encoded in (b64encode(content), urlsafe_b64encode(content)):
        for text in (encoded.decode(), encoded.decode().rstrip("=")):
            part = wire.SentBytes(where="x", base64=text, name="f", mime_type="t")
            assert part.decode() == content


@pytest.mark.parametrize("text", ["secret!", "a", "é"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(BadMessage, match=r"message.parts\[3\]") as refused:
        wire.SentBytes(where="message.parts[3]", base64=text, name="secret", mime_type="t").decode()
    assert "secret" not in str(refused.value)


@given(st.integers(0, 80))
def test_depth_counts_levels_up_to_one_more_than_the_limit(levels: int) -> None:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": 1, "b": value}
    assert wire.depth(value) == min(levels, wire.MAX_DEPTH + 1)


# --- the platform's own metadata ----------------------------------------------------------


def test_the_platforms_own_turns_are_known_by_either_metadata() -> None:
    assert wire.source_of({"metadata": {"source_type": "self-idle"}}) == "self-idle"
    assert wire.source_of({"message": {"metadata": {"source_type": "self-cron"}}}) == "self-cron"
    assert wire.source_of({"metadata": {"source_type": "canvas_user"}}) is None
    assert wire.source_of({"metadata": "odd", "message": None}) is None


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"message": {"metadata": {"kind": "restart_context"}}}, wire.SelfAnswered.RESTART_CONTEXT),
        ({"metadata": {"source_type": "self-restart-context"}}, wire.SelfAnswered.RESTART_CONTEXT),
        ({"message": {"metadata": {"kind": "stall_probe"}}}, wire.SelfAnswered.STALL_PROBE),
        ({"message": {"metadata": {"kind": "inbox_nudge", "source_type": "self-nudge"}}}, None),
        ({"message": {"metadata": {"kind": ["restart_context"]}}}, None),
        ({"message": {"metadata": None}}, None),
    ],
)
def test_what_the_workspace_answers_itself_is_known_by_kind_or_source(
    params: dict[str, Any], kind: wire.SelfAnswered | None
) -> None:
    assert wire.self_answered(params) is kind
    if kind is not None:
        assert (wire.source_of(params) or "").startswith("self-")


@pytest.mark.parametrize(
    ("metadata", "context_id", "canvas"),
    [
        ({}, "canvas-ws", True),
        ({"source": "canvas_user"}, "other", True),
        ({"source": "canvas_user"}, None, True),
        ({"source": "platform"}, "canvas-ws", False),
        ({"source_type": "self-idle"}, "canvas-ws", False),
        ({"kind": "stall_probe"}, "canvas-ws", False),
        ({}, "canvas-another", False),
        ({}, None, False),
    ],
)
def test_the_user_of_the_canvas_is_known_by_source_or_context(
    metadata: dict[str, Any], context_id: str | None, canvas: bool
) -> None:
    assert wire.from_canvas({"metadata": metadata}, context_id, "ws") is canvas
    assert wire.from_canvas({"message": {"metadata": metadata}}, context_id, "ws") is canvas


def test_only_a_positive_number_of_seconds_is_a_time_limit() -> None:
    assert wire.expires_in({"expires_in_seconds": 600}) == 600.0
    assert wire.expires_in({"expires_in_seconds": 0.5}) == 0.5
    assert wire.expires_in({}) is None
    for odd in (0, -1, True, "600", None, math.nan, math.inf, 1e300, 10**400):
        assert wire.expires_in({"expires_in_seconds": odd}) is None


# --- the restart signal -------------------------------------------------------------------


def signal(**params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "signals/restart_pending", "params": params, "id": None}


def test_the_existing_platform_is_answered_while_it_listens() -> None:
    read = wire.parse_restart_signal(signal(drain_seconds=20, workspace_id="w"))
    assert (read.request_id, read.workspace_id, read.patience) == (None, "w", 9.0)
    assert wire.parse_restart_signal(signal(drain_seconds=2)).patience == 2.0
    assert wire.parse_restart_signal(signal()).patience == 9.0


def test_our_own_platform_says_how_long_it_listens() -> None:
    assert wire.parse_restart_signal(signal(deadline_ms=60000)).patience == 60.0


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "x",
        {},
        {"method": "message/send"},
        {**signal(), "params": []},
        signal(workspace_id=5),
        signal(drain_seconds="20"),
        signal(drain_seconds=-1),
        signal(drain_seconds=True),
        signal(deadline_ms=float("nan")),
        {**signal(), "id": {}},
        {**signal(), "id": True},
    ],
)
def test_a_malformed_signal_is_refused(body: Any) -> None:
    with pytest.raises(wire.BadSignal):
        wire.parse_restart_signal(body)


# --- what a workspace tells its platform --------------------------------------------------

REGISTRATION = wire.Registration(
    workspace_id="w", url="http://w:8000", agent_card={"name": "n"}, delivery_mode="push", boot_id="b"
)
HEARTBEAT = wire.Heartbeat(
    workspace_id="w",
    active_tasks=1001,
    is_busy=True,
    current_task="ü",
    error_rate=0.25,
    sample_error="e",
    uptime_seconds=7,
    runtime_state=wire.WEDGED,
    capabilities=dict.fromkeys(wire.CAPABILITIES, False) | {"session": True},
    idle_timeout_seconds=1800,
    agent_card={"name": "n"},
    observed_generation=3,
    boot_id="b",
    state="draining",
    waiting=2,
    version="1",
)


def test_what_one_half_says_the_other_reads() -> None:
    assert wire.parse_registration(json.loads(json.dumps(REGISTRATION.as_json()))) == REGISTRATION
    assert wire.parse_heartbeat(json.loads(json.dumps(HEARTBEAT.as_json()))) == HEARTBEAT.as_json()
    reply = wire.BeatReply(generation=1, queue_depth=0, max_concurrent_tasks=2, require_auth=False)
    assert wire.parse_beat_reply(reply.as_json()) == reply


def test_a_heartbeat_of_another_runtime_is_read_too() -> None:
    said = {"workspace_id": "w", "active_tasks": 2, "uptime_seconds": 1.5}
    assert wire.parse_heartbeat({**said, "is_busy": None, "something_else": 1}) == said
    registration = wire.parse_registration({"id": "w", "agent_card": {"url": "http://w:8000/"}})
    assert (registration.url, registration.delivery_mode) == ("http://w:8000", "push")


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], "x", {}, {"workspace_id": ""}, {"workspace_id": 1}),
        *({"workspace_id": "w", "active_tasks": value} for value in (True, 1.5, "1")),
        {"workspace_id": "w", "is_busy": 1},
        {"workspace_id": "w", "runtime_metadata": []},
        {"workspace_id": "w", "runtime_metadata": {"capabilities": []}},
        {"workspace_id": "w", "runtime_metadata": {"idle_timeout_seconds": "1"}},
    ],
)
def test_a_heartbeat_that_is_none_is_refused(body: object) -> None:
    with pytest.raises(wire.BadBody):
        wire.parse_heartbeat(body)


@pytest.mark.parametrize("nonsense", ["two", -1, 1.5, True, [], {}, None])
def test_of_a_reply_what_makes_no_sense_counts_as_not_said(nonsense: object) -> None:
    told = {"generation": nonsense, "queue_depth": nonsense, "max_concurrent_tasks": nonsense}
    assert wire.parse_beat_reply({**told, "require_auth": "yes"}) == wire.BeatReply()
