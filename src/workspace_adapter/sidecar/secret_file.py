"""A secret that the platform hands out, in a file that only we may read; and whether it must be shown."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

TOKEN = ".auth_token"
INBOUND = ".platform_inbound_secret"
WANTED = ".platform_inbound_auth"
"""Whether the platform wants the latter of everybody: ``required`` or ``optional``."""

MAX_LENGTH = 4096
"""Characters of the longest secret that is believed."""


def usable(secret: object) -> bool:
    """Whether something is a secret that an HTTP header can carry: visible ASCII, not too long."""
    return isinstance(secret, str) and 0 < len(secret) <= MAX_LENGTH and all("!" <= c <= "~" for c in secret)


class SecretFile:
    """One secret; threads may share it.

    The file counts, read again whenever it was replaced. A secret that cannot be written
    there counts from memory until somebody else replaces the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._version: tuple[int, int, int] | None = None
        self._secret: str | None = None
        self._unwritten: str | None = None
        self._said: set[str] = set()

    def read(self) -> str | None:
        """Return the secret; ``None`` where there is none."""
        with self._lock:
            return self._read()

    def keep(self, secret: str) -> None:
        """Make this the secret, on disk where that is possible."""
        with self._writing:  # the event loop reads: it must not wait for the disk
            if self.read() == secret:
                return
            try:
                self._write(secret)
            except OSError as error:
                with self._lock:
                    self._unwritten = secret
                if self._is_new(str(error)):
                    logger.warning(
                        "the platform's new secret cannot be kept in %s and is lost with this process: %s;"
                        " make CONFIGS_DIR writable for this user",
                        self.path,
                        error.strerror,
                    )
            else:
                self._said.clear()

    def _read(self) -> str | None:
        version = None
        try:
            found = self.path.stat()
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
            if version == self._version:
                return self._unwritten or self._secret
            if not stat.S_ISREG(found.st_mode):  # opening a pipe waits for whoever writes to it
                raise OSError(errno.EINVAL, "it is no file")
            with self.path.open("rb") as file:
                text = file.read(MAX_LENGTH + 2).strip().decode("ascii", "replace")
            self._secret = text if usable(text) else None
            if text and self._secret is None and self._is_new("unusable"):
                logger.warning("%s holds more or less than one secret, and counts as missing", self.path)
        except FileNotFoundError:
            self._secret = None
        except OSError as error:
            version = None  # it may become readable and stay the same file
            self._secret = None
            if self._is_new(str(error)):
                logger.warning("%s cannot be read, and counts as missing: %s", self.path, error.strerror)
        if version != self._version:
            self._version, self._unwritten = version, None
        return self._unwritten or self._secret

    def _write(self, secret: str) -> None:
        """Replace the file in one step; nobody else can read it at any instant."""
        new = self.path.with_name(f"{self.path.name}.new")
        with suppress(FileNotFoundError):
            new.unlink()  # of a life that was killed here
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{secret}\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise
        with suppress(OSError):  # the secret holds all the same; the platform hands it out again
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _is_new(self, trouble: str) -> bool:
        """Whether this trouble was not said yet; each is said once."""
        new = trouble not in self._said
        self._said.add(trouble)
        return new


class Secrets:
    """Both secrets of a workspace: the token we show the platform, and what it shows us."""

    def __init__(self, configs_dir: Path) -> None:
        self.token = SecretFile(configs_dir / TOKEN)
        self.inbound = SecretFile(configs_dir / INBOUND)
        self._wanted = SecretFile(configs_dir / WANTED)

    @property
    def required(self) -> bool:
        """Whether the platform wants no request without a bearer, whatever ``WORKSPACE_REQUIRE_AUTH`` says.

        It is kept beside the secrets: a new life asks for bearers before the platform was heard.
        """
        return self._wanted.read() == _REQUIRED

    def require(self, required: bool) -> None:
        """The platform says whether it wants that."""
        if required != self.required:
            self._wanted.keep(_REQUIRED if required else _OPTIONAL)


_REQUIRED, _OPTIONAL = "required", "optional"
