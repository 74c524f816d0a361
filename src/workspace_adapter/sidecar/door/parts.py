"""The parts of a message, checked at the door and put on this machine's disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio.to_thread

from ...adapter import DataPart, FilePart, Part, TextPart
from ...errors import BadMessage
from ...wire import SentBytes, SentData, SentFile, SentPart, SentText, parse_parts
from ..journal.measure import UPLOADS

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]")
_NAME_BYTES = 200


class Uploads:
    """Finds the files a message names, and keeps the ones it brings.

    A file that is named must lie beneath the workdir, symlinks resolved; what the state
    directory holds beside the uploads is nobody's to name. URLs are never fetched.

    Args:
        clock: what an upload's last use is stamped with, in seconds.
    """

    def __init__(self, *, workdir: Path, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._workdir = workdir
        self._state_dir = state_dir
        self._uploads = state_dir / UPLOADS
        self._clock = clock

    async def check(self, message: Mapping[str, Any]) -> None:
        """See that a runtime could be given every part; writes nothing.

        Raises:
            BadMessage: naming the part that nobody could use, and why.
        """
        parts = parse_parts(message)
        if _touch_disk(parts):
            await anyio.to_thread.run_sync(self._check, parts)

    async def materialise(self, message: Mapping[str, Any], *, session_id: str) -> tuple[Part, ...]:
        """Return the parts as a runtime is given them, files on disk.

        Inline bytes are written once and fsynced; doing it again changes nothing.

        Raises:
            BadMessage: a file that was there when the message was accepted is gone.
        """
        parts = parse_parts(message)
        if _touch_disk(parts):
            return await anyio.to_thread.run_sync(self._materialise, parts, session_id)
        return self._materialise(parts, session_id)

    def of(self, session_id: str) -> list[Path]:
        """Return the files that a session's messages brought."""
        return sorted(path for path in self._brought(session_id).glob("*/*") if path.is_file())

    async def forget(self, session_id: str) -> int:
        """Delete the files that a session's messages brought; return how many there were."""
        return await anyio.to_thread.run_sync(self._forget, session_id)

    def _forget(self, session_id: str) -> int:
        there = len(self.of(session_id))
        with suppress(FileNotFoundError):
            shutil.rmtree(self._brought(session_id))
        return there

    async def prune(self, *, before: float) -> None:
        """Delete what was brought and last used earlier than ``before``, as the clock has it."""
        await anyio.to_thread.run_sync(self._prune, before)

    def _check(self, parts: Sequence[SentPart]) -> None:
        for part in parts:
            match part:
                case SentBytes():
                    part.decode()
                case SentFile():
                    self._find(part)

    def _materialise(self, parts: Sequence[SentPart], session_id: str) -> tuple[Part, ...]:
        return tuple(self._part(part, session_id) for part in parts)

    def _part(self, part: SentPart, session_id: str) -> Part:
        match part:
            case SentText(text=text):
                return TextPart(text=text)
            case SentData(value=value):
                return DataPart(json=json.dumps(value, ensure_ascii=False))
            case SentFile(name=name, mime_type=mime_type):
                return FilePart(path=self._find(part), name=name, mime_type=mime_type)
            case SentBytes(name=name, mime_type=mime_type):
                return FilePart(path=self._keep(part, session_id), name=name, mime_type=mime_type)

    # --- files that are named -------------------------------------------------------

    def _find(self, file: SentFile) -> Path:
        scheme = _SCHEME.match(file.uri)
        if scheme is None:
            named = file.uri
        elif scheme[1].lower() in ("workspace", "file"):
            named = re.sub("^//(localhost)?(?=/)", "", file.uri[scheme.end() :])
        else:
            raise BadMessage(
                f"{file.where} names a file by URL, and URLs are never fetched: send its bytes, or put it"
                " beneath WORKSPACE_WORKDIR"
            )
        for candidate in dict.fromkeys((named, unquote(named))):
            found = self._resolve(candidate)
            if found is not None:
                break
        else:
            raise BadMessage(f"{file.where} names a file that does not exist in this workspace")
        if not self._may_name(found):
            raise BadMessage(
                f"{file.where} names a file that is not beneath WORKSPACE_WORKDIR={self._workdir}"
            )
        if not stat.S_ISREG(found.stat().st_mode):
            raise BadMessage(f"{file.where} names something that is not a regular file")
        return found

    def _resolve(self, named: str) -> Path | None:
        try:
            return (self._workdir / named).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # missing; a NUL in it; a loop of symlinks
            return None

    def _may_name(self, path: Path) -> bool:
        if path.is_relative_to(self._state_dir.resolve()):
            return path.is_relative_to(self._uploads.resolve())
        return path.is_relative_to(self._workdir.resolve())

    # --- bytes that are brought -----------------------------------------------------

    def _brought(self, session_id: str) -> Path:
        """Return where the files that a session's messages brought lie; no other session's lie there."""
        return self._uploads / hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _keep(self, file: SentBytes, session_id: str) -> Path:
        content = file.decode()
        directory = self._brought(session_id) / hashlib.sha256(content).hexdigest()
        path = directory / safe_name(file.name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write(path, content)
        used = self._clock()
        try:
            os.utime(directory, (used, used))
        except PermissionError:  # it was made by another user, and is shared with us
            os.utime(directory)
        return path

    def _prune(self, before: float) -> None:
        failed: OSError | None = None
        for directory in self._uploads.glob("*/*"):
            try:
                if directory.stat().st_mtime >= before:
                    continue
                shutil.rmtree(directory)
            except FileNotFoundError:
                continue  # its session was forgotten meanwhile
            except OSError as error:
                failed = error
                continue
            with suppress(OSError):  # the session brought more
                directory.parent.rmdir()
        if failed is not None:
            raise failed


def _touch_disk(parts: Sequence[SentPart]) -> bool:
    return any(isinstance(part, SentFile | SentBytes) for part in parts)


def safe_name(name: str) -> str:
    """Return a file name that stays in its directory, as like the sent one as can be."""
    cleaned = _UNSAFE.sub("_", re.split(r"[/\\]", name)[-1]).strip()
    return cleaned.encode()[-_NAME_BYTES:].decode(errors="ignore").lstrip(".") or "file"


def _write(path: Path, content: bytes) -> None:
    """Put a whole file in place, on disk before it has its name."""
    partial = path.with_name(f".{os.getpid()}-{time.monotonic_ns()}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)  # what did not fit must not keep the room there was
    for directory in (path.parents[0], path.parents[1], path.parents[2], path.parents[3]):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
