"""Which adapter a name means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace_adapter.errors import SettingsError
from workspace_adapter.settings import Configuration
from workspace_adapter.sidecar.adapters import build_adapter

ADAPTER = """
import workspace_adapter as wa

class {name}(wa.RuntimeAdapter):
    name = {name!r}
    capabilities = wa.Capabilities(gate=None)
    Session = wa.RuntimeSession
"""
STOCK = """
class BaseAdapter: ...
class Adapter(BaseAdapter): ...
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def built(**environ: str) -> str:
    return build_adapter(environ).name


def refused(config: Configuration | None = None, **environ: str) -> str:
    with pytest.raises(SettingsError) as wrong:
        build_adapter(environ, config or Configuration())
    (problem,) = wrong.value.problems
    return problem


def test_a_module_alone_means_the_one_adapter_it_defines(modules: Path) -> None:
    (modules / "mine.py").write_text(
        "from workspace_adapter.runtimes.echo import EchoAdapter\n"
        + ADAPTER.format(name="Only")
        + "Default = Only"
    )
    assert built(ADAPTER_MODULE="mine") == "Only", "and not one that it merely imports"


def test_a_module_in_a_package_is_named_with_dots(modules: Path) -> None:
    (modules / "ours").mkdir()
    (modules / "ours" / "__init__.py").touch()
    (modules / "ours" / "agent.py").write_text(ADAPTER.format(name="Only"))
    assert built(ADAPTER_MODULE="ours.agent") == "Only"


def test_of_several_the_one_that_is_called_adapter_counts(modules: Path) -> None:
    (modules / "mine.py").write_text(
        ADAPTER.format(name="First") + ADAPTER.format(name="Second") + "Adapter = Second"
    )
    assert built(ADAPTER_MODULE="mine") == "Second"


def test_an_adapter_that_is_only_imported_counts_when_it_is_called_adapter(modules: Path) -> None:
    (modules / "mine.py").write_text("from workspace_adapter.runtimes.echo import EchoAdapter as Adapter")
    assert built(ADAPTER_MODULE="mine") == "echo"


def test_several_are_named(modules: Path) -> None:
    (modules / "mine.py").write_text(ADAPTER.format(name="Second") + ADAPTER.format(name="First"))
    assert refused(ADAPTER_MODULE="mine") == (
        "ADAPTER_MODULE='mine': it has more than one RuntimeAdapter class (First, Second); give module:Class"
    )


def test_none_is_said(modules: Path) -> None:
    (modules / "mine.py").write_text("x = 1")
    assert refused(WORKSPACE_ADAPTER="mine") == "WORKSPACE_ADAPTER='mine': it has no RuntimeAdapter class"


@pytest.mark.parametrize("named", ["mine", "mine:Adapter"])
def test_an_adapter_of_the_platforms_own_runtime_is_told_apart(modules: Path, named: str) -> None:
    (modules / "mine.py").write_text(STOCK)
    problem = refused(ADAPTER_MODULE=named)
    assert "Adapter is of the platform's own runtime: set WORKSPACE_ADAPTER to" in problem


def test_so_is_one_whose_runtime_is_not_even_installed(modules: Path) -> None:
    (modules / "mine.py").write_text("from molecule_runtime.adapters.base import BaseAdapter")
    problem = refused(ADAPTER_MODULE="mine")
    assert "No module named 'molecule_runtime'" in problem
    assert "set WORKSPACE_ADAPTER to" in problem


@pytest.mark.parametrize(
    "name", ["nobody", "no-body", "nobody.at.all", "workspace_adapter.nobody", "a b", "..", "é"]
)
def test_what_is_neither_a_runtime_nor_a_module_is_told_with_what_there_is(name: str) -> None:
    problem = refused(WORKSPACE_ADAPTER=name)
    assert problem.startswith(f"WORKSPACE_ADAPTER={name!r}: no such runtime; registered are claude, echo")


def test_a_module_that_cannot_be_imported_says_where(modules: Path) -> None:
    (modules / "mine.py").write_text("\n1 / 0\n")
    assert "mine.py:2" in refused(ADAPTER_MODULE="mine")
    (modules / "yours.py").write_text("import nothing_of_that_name\n")
    assert "No module named 'nothing_of_that_name'" in refused(ADAPTER_MODULE="yours")


def test_the_platforms_file_names_a_registered_runtime_only(modules: Path) -> None:
    def file(runtime: str) -> Configuration:
        return Configuration("/configs/config.yaml", {"runtime": runtime})

    assert build_adapter({}, file("echo")).name == "echo"
    assert build_adapter({}, file("claude-code")).name == "claude"
    assert build_adapter({"WORKSPACE_ADAPTER": "echo"}, file("langgraph")).name == "echo"
    (modules / "mine.py").write_text("raise SystemExit('imported')")
    for runtime in ("mine", "mine:Adapter", "langgraph"):
        problem = refused(file(runtime))
        assert problem.startswith(f"/configs/config.yaml: runtime={runtime!r}: no such runtime")
        assert "set WORKSPACE_ADAPTER=module:Class" in problem
