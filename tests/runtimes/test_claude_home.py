"""What is erased of a conversation, beside others that go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workspace_adapter.runtimes.claude import home

ID = "0b9f6b5e-1111-4222-8333-444455556666"


@contextmanager
def folders_come_and_go(place: Path) -> Iterator[None]:
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for name in "abcdefgh":
                (place / name).mkdir()
            for name in "abcdefgh":
                (place / name).rmdir()

    neighbour = threading.Thread(target=come_and_go)
    neighbour.start()
    try:
        yield
    finally:
        over.set()
        neighbour.join()


def test_folders_of_others_may_vanish_meanwhile(tmp_path: Path) -> None:
    directory, scratch = tmp_path / "claude", tmp_path / "scratch"
    mine = scratch / "project" / ID / "tasks"
    scratch.mkdir()
    with folders_come_and_go(scratch):
        for _ in range(150):
            mine.mkdir(parents=True)
            assert home.erase(directory, ID, scratch) == [str(mine.parent)]
            assert not mine.parent.exists()


def test_what_bears_the_name_goes_and_nothing_else(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "claude", tmp_path / "elsewhere"
    (directory / "projects" / "here" / ID / "subagents").mkdir(parents=True)
    (directory / "projects" / "here" / f"{ID}.jsonl").touch()
    (directory / "projects" / "here" / "other.jsonl").touch()
    (elsewhere / ID).mkdir(parents=True)
    (directory / "todos").symlink_to(elsewhere)
    (directory / f"{ID}.on-top").touch()
    assert sorted(home.erase(directory, ID, tmp_path / "none")) == sorted(
        str(directory / name) for name in (f"projects/here/{ID}", f"projects/here/{ID}.jsonl", f"todos/{ID}")
    )
    assert not list(elsewhere.iterdir())
    assert (directory / "projects" / "here" / "other.jsonl").exists()
    assert (directory / f"{ID}.on-top").exists()


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    (tmp_path / "scratch").touch()
    with pytest.raises(NotADirectoryError):
        home.erase(tmp_path / "claude", ID, tmp_path / "scratch")
