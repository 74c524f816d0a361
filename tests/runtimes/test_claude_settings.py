"""What the Claude runtime is told by the existing platform's names."""

from __future__ import annotations

import pytest

from workspace_adapter.runtimes.claude import ClaudeSettings
from workspace_adapter.settings import Configuration, parse

FILE = Configuration(values={"runtime_config.model": "sonnet", "model": "anthropic:claude-opus-4-7"})


@pytest.mark.parametrize(
    ("environ", "config", "model"),
    [
        ({"WORKSPACE_CLAUDE_MODEL": "ours", "MOLECULE_MODEL": "theirs"}, FILE, "ours"),
        ({"MOLECULE_MODEL": "first", "MODEL": "second", "MODEL_PROVIDER": "third"}, FILE, "first"),
        ({"MOLECULE_MODEL": "", "MODEL": "second", "MODEL_PROVIDER": "third"}, FILE, "second"),
        ({"MODEL_PROVIDER": "third"}, FILE, "third"),
        ({}, FILE, "sonnet"),
        ({}, Configuration(values={"model": "anthropic:claude-opus-4-7"}), "claude-opus-4-7"),
        ({"MODEL": "anthropic/claude-opus-4-7"}, FILE, "claude-opus-4-7"),
        ({}, Configuration(), None),
    ],
)
def test_the_model_is_the_first_that_is_named(
    environ: dict[str, str], config: Configuration, model: str | None
) -> None:
    assert parse(ClaudeSettings, environ, config).model == model


def test_extras_lie_where_the_platform_says() -> None:
    told = parse(ClaudeSettings, {"CONFIGS_DIR": "/c", "PLUGINS_DIR": "/p"})
    assert (told.platform_dir, told.plugins_dir) == ("/c", "/p")
    assert parse(ClaudeSettings, {}).platform_dir == "/configs"
    listed = Configuration(values={"prompt_files": ("one.md", "two.md")})
    assert parse(ClaudeSettings, {}, listed).prompt_files == ("one.md", "two.md")
