"""What is shipped, and what it stands on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_lock_holds_versions_and_hashes_alone() -> None:
    version = r"[A-Za-z0-9.-]+==[a-z0-9.]+( ; [A-Za-z0-9_.'()<>=! ]+)? \\"
    digest = r"    --hash=sha256:[0-9a-f]{64}( \\)?"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    others = [line for line in lines if not re.fullmatch(f"{version}|{digest}", line)]
    assert others == []


def test_the_lock_satisfies_every_requirement() -> None:
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M))
    wanted = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
    unmet = [
        str(requirement)
        for requirement in wanted
        if requirement.name != PROJECT["name"]
        and not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), "0"))
    ]
    assert unmet == []


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert shipped == package
    assert "workspace_adapter/py.typed" in shipped


ROOMS = {
    "runtimes": "claude",
    "testing": "test",
    "shim/metrics.py": "metrics",
    "shim/": "platform",
    "sidecar/telemetry/exporter.py": "otel",
    "sidecar/telemetry/metrics.py": "metrics",
}
"""Where an extra counts; the rest must run without any."""


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_third_party_import_is_declared(room: str) -> None:
    extra = EXTRAS[ROOMS[room]] if room else ()
    declared = {canonicalize_name(Requirement(text).name) for text in (*PROJECT["dependencies"], *extra)}
    owners = packages_distributions()
    undeclared = set()
    for path in SOURCE.rglob("*.py"):
        within = path.relative_to(SOURCE / "workspace_adapter").as_posix()
        if next((other for other in ROOMS if within.startswith(other)), "") != room:
            continue
        for module in _imported(ast.parse(path.read_text())):
            known = {canonicalize_name(name) for name in owners.get(module, [module])}
            if module not in sys.stdlib_module_names and not known & declared:
                undeclared.add(f"{path.relative_to(ROOT)} imports {module}")
    assert undeclared == set()


def _imported(tree: ast.AST) -> set[str]:
    """Return the top-level names of everything imported absolutely, at whatever depth of the code."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules}


def test_every_registered_runtime_can_be_loaded() -> None:
    registered = entry_points(group="workspace_adapter.runtimes")
    assert {entry.name: entry.load().name for entry in registered} == {"claude": "claude", "echo": "echo"}
