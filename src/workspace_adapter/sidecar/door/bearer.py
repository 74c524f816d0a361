"""The platform's inbound secret, which a bearer is compared with."""

from __future__ import annotations

import hmac
from enum import StrEnum
from pathlib import Path

FILE = ".platform_inbound_secret"


class Bearer(StrEnum):
    """What a request's ``Authorization`` is worth."""

    NONE = "none"  #: it carries no bearer
    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"  #: there is no secret to compare it with


class InboundSecret:
    """The secret in ``CONFIGS_DIR``, read again whenever the file was replaced."""

    def __init__(self, configs_dir: Path) -> None:
        self.path = configs_dir / FILE
        self._version: tuple[int, int, int] | None = None
        self._secret = b""

    def judge(self, authorization: str | None) -> Bearer:
        """Compare a request's ``Authorization`` header with the secret, in constant time."""
        if authorization is None:
            return Bearer.NONE
        secret = self._read()
        if not secret:
            return Bearer.UNKNOWN
        scheme, _, token = authorization.partition(" ")
        right = hmac.compare_digest(token.strip().encode(), secret)
        return Bearer.RIGHT if right and scheme.lower() == "bearer" else Bearer.WRONG

    def _read(self) -> bytes:
        try:
            found = self.path.stat()
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
            if version != self._version:
                self._secret = self.path.read_bytes().strip()
                self._version = version
        except OSError:
            self._version, self._secret = None, b""
        return self._secret
