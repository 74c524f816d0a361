"""What the bearer of a request is worth."""

from __future__ import annotations

import hmac
from enum import StrEnum

from ..secret_file import SecretFile


class Bearer(StrEnum):
    """What a request's ``Authorization`` is worth."""

    NONE = "none"  #: it carries no bearer
    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"  #: there is no secret to compare it with


def judge(authorization: str | None, secret: SecretFile) -> Bearer:
    """Compare a request's ``Authorization`` header with a secret, in constant time."""
    if authorization is None:
        return Bearer.NONE
    wanted = secret.read()
    if wanted is None:
        return Bearer.UNKNOWN
    scheme, _, token = authorization.partition(" ")
    right = hmac.compare_digest(token.strip().encode(), wanted.encode())
    return Bearer.RIGHT if right and scheme.lower() == "bearer" else Bearer.WRONG
