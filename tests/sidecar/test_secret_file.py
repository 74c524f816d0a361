"""The platform's secrets on disk: only ours to read, at every instant."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workspace_adapter.sidecar.secret_file import MAX_LENGTH, Secrets

from ..conftest import require


def test_what_is_kept_is_read_again_in_another_life(tmp_path: Path) -> None:
    assert Secrets(tmp_path).token.read() is None
    Secrets(tmp_path).token.keep("one")
    assert Secrets(tmp_path).token.read() == "one"
    assert [path.name for path in tmp_path.iterdir()] == [".auth_token"]


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"a b", "ü".encode(), b"\0", b"x" * 9999])
def test_a_file_that_holds_no_secret_counts_as_missing_and_is_written_over(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / ".auth_token").write_bytes(content)
    token = Secrets(tmp_path).token
    assert token.read() is None
    token.keep("new")
    assert token.read() == "new"


@pytest.mark.parametrize("content", ["one", "one\n", " one\r\n", "x" * MAX_LENGTH])
def test_space_around_a_secret_does_not_count(tmp_path: Path, content: str) -> None:
    (tmp_path / ".auth_token").write_text(content)
    assert Secrets(tmp_path).token.read() == content.strip()


def test_a_file_that_somebody_replaces_counts_at_once(tmp_path: Path) -> None:
    token = Secrets(tmp_path).token
    token.keep("ours")
    new = tmp_path / "new"
    new.write_text("theirs\n")
    new.replace(token.path)
    assert token.read() == "theirs"
    token.path.unlink()
    assert token.read() is None


def test_where_it_cannot_be_written_it_holds_from_memory_until_the_file_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs = tmp_path / "configs"
    configs.write_text("not a directory")
    token = Secrets(configs).token
    for secret in ("one", "two"):
        token.keep(secret)
        assert token.read() == secret
    assert len([line for line in caplog.messages if "cannot be kept" in line]) <= 2
    configs.unlink()
    configs.mkdir()
    token.path.write_text("theirs")
    assert token.read() == "theirs"


def test_each_trouble_is_said_once_and_no_secret_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "configs").write_text("not a directory")
    token = Secrets(tmp_path / "configs").token
    for _ in range(5):
        token.keep("the-secret")
        token.read()
    assert ["cannot be read" in line for line in caplog.messages] == [True, False]
    assert "CONFIGS_DIR" in caplog.text
    assert "the-secret" not in caplog.text


def test_what_a_killed_life_left_half_written_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".auth_token.new").write_text("half")
    Secrets(tmp_path).token.keep("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(".auth_token", "whole\n")]


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("old")
    for name in (".auth_token", ".auth_token.new"):
        (tmp_path / name).symlink_to(elsewhere)
    Secrets(tmp_path).token.keep("new")
    assert elsewhere.read_text() == "old"
    assert not (tmp_path / ".auth_token").is_symlink()


def test_a_pipe_in_its_place_keeps_nobody_waiting_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = Secrets(tmp_path).token
    os.mkfifo(token.path)
    looked: list[str | None] = []
    look = threading.Thread(target=lambda: looked.extend([token.read(), token.read()]), daemon=True)
    look.start()
    look.join(10)
    assert looked == [None, None]
    assert len(caplog.messages) == 1
    assert "it is no file" in caplog.text
    token.keep("new")
    assert token.read() == "new"


UNREADABLE = """
import os
from pathlib import Path
from workspace_adapter.sidecar.secret_file import Secrets
if os.geteuid() == 0:  # who is root reads everything
    os.chown(".", 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
token = Secrets(Path(".")).token
token.path.write_text("one")
token.path.chmod(0o000)
print(token.read())
token.path.chmod(0o600)
print(token.read())
"""


def test_a_file_that_becomes_readable_counts(tmp_path: Path) -> None:
    child = [sys.executable, "-c", UNREADABLE]
    done = subprocess.run(child, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["None", "one"]


KEEP = """
import os, sys
from pathlib import Path
os.umask(0)
from workspace_adapter.sidecar.secret_file import Secrets
Secrets(Path(sys.argv[1])).token.keep("one")
"""


def test_nobody_else_can_read_it_for_an_instant_whatever_the_umask(tmp_path: Path) -> None:
    require(shutil.which("strace") is not None, "strace is not installed")
    trace = tmp_path / "trace"
    calls = "trace=openat,open,creat,rename,renameat,renameat2,fsync,chmod,fchmod,fchmodat"
    tracer = ["strace", "-f", "-y", "-o", str(trace), "-e", calls]
    subprocess.run([*tracer, sys.executable, "-c", KEEP, str(tmp_path)], check=True, timeout=60)
    lines = [line for line in trace.read_text().splitlines() if ".auth_token" in line]
    (made,) = [n for n, line in enumerate(lines) if "O_CREAT" in line]
    assert re.search(r"\.auth_token\.new\".*O_EXCL.*O_NOFOLLOW.*, 0600\)", lines[made])
    synced = next(n for n, line in enumerate(lines) if "fsync(" in line)
    renamed = next(n for n, line in enumerate(lines) if "rename" in line)
    assert made < synced < renamed
    assert not [line for line in lines if "chmod" in line]
    assert stat.S_IMODE((tmp_path / ".auth_token").stat().st_mode) == 0o600


def test_that_bearers_are_required_outlives_the_process(tmp_path: Path) -> None:
    Secrets(tmp_path).require(False)
    assert not any(tmp_path.iterdir()), "nothing to remember"

    Secrets(tmp_path).require(True)
    assert Secrets(tmp_path).required

    Secrets(tmp_path).require(False)
    assert not Secrets(tmp_path).required
