from __future__ import annotations

import os
import shutil
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter.adapter import DataPart, FilePart, TextPart
from workspace_adapter.errors import BadMessage
from workspace_adapter.sidecar.door.parts import Uploads, safe_name


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A workdir with the state directory in it, as in the image."""
    workdir = tmp_path / "workspace"
    (workdir / ".state").mkdir(parents=True)
    return workdir


@pytest.fixture
def uploads(workdir: Path) -> Uploads:
    return Uploads(workdir=workdir, state_dir=workdir / ".state")


def file(uri: str, **more: str) -> dict[str, Any]:
    return {"parts": [{"kind": "file", "file": {"uri": uri, **more}}]}


def inline(content: bytes, name: str = "note.txt") -> dict[str, Any]:
    return {"parts": [{"kind": "file", "file": {"bytes": b64encode(content).decode(), "name": name}}]}


async def test_text_and_data_reach_the_runtime_as_they_are(uploads: Uploads) -> None:
    message = {"parts": [{"kind": "text", "text": "hi"}, {"kind": "data", "data": {"ö": [1, None]}}]}
    await uploads.check(message)
    assert await uploads.materialise(message, session_id="s") == (
        TextPart(text="hi"),
        DataPart(json='{"ö": [1, null]}'),
    )


async def test_a_file_is_found_by_every_way_of_naming_it(uploads: Uploads, workdir: Path) -> None:
    path = workdir / ".molecule" / "chat-uploads" / "ab-a report.pdf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"pdf")
    quoted = str(path).replace(" ", "%20")
    for uri in (
        f"workspace:{path}",
        f"workspace://{path}",
        f"file://{path}",
        f"file://localhost{path}",
        f"file://{quoted}",
        f"FILE:{path}",
        str(path),
        "workspace:.molecule/chat-uploads/ab-a report.pdf",
        ".molecule/chat-uploads/ab-a report.pdf",
    ):
        message = file(uri, name="report.pdf", mime_type="application/pdf")
        await uploads.check(message)
        found = FilePart(path=path, name="report.pdf", mime_type="application/pdf")
        assert await uploads.materialise(message, session_id="s") == (found,), uri


async def test_a_name_with_a_percent_sign_in_it_is_taken_literally_first(
    uploads: Uploads, workdir: Path
) -> None:
    (workdir / "100%20sure").write_text("literal")
    (workdir / "100 sure").write_text("decoded")
    (part,) = await uploads.materialise(file("workspace:100%20sure"), session_id="s")
    assert isinstance(part, FilePart)
    assert part.path.read_text() == "literal"


async def test_only_what_lies_beneath_the_workdir_may_be_named(
    uploads: Uploads, workdir: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("x")
    (tmp_path / "workspace-other").mkdir()
    (tmp_path / "workspace-other" / "x").write_text("x")
    (workdir / "link").symlink_to(outside)
    (workdir / "inside").write_text("x")
    (workdir / "good-link").symlink_to(workdir / "inside")
    (workdir / ".state" / "journal.db").write_text("x")
    for uri in (
        str(outside),
        f"workspace:{outside}",
        "workspace:../secret.txt",
        str(workdir / ".." / "secret.txt"),
        str(workdir / "link"),
        str(tmp_path / "workspace-other" / "x"),
        str(workdir / ".state" / "journal.db"),
        "workspace:.state/journal.db",
    ):
        with pytest.raises(BadMessage, match="is not beneath WORKSPACE_WORKDIR") as refused:
            await uploads.check(file(uri))
        assert "secret" not in str(refused.value)
    (part,) = await uploads.materialise(file("good-link"), session_id="s")
    assert isinstance(part, FilePart)
    assert part.path == workdir / "inside"


async def test_what_is_no_regular_file_is_refused(uploads: Uploads, workdir: Path) -> None:
    os.mkfifo(workdir / "pipe")
    (workdir / "loop").symlink_to(workdir / "loop")
    for uri, why in (
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("missing", "does not exist"),
        ("loop", "does not exist"),
        ("nul\0", "does not exist"),
        ("x" * 5000, "does not exist"),
    ):
        with pytest.raises(BadMessage, match=rf"message.parts\[0\] names .*{why}"):
            await uploads.check(file(uri))


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:1/x", "https://x/y", "data:text/plain,hi", "s3://b/k", "HTTP://x"]
)
async def test_a_url_is_refused_and_never_fetched(uploads: Uploads, uri: str) -> None:
    with pytest.raises(BadMessage, match="URLs are never fetched"):
        await uploads.check(file(uri))


async def test_inline_bytes_are_kept_once_under_their_digest(uploads: Uploads, workdir: Path) -> None:
    message = inline(b"hello", "../../etc/a b.txt")
    await uploads.check(message)
    assert not (workdir / ".state" / "uploads").exists()
    (part,) = await uploads.materialise(message, session_id="s")
    assert isinstance(part, FilePart)
    assert part.path.read_bytes() == b"hello"
    assert part.path.name == "a b.txt"
    assert part.path.parents[2] == workdir / ".state" / "uploads"
    inode = part.path.stat().st_ino
    assert await uploads.materialise(message, session_id="s") == (part,)
    assert part.path.stat().st_ino == inode
    assert [path.name for path in part.path.parent.iterdir()] == ["a b.txt"]


async def test_a_file_that_was_brought_may_be_named_later(uploads: Uploads) -> None:
    (part,) = await uploads.materialise(inline(b"hello"), session_id="s")
    assert isinstance(part, FilePart)
    (again,) = await uploads.materialise(file(str(part.path)), session_id="s")
    assert isinstance(again, FilePart)
    assert again.path == part.path


async def test_bytes_that_are_not_base64_are_refused_at_the_door(uploads: Uploads) -> None:
    with pytest.raises(BadMessage, match=r"message.parts\[0\] brings bytes"):
        await uploads.check({"parts": [{"kind": "file", "file": {"bytes": "!!!"}}]})


async def test_a_part_nobody_can_use_is_an_error_not_silence(uploads: Uploads) -> None:
    with pytest.raises(BadMessage, match=r"message.parts\[1\]"):
        await uploads.check({"parts": [{"text": "fine"}, {"kind": "hologram"}]})


async def test_a_file_that_vanished_after_it_was_accepted_is_named(uploads: Uploads, workdir: Path) -> None:
    (workdir / "x").write_text("x")
    await uploads.check(file("x"))
    (workdir / "x").unlink()
    with pytest.raises(BadMessage, match="does not exist"):
        await uploads.materialise(file("x"), session_id="s")


async def test_what_was_not_used_for_long_is_deleted(uploads: Uploads) -> None:
    (old,) = await uploads.materialise(inline(b"old"), session_id="s")
    (new,) = await uploads.materialise(inline(b"new"), session_id="s")
    (used,) = await uploads.materialise(inline(b"used"), session_id="s")
    assert isinstance(old, FilePart)
    assert isinstance(new, FilePart)
    assert isinstance(used, FilePart)
    now = time.time()
    for part in (old, used):
        os.utime(part.path.parent, (now - 100, now - 100))
    await uploads.materialise(inline(b"used"), session_id="s")
    await uploads.prune(before=now - 50)
    assert not old.path.parent.exists()
    assert new.path.exists()
    assert used.path.exists()


async def test_what_cannot_be_deleted_keeps_nothing_else(uploads: Uploads) -> None:
    for number in range(4):
        await uploads.materialise(inline(b"old"), session_id=f"s{number}")
    directories = [path.parent for number in range(4) for path in uploads.of(f"s{number}")]
    first = next(directories[0].parents[1].glob("*/*"))
    shutil.rmtree(first)
    first.touch()  # no directory: it cannot be deleted as one
    for directory in directories:
        os.utime(directory, (0, 0))
    with pytest.raises(NotADirectoryError):
        await uploads.prune(before=1)
    assert [directory for directory in directories if directory.exists()] == [first]


async def test_of_one_session_all_files_are_forgotten_and_of_the_others_none(uploads: Uploads) -> None:
    (first,) = await uploads.materialise(inline(b"same"), session_id="one")
    (second,) = await uploads.materialise(inline(b"more"), session_id="one")
    (other,) = await uploads.materialise(inline(b"same"), session_id="../one")
    assert isinstance(first, FilePart)
    assert isinstance(second, FilePart)
    assert isinstance(other, FilePart)
    assert uploads.of("one") == sorted([first.path, second.path])
    assert await uploads.forget("one") == 2
    assert uploads.of("one") == []
    assert await uploads.forget("one") == 0
    assert other.path.read_bytes() == b"same"
    await uploads.materialise(inline(b"same"), session_id="one")
    assert len(uploads.of("one")) == 1


async def test_there_may_be_nothing_to_delete(uploads: Uploads) -> None:
    await uploads.prune(before=time.time())


@given(st.text())
def test_a_safe_name_is_one_short_component(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    safe = safe_name(name)
    assert safe
    assert len(safe.encode()) <= 200
    assert not safe.startswith(".")
    assert not {"/", "\\", "\0", "\n"} & set(safe)


@pytest.mark.parametrize(
    ("sent", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\x.txt", "x.txt"),
        ("..", "file"),
        ("", "file"),
        ("a\nb", "a_b"),
        ("ü" * 300 + ".pdf", "ü" * 98 + ".pdf"),
    ],
)
def test_a_safe_name_is_as_like_the_sent_one_as_can_be(sent: str, safe: str) -> None:
    assert safe_name(sent) == safe
