"""Disks that fail as real ones do: mounts of their own, full, read-only, or left by a power failure."""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..conftest import require


@contextmanager
def mounted(source: str, point: Path, kind: str, options: str, *, descriptor: int = -1) -> Iterator[Path]:
    """Mount something, and take it away again whatever became of it."""
    require(os.geteuid() == 0, "only root may mount")
    point.mkdir(parents=True, exist_ok=True)
    said = subprocess.run(
        ["mount", "-i", "-t", kind, "-o", options, source, point],
        pass_fds=[descriptor] if descriptor >= 0 else [],
        capture_output=True,
        text=True,
        check=False,
    )
    require(said.returncode == 0, f"{kind} cannot be mounted here: {said.stderr.strip()}")
    try:
        yield point
    finally:
        if subprocess.run(["umount", "--quiet", point], check=False).returncode:
            # A test that failed may have left somebody at work there.
            subprocess.run(["umount", "--lazy", point], check=True)


@contextmanager
def small(point: Path, size: str = "1m") -> Iterator[Path]:
    """A disk that is soon full."""
    with mounted("small", point, "tmpfs", f"size={size},mode=700"):
        yield point


@contextmanager
def ext4(image: Path, point: Path, options: str = "") -> Iterator[Path]:
    """The file system in a file, made where there is none.

    It writes nothing down but what is fsynced: not from time to time, nor to be kind to
    programs that replace a file carelessly.
    """
    require(shutil.which("mkfs.ext4") is not None, "e2fsprogs is not installed")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with mounted(str(image), point, "ext4", f"loop,commit=3600,noauto_da_alloc{options}"):
        yield point


def fill(disk: Path) -> Path:
    """Leave not a page of it free; return the file that takes the room."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


def break_down(disk: Path) -> None:
    """Have the kernel meet an error of this ext4, after which it writes nothing more to it."""
    told = subprocess.run(["findmnt", "-no", "SOURCE", disk], check=True, capture_output=True, text=True)
    trigger = Path("/sys/fs/ext4", Path(told.stdout.strip()).name, "trigger_fs_error")
    require(trigger.exists(), "this kernel breaks no ext4 down on request")
    trigger.write_text("1")


def image_of_the_moment(image: Path, copy: Path, writer: subprocess.Popen[bytes]) -> None:
    """Copy a disk in use as a power failure would leave it: whatever was not written to it is gone.

    Who writes to it stands still meanwhile, or the copy would be of many moments: its end may know a
    file whose content its beginning lacks.
    """
    writer.send_signal(signal.SIGSTOP)
    try:
        same = False
        while not same:  # what was on its way to the disk still comes
            subprocess.run(["cp", "--sparse=always", image, copy], check=True)
            same = filecmp.cmp(image, copy, shallow=False)
    finally:
        writer.send_signal(signal.SIGCONT)
