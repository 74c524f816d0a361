"""The page about the image says what Dockerfile.workspace says, and the context holds what it copies."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = (ROOT / "Dockerfile.workspace").read_text()
PAGE = (ROOT / "docs" / "image.md").read_text()
EXAMPLE = ROOT / "examples" / "images"


def test_every_build_argument_is_on_the_page_with_its_default() -> None:
    arguments = {name: default.strip('"') for name, default in re.findall(r"^ARG (\w+)=?(.*)$", FILE, re.M)}
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| .*\. \|$", PAGE.partition("## Into")[0], re.M))
    assert rows.keys() == arguments.keys()
    arguments["BASE"] = arguments["BASE"].replace("${PYTHON_VERSION}", arguments["PYTHON_VERSION"])
    given = {name: f"`{default}`" for name, default in arguments.items() if default}
    assert {name: rows[name] for name in given} == given


def test_an_image_of_ones_own_starts_as_ours_does() -> None:
    for line in ('ENTRYPOINT ["tini", "-s", "--"]', 'CMD ["workspace-adapter", "serve"]', "USER 10001:10001"):
        assert f"\n{line}\n" in FILE
        assert f"\n{line}\n" in PAGE


def test_an_image_of_ones_own_has_what_the_health_check_and_the_runtime_need() -> None:
    snippet = PAGE.partition("## Into")[2].partition("```dockerfile")[2].partition("```")[0]
    (health,) = re.findall(r"^HEALTHCHECK .*\n.*$", FILE, re.M)
    read = re.findall(r"\$([A-Z_]+)", health)
    assert read == ["WORKSPACE_PORT"]
    assert re.search(r"^ENV .*\bWORKSPACE_PORT=\d", snippet, re.M)
    (packages,) = re.findall(r'^ARG PACKAGES="(.*)"$', FILE, re.M)
    (installed,) = re.findall("--no-install-recommends (.*?) &&", snippet)
    assert installed.split() == ["tini", *packages.split()]


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", FILE, re.M)
        for source in sources.split()
    }
    assert "*" in lines
    assert let_in == copied


def test_no_line_has_a_builder_fetch_its_own_syntax() -> None:
    for file in (ROOT / "Dockerfile.workspace", *EXAMPLE.glob("*/Dockerfile")):
        assert "# syntax" not in file.read_text()


def test_the_example_takes_fewer_than_ten_lines_and_its_page_says_how_it_is_built() -> None:
    assert len((EXAMPLE / "notes" / "Dockerfile").read_text().splitlines()) < 10
    assert "docker build --tag notes examples/images/notes" in (EXAMPLE / "README.md").read_text()
