"""What is logged, one line a record.

Our own records say what was decided and why; their extras are the ids concerned. Records
of the libraries we stand on are cut down to what cannot hold the text of a message: the
unformatted line, and of an exception its type and place.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from typing import Any, TextIO

from .wire import moment

_OURS = "workspace_adapter"
_HARMLESS = "uvicorn"
"""Logs addresses and states, so its lines are shown whole."""

_LONGEST = 200
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send everything to one stream, ours from ``level`` on and others' errors.

    Args:
        log_format: ``text`` or ``json``.
        stream: standard error by default.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger(_HARMLESS).setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(level.upper())


class _Text(logging.Formatter):
    """``time level room: message key=value``; what could break the line or move a cursor escaped."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {key}={value}" for key, value in _extras(record).items())
        level, room = record.levelname.lower(), record.name.removeprefix(f"{_OURS}.")
        line = f"{_time(record)} {level:<7} {room}: {_said(record)}{extras}"
        return _UNPRINTABLE.sub(lambda sign: repr(sign[0])[1:-1], line)


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _said(record),
        }
        return json.dumps(_extras(record) | line, ensure_ascii=False, default=str)


def _time(record: logging.LogRecord) -> str:
    return moment(record.created)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _said(record: logging.LogRecord) -> str:
    if _is_of(record, _OURS):
        said = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            said += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return said
    said = record.getMessage() if _is_of(record, _HARMLESS) else _template(record)
    if record.exc_info and record.exc_info[1]:
        said += f" ({_type_and_place(record.exc_info[1])})"
    return said


def _is_of(record: logging.LogRecord, package: str) -> bool:
    return record.name == package or record.name.startswith(f"{package}.")


def _template(record: logging.LogRecord) -> str:
    """Return the constant part of a foreign record's line, and where it is logged.

    A line without arguments may have been formatted by its author: then only what stands
    before the first colon is constant.
    """
    line = str(record.msg)
    if not record.args:
        line = line.partition(":")[0]
    line = " ".join(line.split())[:_LONGEST]
    return f"{line} [{record.filename}:{record.lineno}]"


def _type_and_place(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
