"""JSON as the platform writes it: the platform is a Go program, and reads every body before it sends it on.

Keys come sorted, every number has been a float, and what HTML could mistake is escaped.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

_ESCAPES = str.maketrans(
    {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
)


def encode(value: Any) -> bytes:
    """Write a value."""
    return _written(value).encode("utf-8")


def decode(raw: bytes) -> Any:
    """Read a value; every number becomes a float.

    Raises:
        ValueError: no JSON, or a number that no float can hold.
    """
    return json.loads(raw, parse_int=_float, parse_float=_float, parse_constant=_float)


def _float(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise ValueError("a number that no float can hold")
    return number


def _written(value: Any) -> str:
    match value:
        case dict():
            members = (f"{_string(key)}:{_written(inner)}" for key, inner in _sorted(value))
            return "{" + ",".join(members) + "}"
        case list():
            return "[" + ",".join(_written(item) for item in value) + "]"
        case str():
            return _string(value)
        case bool() | None:
            return json.dumps(value)
        case _:
            return _number(float(value))


def _sorted(value: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(value.items(), key=lambda member: member[0].encode("utf-8", "replace"))


def _string(text: str) -> str:
    # Half a surrogate pair is no character for Go.
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.dumps(clean, ensure_ascii=False).translate(_ESCAPES)


def _number(number: float) -> str:
    size = abs(number)
    if size and (size < 1e-6 or size >= 1e21):
        digits, _, exponent = f"{Decimal(repr(number)).normalize():e}".partition("e")
        sign, figures = exponent[0], exponent[1:].lstrip("0")
        return f"{digits}e{sign}{figures if sign == '-' else figures.zfill(2)}"
    written = f"{Decimal(repr(number)):f}"
    return written.rstrip("0").removesuffix(".") if "." in written else written
