"""What scripts/environment says on a machine that lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "cat", "flock", "id", "mkdir", "mktemp", "rm", "sed", "sha256sum", "tee", "uname")
REAL = f'exec {sys.executable} "$@"'


class Machine:
    """A machine that has these programs and no others."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.directory = directory / "environment"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)

    def has(self, name: str, script: str) -> None:
        """Add a program."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!{self.bin / 'bash'}\n{script}\n")
        (self.bin / name).chmod(0o755)

    def environment(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Ask for a development environment."""
        script = f"set -euo pipefail; . scripts/environment; environment {self.directory} dev; echo made"
        return subprocess.run(
            [str(self.bin / "bash"), "-c", script],
            cwd=ROOT,
            env={"PATH": str(self.bin), "HOME": os.fspath(self.directory), **variables},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_python_is_named_with_the_command_that_installs_it(machine: Machine) -> None:
    done = machine.environment()
    assert done.returncode == 2
    assert "Python 3.11 or newer with its venv module is needed; found: none." in done.stderr
    assert "nstall" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_a_python_that_is_too_old_is_named(machine: Machine) -> None:
    machine.has("python3", "case $* in *version_info*) exit 1;; *--version) echo Python 3.9.2;; esac")
    done = machine.environment()
    assert (done.returncode, done.stdout) == (2, "")
    assert "found: Python 3.9.2." in done.stderr


def test_a_python_without_venv_is_named(machine: Machine) -> None:
    machine.has("python3", f"case $* in *ensurepip*) exit 1;; esac; {REAL}")
    done = machine.environment()
    assert (done.returncode, done.stdout) == (2, "")
    assert f"found: python3.{sys.version_info[1]} without ensurepip" in done.stderr


def test_a_machine_the_claude_cli_does_not_ship_for_is_named(machine: Machine) -> None:
    machine.has("uname", "case $1 in -s) echo Linux;; -m) echo riscv64;; esac")
    done = machine.environment()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Linux on x86_64 or aarch64 is needed; this is Linux on riscv64.\n"


def test_what_pip_said_is_shown_when_it_fails(machine: Machine) -> None:
    machine.has("python3", f'case $* in *"-m venv"*) echo no space left; exit 1;; esac; {REAL}')
    done = machine.environment()
    assert (done.returncode, done.stdout) == (1, "")
    assert "no space left" in done.stderr


def test_a_later_python_serves_where_the_first_does_not(machine: Machine) -> None:
    machine.has("python3", "exit 1")
    machine.has("python3.13", f'case $* in *"-m venv"*) echo reached; exit 1;; esac; {REAL}')
    assert "reached" in machine.environment().stderr


def test_an_environment_whose_inputs_did_not_change_is_taken_as_it_is(machine: Machine) -> None:
    (machine.directory / "bin").mkdir(parents=True)
    (machine.directory / "bin" / "python").symlink_to(sys.executable)
    inputs = "{ pwd; cat pyproject.toml requirements.lock scripts/environment; } | sha256sum"
    digest = subprocess.run(["bash", "-c", inputs], cwd=ROOT, check=True, capture_output=True, text=True)
    (machine.directory / "made").write_text(f"{digest.stdout.strip()} dev\n")
    assert machine.environment().stdout == "made\n"
