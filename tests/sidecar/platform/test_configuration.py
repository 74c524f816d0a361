"""The platform's file, as it is and as it must not be."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from workspace_adapter.settings import Configuration, Settings, left_out
from workspace_adapter.sidecar.platform.configuration import read_configuration

AS_THE_PLATFORM_RENDERS_IT = """\
name: "Ada: the \\"first\\""  # a comment
description: >-
  Writes code,
  and reads it
version: 2.10
tier: 2
model: anthropic:claude-opus-4-7
runtime: claude-code
runtime_config:
  model: sonnet
  models:
    - id: sonnet
      required_env: [CLAUDE_CODE_OAUTH_TOKEN]
skills: [review, plan]
prompt_files:
  - system-prompt.md
a2a:
  port: 8123
  streaming: on
  push_notifications: true
  delivery_mode: push
observability:
  heartbeat_interval_seconds: 30
  log_level: DEBUG
initial_prompt: |
  Say hello.
  Then wait.
idle_prompt:
idle_interval_seconds: 600
"""


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return tmp_path


def given(configs: Path, text: str | bytes) -> Configuration:
    (configs / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_configuration({"CONFIGS_DIR": str(configs)})


def test_what_the_platform_renders_is_read_as_it_was_typed(configs: Path) -> None:
    config = given(configs, AS_THE_PLATFORM_RENDERS_IT)
    assert config.problems == ()
    assert config.values["name"] == 'Ada: the "first"'
    assert config.values["description"] == "Writes code, and reads it"
    assert config.values["version"] == "2.10", "and not the number 2.1"
    assert config.values["a2a.port"] == "8123"
    assert config.values["skills"] == ("review", "plan")
    assert config.values["initial_prompt"] == "Say hello.\nThen wait."
    assert "idle_prompt" not in config.values, "null is as if it were not there"
    settings = Settings.from_env({"WORKSPACE_ID": "one"}, config)
    assert (settings.name, settings.port, settings.log_level) == ('Ada: the "first"', 8123, "debug")
    assert (settings.initial_prompt, settings.idle_prompt) == ("Say hello.\nThen wait.", None)
    assert (settings.skills, settings.offers_streams, settings.version) == (("review", "plan"), True, "2.10")
    assert left_out([Settings], {}, config) == ()


def test_it_lies_in_the_directory_or_is_the_file_that_the_platform_names(configs: Path) -> None:
    (configs / "config.yaml").write_text("name: Ada\n")
    for named in (str(configs), str(configs / "config.yaml")):
        config = read_configuration({"WORKSPACE_CONFIG_PATH": named, "CONFIGS_DIR": "/nowhere"})
        assert config.values == {"name": "Ada"}
        assert config.path == str(configs / "config.yaml")


def test_no_file_is_no_problem_unless_one_was_named(configs: Path) -> None:
    assert read_configuration({"CONFIGS_DIR": str(configs)}).problems == ()
    (problem,) = read_configuration({"WORKSPACE_CONFIG_PATH": str(configs)}).problems
    assert f"WORKSPACE_CONFIG_PATH={configs}" in problem


def test_settings_that_name_no_place_are_told_by_who_parses_them_all() -> None:
    assert read_configuration({"CONFIGS_DIR": "configs"}).problems == ()
    assert read_configuration({"WORKSPACE_CONFIG_PATH": "configs"}).problems == ()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "{}"])
def test_an_empty_file_says_nothing(configs: Path, text: str) -> None:
    config = given(configs, text)
    assert (config.values, config.problems) == ({}, ())


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: Ada: the first\n", "not YAML: mapping values are not allowed in this context (line 1)"),
        ("a: 1\n\tb: 2\n", "(line 2)"),
        ("name: 'open\n", "not YAML"),
        ("name: *nobody\n", "undefined alias (line 1)"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("- a\n", "it must be a mapping"),
        ("just words", "it must be a mapping"),
        (b"\xff\xfe\x00name: x", "it must be a mapping"),
        (b"name: \x00", "not YAML"),
        (b"name: \xc3\x28", "not YAML"),
        ("[" * DEEP, "nested more than 32 deep"),
        ("a: " + "{a: " * DEEP, "more than 131072 bytes"),
        ("name: " + "x" * (10 << 20), "more than 131072 bytes"),
    ],
)
def test_what_cannot_be_read_is_named_and_left_out_whole(configs: Path, text: str | bytes, why: str) -> None:
    config = given(configs, text)
    (problem,) = config.problems
    assert problem.startswith(f"{configs}/config.yaml: ")
    assert why in problem
    assert "\n" not in problem
    assert config.values == {}


def test_a_directory_a_pipe_and_what_may_not_be_entered_are_named(configs: Path) -> None:
    path = configs / "config.yaml"
    path.mkdir()
    (problem,) = read_configuration({"CONFIGS_DIR": str(configs)}).problems
    assert problem == f"{path}: it is no file"
    path.rmdir()
    os.mkfifo(path)
    (problem,) = read_configuration({"CONFIGS_DIR": str(configs)}).problems
    assert problem == f"{path}: it is no file"
    (problem,) = read_configuration({"CONFIGS_DIR": str(path)}).problems
    assert "Not a directory" in problem


LETTERS = "abcdefghij"


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in pairwise(LETTERS)),
        "a: &a {k: 1}\n"
        + "".join(f"{c}: &{c} {{<<: [{', '.join([f'*{p}'] * 9)}]}}\n" for p, c in pairwise(LETTERS)),
        "big: &big [" + "x, " * 20_000 + "]\n" + "".join(f"k{n}: *big\n" for n in range(4_000)),
        "? " + "x" * 50_000 + "\n: {" + "".join(f"a{n}: 1, " for n in range(5_000)) + "}\n",
        "self: &self {again: *self}\n",
        "{" + "a, " * 40_000 + "}\n",
    ],
    ids=["laughs", "merged laughs", "a list repeated", "a long key repeated", "itself", "a long line"],
)
def test_nothing_in_it_is_multiplied(configs: Path, text: str) -> None:
    began = time.process_time()
    config = given(configs, "name: Ada\n" + text if not text.startswith("{") else text)
    assert time.process_time() - began < 5
    assert sum(len(key) + len(str(value)) for key, value in config.values.items()) < 1 << 20
    assert text.startswith("{") or config.values["name"] == "Ada"


def test_a_tag_makes_no_object(configs: Path) -> None:
    config = given(configs, f"name: !!python/object/apply:os.mkdir ['{configs}/made']\ndescription: d\n")
    assert not (configs / "made").exists()
    assert config.values["description"] == "d"


@pytest.mark.parametrize("text", ['name: "\\ud800"\n', 'skills: ["\\udc00x"]\n'])
@pytest.mark.parametrize("library", ["with libyaml", "without"])
def test_half_a_character_is_never_taken_for_text(
    configs: Path, text: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "without":
        monkeypatch.delattr(yaml, "CSafeLoader")
    config = given(configs, text)
    assert config.problems or str(config.values).encode()


def test_without_libyaml_it_is_read_as_well(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert given(configs, AS_THE_PLATFORM_RENDERS_IT).values["a2a.port"] == "8123"
    for text in ("[" * DEEP, "name: 'open\n", "name: \x00"):
        assert given(configs, text).problems


def test_the_last_of_two_counts(configs: Path) -> None:
    assert given(configs, "name: Ada\nname: Eve\n").values["name"] == "Eve"


def test_a_prompt_may_lie_in_a_file_beside_it(configs: Path) -> None:
    (configs / "hello.md").write_text("Say hello.\n")
    config = given(configs, "initial_prompt_file: hello.md\nidle_prompt_file: hello.md\nidle_prompt: Rest.\n")
    settings = Settings.from_env({"WORKSPACE_ID": "one"}, config)
    assert (settings.initial_prompt, settings.idle_prompt) == ("Say hello.", "Rest.")
    assert config.problems == ()


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("gone.md", "no such file"),
        (".", "it is no file"),
        ("[a]", "must be the name"),
        ("bytes", "not UTF-8"),
    ],
)
def test_a_prompt_whose_file_cannot_be_read_is_named(configs: Path, named: str, why: str) -> None:
    (configs / "bytes").write_bytes(b"\xff")
    config = given(configs, f"initial_prompt_file: {named}\nname: Ada\n")
    (problem,) = config.problems
    assert "initial_prompt_file=" in problem
    assert why in problem
    assert config.values["name"] == "Ada"
    assert not config.values.get("initial_prompt")
