from __future__ import annotations

import json
import logging
from io import StringIO

import pytest

from workspace_adapter.logs import set_up

NEEDLE = "needle in the message"


def fail(text: str) -> None:
    raise ValueError(text)


def lines(stream: StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_our_records_are_shown_with_their_ids(logged: StringIO) -> None:
    logging.getLogger("workspace_adapter.sidecar.boot").info(
        "turn %s", "t-1", extra={"turn_id": "t-1", "n": 2}
    )
    (line,) = lines(logged)
    read = json.loads(line)
    assert read.pop("time").endswith("Z")
    assert read == {
        "level": "info",
        "logger": "workspace_adapter.sidecar.boot",
        "message": "turn t-1",
        "turn_id": "t-1",
        "n": 2,
    }


def test_text_is_one_line_too(logged: StringIO) -> None:
    stream = StringIO()
    set_up("info", "text", stream)
    logger = logging.getLogger("workspace_adapter.sidecar.boot")
    logger.debug("not shown")
    logger.warning("two\nlines", extra={"turn_id": "t-1"})
    try:
        fail("why")
    except ValueError:
        logger.exception("broke")
    first, second = lines(stream)
    assert first.endswith("Z warning sidecar.boot: two\\nlines turn_id=t-1")
    assert "sidecar.boot: broke\\nTraceback" in second
    assert second.endswith("ValueError: why")


def test_text_cannot_move_a_terminals_cursor(logged: StringIO) -> None:
    stream = StringIO()
    set_up("info", "text", stream)
    logging.getLogger("workspace_adapter.shim.front.edge").info("refused %s", "\x1b[2J\0\x9b\u2028\ud800é")
    assert stream.getvalue().endswith("refused \\x1b[2J\\x00\\x9b\\u2028\\ud800é\n")


@pytest.mark.parametrize("name", ["a2a.compat.v0_3.jsonrpc_adapter", "sse_starlette.sse", "claude_agent_sdk"])
def test_libraries_say_where_they_broke_and_never_on_what(logged: StringIO, name: str) -> None:
    logger = logging.getLogger(name)
    logger.warning("not shown %s", NEEDLE)
    logger.error("could not read %s\nof %s", NEEDLE, NEEDLE)
    logger.error(f"could not read: {NEEDLE}")  # noqa: G004  as they do
    try:
        fail(NEEDLE)
    except ValueError:
        logger.exception("broke")
    read = [json.loads(line)["message"] for line in lines(logged)]
    assert len(read) == 3
    assert read[0].startswith("could not read %s of %s [test_logs.py:")
    assert read[1].startswith("could not read [test_logs.py:")
    assert read[2].startswith("broke [test_logs.py:")
    assert "(ValueError at " in read[2]
    assert NEEDLE not in logged.getvalue()


def test_of_a_group_the_first_cause_is_named(logged: StringIO) -> None:
    try:
        raise ExceptionGroup("group", [ValueError(NEEDLE)])
    except ExceptionGroup:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    (line,) = lines(logged)
    assert json.loads(line)["message"] == "Exception in ASGI application\n (ValueError)"
    assert NEEDLE not in line


def test_the_server_says_what_it_does(logged: StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("closing %s", "127.0.0.1:1")
    (line,) = lines(logged)
    assert json.loads(line)["message"] == "closing 127.0.0.1:1"
