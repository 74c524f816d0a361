from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter.queueing import Lost, Reply
from workspace_adapter.shim.streams import (
    Event,
    Parser,
    Reading,
    StreamTooLarge,
    encode,
    interruption,
    whole,
    with_request_id,
)

# --- events as a sidecar sends them, in both dialects -----------------------------------


def sse(event: dict[str, Any], cursor: str | None = None) -> bytes:
    name = "" if cursor is None else f"id: {cursor}\r\n"
    return f"{name}data: {json.dumps(event)}\r\n\r\n".encode()


def rpc(result: dict[str, Any]) -> dict[str, Any]:
    return {"id": "r", "jsonrpc": "2.0", "result": result}


def task(state: str = "submitted") -> dict[str, Any]:
    return rpc({"kind": "task", "id": "t", "contextId": "c", "status": {"state": state}})


def status(state: str, *, final: bool = False, **metadata: Any) -> dict[str, Any]:
    told = {"taskId": "t", "contextId": "c", "status": {"state": state}, "metadata": metadata}
    return rpc({"kind": "status-update", "final": final, **told})


def artifact(text: str) -> dict[str, Any]:
    parts = {"artifactId": "answer", "parts": [{"kind": "text", "text": text}]}
    return rpc({"kind": "artifact-update", "taskId": "t", "contextId": "c", "artifact": parts})


def modern(name: str, state: str, **metadata: Any) -> dict[str, Any]:
    ids = {"id": "t"} if name == "task" else {"taskId": "t"}
    told = {**ids, "contextId": "c", "status": {"state": f"TASK_STATE_{state}"}, "metadata": metadata}
    return rpc({name: told})


def read(*events: bytes, after: str | None = None) -> tuple[list[Any], Reading]:
    reading = Reading(after=after)
    kept = [json.loads(data) for event in events for data in reading.feed(event)]
    return kept, reading


# --- bytes ------------------------------------------------------------------------------


def test_an_event_has_its_data_and_its_own_id() -> None:
    assert Parser().feed(
        b": a comment\nid: 7\nevent: x\ndata: one\ndata:two\nretry: 5\n\ndata: three\n\n"
    ) == [
        Event(b"one\ntwo", "7"),
        Event(b"three", None),
    ]


@given(
    st.lists(st.tuples(st.text(min_size=1).filter(str.isprintable), st.integers(0, 9)), max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_how_a_stream_was_cut_into_chunks_does_not_matter(
    events: list[tuple[str, int]], end: str, data: st.DataObject
) -> None:
    whole = "".join(f"id: {n}{end}data: {text}{end}{end}" for text, n in events).encode() + b":\n"
    parser, found, place = Parser(), [], 0
    while place < len(whole):
        size = data.draw(st.integers(1, 9))
        found += parser.feed(whole[place : place + size])
        place += size
    assert found == [Event(text.encode(), str(n)) for text, n in events]


@given(st.binary(max_size=40), st.integers(1, 99))
def test_what_is_written_is_read_again(data: bytes, number: int) -> None:
    written = encode(data, number)
    assert Parser().feed(written) == [
        Event(b"\n".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")), str(number))
    ]


@pytest.mark.parametrize(
    "chunks", [[b"data: " + b"x" * 100], [b"data: " + b"x" * 60 + b"\n"] * 2, [b"x" * 50] * 3]
)
def test_an_event_larger_than_the_limit_is_refused_however_it_comes(chunks: list[bytes]) -> None:
    parser = Parser(limit=99)
    with pytest.raises(StreamTooLarge, match="larger than 99 bytes"):
        [parser.feed(chunk) for chunk in chunks]


def test_many_events_that_are_small_each_are_no_large_one() -> None:
    parser = Parser(limit=99)
    assert sum(len(parser.feed(b"data: " + b"x" * 50 + b"\n\n" * 2)) for _ in range(50)) == 50


# --- request ids --------------------------------------------------------------------------

IDS = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=5))
VALUES = st.recursive(
    IDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(
    st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    IDS,
    IDS,
    st.sampled_from([None, 1, 3]),
    st.randoms(),
)
def test_only_the_outermost_id_is_replaced(
    others: dict[str, Any], own: Any, wanted: Any, indent: int | None, random: Any
) -> None:
    members = [*((name, value) for name, value in others.items() if name != "id"), ("id", own)]
    random.shuffle(members)
    body = json.dumps(dict(members), indent=indent, ensure_ascii=False).encode()
    found = json.loads(with_request_id(body, wanted))
    assert found == {**dict(members), "id": wanted}
    assert list(found) == [name for name, _ in members]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nothing", b'{"a": 1}', b"{", b'{"id"', b"\xff", b'"id"', b"{}", b"[" * 100_000]
)
def test_what_has_no_id_stays_as_it_is(body: bytes) -> None:
    assert with_request_id(body, "x") == body


def test_true_is_no_one() -> None:
    assert with_request_id(b'{"id": true}', 1) == b'{"id": 1}'


def test_bytes_behind_the_id_are_not_touched() -> None:
    assert (
        with_request_id(b'{"id":"a", "result":{"x": 1.50e1,"id":"a"}}', "b")
        == b'{"id":"b", "result":{"x": 1.50e1,"id":"a"}}'
    )


# --- what a stream says -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "last"),
    [
        ([task(), status("working"), artifact("x")], status("completed", final=True)),
        ([task(), status("working")], status("failed", final=True)),
        ([task()], status("input-required", final=True)),
        ([], rpc({"kind": "message", "role": "agent", "parts": []})),
        ([task()], {"jsonrpc": "2.0", "id": "r", "error": {"code": -32603, "message": "no"}}),
        (
            [modern("task", "SUBMITTED"), modern("statusUpdate", "WORKING")],
            modern("statusUpdate", "COMPLETED"),
        ),
        ([modern("task", "SUBMITTED")], rpc({"message": {"role": "ROLE_AGENT"}})),
    ],
)
def test_the_event_that_ends_a_stream_is_its_answer_and_is_not_kept(
    before: list[dict[str, Any]], last: dict[str, Any]
) -> None:
    kept, reading = read(*map(sse, before), sse(last), sse(artifact("behind it")))
    assert kept == before
    assert reading.ended
    assert json.loads(reading.answer or b"") == last
    assert reading.outcome() == Reply(status=200, body=last)


@pytest.mark.parametrize(
    "last", [task("completed"), modern("task", "COMPLETED"), modern("statusUpdate", "INPUT_REQUIRED")]
)
def test_what_may_be_the_end_is_it_when_nothing_follows(last: dict[str, Any]) -> None:
    kept, reading = read(sse(last))
    assert (kept, reading.ended, reading.outcome()) == ([], False, Reply(status=200, body=last))
    kept, reading = read(sse(last), sse(artifact("x"), "1.2"))
    assert (kept, reading.cursor, reading.outcome()) == ([last, artifact("x")], "1.2", Lost.CUT)


def test_a_stream_that_broke_off_is_cut_and_its_cursor_is_that_of_what_was_kept() -> None:
    kept, reading = read(sse(task(), "1.0"), sse(artifact("x"), "1.1"), sse(status("completed"), "1.1.2"))
    assert len(kept) == 2
    assert reading.cursor == "1.1"
    kept, reading = read(sse(task(), "1.0"), sse(artifact("x"), "1.1")[:-3])
    assert (len(kept), reading.cursor, reading.outcome()) == (1, "1.0", Lost.CUT)


def test_the_task_by_which_a_stream_goes_on_is_not_kept_twice() -> None:
    kept, reading = read(sse(task("completed"), "1.1"), sse(artifact("x"), "1.2"), after="1.1")
    assert (kept, reading.cursor) == ([artifact("x")], "1.2")


def test_a_task_that_stands_elsewhere_is_kept() -> None:
    kept, _ = read(sse(task(), "1.9"), sse(artifact("x"), "1.10"), after="1.1")
    assert kept == [task(), artifact("x")]
    kept, _ = read(sse(task(), "1.0"), sse(task("working"), "1.0"))
    assert kept == [task(), task("working")]


def test_a_pause_is_not_kept_and_says_what_to_do_with_the_message() -> None:
    kept, reading = read(sse(task(), "1.0"), sse(status("working", restarting=True), "1.3"))
    assert (kept, reading.ended, reading.cursor) == ([task()], True, "1.0")
    assert reading.outcome() == Reply(status=502, body={"restarting": True})
    kept, reading = read(
        sse(modern("task", "WORKING")), sse(modern("statusUpdate", "WORKING", restarting=False))
    )
    assert (len(kept), reading.outcome()) == (1, Reply(status=503, body={"busy": True, "taken": True}))
    assert reading.interruption("wait", now=0.5) is None


def test_an_interruption_is_told_in_the_streams_own_dialect() -> None:
    _, reading = read(sse(task(), "1.0"), sse(artifact("x"), "1.1"))
    told = json.loads(reading.interruption("wait", now=0.5) or b"")["result"]
    assert (told["kind"], told["taskId"], told["contextId"], told["final"]) == (
        "status-update",
        "t",
        "c",
        False,
    )
    assert told["status"]["state"] == "working"
    assert told["status"]["timestamp"] == "1970-01-01T00:00:00.500Z"
    assert told["status"]["message"]["parts"] == [{"kind": "text", "text": "wait"}]
    _, reading = read(sse(modern("statusUpdate", "WORKING"), "1.0"))
    told = json.loads(reading.interruption("wait", now=0.5) or b"")["result"]["statusUpdate"]
    assert (told["taskId"], told["status"]["state"]) == ("t", "TASK_STATE_WORKING")
    assert told["status"]["message"]["parts"] == [{"text": "wait"}]


def test_nothing_is_made_up_where_no_task_is_known() -> None:
    assert read()[1].interruption("wait", now=0.5) is None
    assert interruption(json.dumps(rpc({"kind": "message"})).encode(), "wait", now=0.5) is None


@pytest.mark.parametrize(
    "data", [b"", b"nothing", b"[1]", b'{"result": 1}', b'{"result": {"kind": 5}}', b"[" * 9999]
)
def test_an_event_that_makes_no_sense_is_passed_on(data: bytes) -> None:
    reading = Reading()
    assert reading.feed(encode(data) + sse(artifact("x"))) == [data, json.dumps(artifact("x")).encode()]


# --- a stream as one answer -----------------------------------------------------------------


def data(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


def test_a_stream_amounts_to_its_task() -> None:
    more = artifact("two")
    more["result"]["append"] = True
    events = data(task(), status("working"), artifact("zero"), artifact("one "), more)
    found = json.loads(whole(events, data(status("completed", final=True, cursor="1.9"))[0]))["result"]
    parts = [{"kind": "text", "text": "one two"}]
    assert found == {
        "kind": "task",
        "id": "t",
        "contextId": "c",
        "status": {"state": "completed"},
        "metadata": {"cursor": "1.9"},
        "artifacts": [{"artifactId": "answer", "parts": parts}],
    }


def test_a_stream_of_a2a_1_0_amounts_to_a_task_of_that() -> None:
    events = data(modern("task", "SUBMITTED"))
    found = json.loads(whole(events, data(modern("statusUpdate", "COMPLETED"))[0]))["result"]["task"]
    assert (found["id"], found["status"], found["artifacts"]) == ("t", {"state": "TASK_STATE_COMPLETED"}, [])


def test_a_stream_that_ended_with_a_message_or_an_error_is_that() -> None:
    for last in (rpc({"kind": "message"}), {"id": 1, "error": {"code": 1}}):
        assert whole(data(task()), data(last)[0]) == data(last)[0]
