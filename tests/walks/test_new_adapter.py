"""The package that `workspace-adapter new-adapter` writes works as it is."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def command_line(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workspace_adapter", *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("author")
    done = command_line("new-adapter", "my-agent", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "my-agent"


def environment(directory: Path) -> Path:
    """Make an environment that sees this one's packages, and needs no index to install one more."""
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory.parent)
    (lib,) = directory.glob("lib/python*/site-packages")
    ours = "; ".join(f"site.addsitedir({path!r})" for path in site.getsitepackages())
    (lib / "ours.pth").write_text(f"import site; {ours}\n")
    return directory / "bin" / "python"


def test_installed_it_is_known_by_its_name_and_its_own_tests_pass(package: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", package, cwd=tmp_path)
    shown = run(
        python,
        "-m",
        "workspace_adapter",
        "config",
        cwd=tmp_path,
        WORKSPACE_ID="w",
        WORKSPACE_ADAPTER="my-agent",
    )
    assert "MY_AGENT_SHELL" in shown
    told = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    assert " passed" in told
    assert "failed" not in told


def test_it_passes_our_own_checks_of_style_and_types(package: Path) -> None:
    ours = ROOT / "pyproject.toml"
    run(sys.executable, "-m", "ruff", "check", "--no-cache", "--config", ours, package, cwd=package)
    run(
        sys.executable,
        "-m",
        "ruff",
        "format",
        "--check",
        "--no-cache",
        "--config",
        ours,
        package,
        cwd=package,
    )
    cache = ROOT / ".mypy_cache"
    mypy = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "--config-file", os.devnull)
    run(*mypy, "src", "tests", cwd=package, MYPYPATH="src")


def test_its_dockerfile_has_an_init_a_volume_and_a_user_of_its_own(package: Path) -> None:
    lines = (package / "Dockerfile").read_text().splitlines()
    assert lines[0].startswith("FROM ")  # no syntax line: it would have to be fetched
    assert 'ENTRYPOINT ["tini", "-s", "--"]' in lines
    assert 'CMD ["workspace-adapter", "serve"]' in lines
    assert "VOLUME /workspace" in lines
    assert "USER 10001" in lines  # Kubernetes takes no name for proof that it is not root


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("My Agent", "lower-case letters"),
        ("../agent", "lower-case letters"),
        ("echo", "registered already"),
        ("json", "'json' already"),
        ("pytest", "'pytest' already"),
        ("lambda", "'lambda' already"),
    ],
)
def test_a_name_that_will_not_do_is_refused(tmp_path: Path, name: str, told: str) -> None:
    done = command_line("new-adapter", name, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_or_cannot_be_written_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine")
    for directory, told in (
        ("taken", "there already"),
        ("file/agent", "Not a directory"),
        ("no/agent", "No such"),
    ):
        done = command_line("new-adapter", "my-agent", "--directory", directory, cwd=tmp_path)
        assert done.returncode == 1
        assert told in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "taken"]
