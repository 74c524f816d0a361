from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import require
from . import engine

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Images:
    """The images of this run, by name."""

    workspace: str
    """Dockerfile.workspace as it is."""
    tested: str
    """The same with what the tests add to it."""
    notes: str
    """The example of an agent of one's own."""
    platform: str
    """The example for the existing platform."""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """The images, built once a run, however many processes share its tests; removed by the last of them."""
    require(engine.answers(), "no container engine answers `docker info`")
    require(engine.has(base()), f"there is no image {base()}, nor a registry that has it")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    run = f"workspace-test-{hashlib.sha256(os.fsencode(shared.resolve())).hexdigest()[:12]}"
    made = Images(workspace=run, tested=f"{run}-tested", notes=f"{run}-notes", platform=f"{run}-platform")
    with _users(shared) as users:
        if not users:
            _build(made)
        users.append(os.getpid())
    yield made
    with _users(shared) as users:
        users.remove(os.getpid())
        if not users:
            engine.docker("image", "rm", "--force", made.platform, made.notes, made.tested, made.workspace)


def base() -> str:
    """What Dockerfile.workspace begins with."""
    (python,) = re.findall(r"^ARG PYTHON_VERSION=(.*)$", (ROOT / "Dockerfile.workspace").read_text(), re.M)
    return f"python:{python}-slim"


def _build(images: Images) -> None:
    ours = f"WORKSPACE={images.workspace}"
    engine.build(images.workspace, str(ROOT), "--file", str(ROOT / "Dockerfile.workspace"))
    engine.build(images.tested, str(Path(__file__).parent / "image"), "--build-arg", ours)
    engine.build(images.notes, str(ROOT / "examples" / "images" / "notes"), "--build-arg", ours)
    engine.build(images.platform, str(ROOT / "examples" / "images" / "platform"), "--build-arg", ours)


@contextmanager
def _users(shared: Path) -> Iterator[list[int]]:
    """Hold the list of processes that use the images, nobody else at the same time."""
    with (shared / "images").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        users: list[int] = json.loads(file.read() or "[]")
        yield users
        file.seek(0)
        file.truncate()
        json.dump(users, file)
