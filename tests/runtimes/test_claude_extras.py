"""What the platform lays out for an agent, and what the real CLI makes of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from workspace_adapter.resume import Resumption
from workspace_adapter.runtimes.claude import ClaudeSettings, extras

from .claude_stand import Stand, follow, script, stand, turn

__all__ = ["stand"]


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def skill(folder: Path, name: str) -> None:
    put(
        folder / "skills" / name / "SKILL.md",
        f"---\nname: {name}\ndescription: For {name}.\n---\nDo the {name}.\n",
    )


def hook(folder: Path, event: str, command: str) -> None:
    of_event = [{"hooks": [{"type": "command", "command": command}]}]
    put(folder / "hooks" / "hooks.json", json.dumps({"hooks": {event: of_event}}))


def found(root: Path, *prompt_files: str) -> extras.Extras:
    return extras.find(root / "configs", root / "plugins", prompt_files)


# --- where things lie ---------------------------------------------------------------------


def test_where_the_platform_has_nothing_there_is_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, "system-prompt.md") == extras.Extras()


def test_a_plugin_of_the_workspace_goes_before_a_shared_one_of_its_name(tmp_path: Path) -> None:
    for folder in (
        "configs/plugins/a",
        "configs/plugins/b",
        "plugins/b",
        "plugins/c",
        "plugins/.git",
        "plugins/__x",
    ):
        (tmp_path / folder).mkdir(parents=True)
    put(tmp_path / "plugins" / "README.md")
    (tmp_path / "plugins" / "gone").symlink_to("nowhere")
    (tmp_path / "plugins" / "loop").symlink_to("loop")
    assert [str(path.relative_to(tmp_path)) for path in found(tmp_path).plugins] == [
        "configs/plugins/a",
        "configs/plugins/b",
        "plugins/c",
    ]


def test_skills_in_the_platforms_directory_make_it_a_plugin(tmp_path: Path) -> None:
    skill(tmp_path / "configs", "review")
    assert found(tmp_path).plugins == (tmp_path / "configs",)


def test_instructions_are_told_in_the_order_of_their_weight(tmp_path: Path) -> None:
    put(tmp_path / "configs" / "one.md", "one\n")
    put(tmp_path / "configs" / "CLAUDE.md", "memory")
    put(tmp_path / "configs" / "plugins" / "p" / "rules" / "kind.md", "rule")
    put(tmp_path / "configs" / "plugins" / "p" / "house.md", "house")
    put(tmp_path / "configs" / "plugins" / "p" / "README.md", "for people")
    put(tmp_path / "configs" / "plugins" / "p" / "SKILL.md", "a skill")
    put(tmp_path / "configs" / "plugins" / "p" / "data.txt", "data")
    told = found(tmp_path, "one.md", "two.md", "CLAUDE.md")
    assert told.instructions.split() == ["one", "memory", "rule", "house"]
    assert told.left_out == ()


def test_what_cannot_be_told_is_named(tmp_path: Path) -> None:
    put(tmp_path / "configs" / "long.md", "x" * (64 << 10) + "x")
    put(tmp_path / "secret.md", "secret")
    for number in range(6):
        put(tmp_path / "configs" / f"{number}.md", str(number) * (50 << 10))
    told = found(tmp_path, "long.md", "../secret.md", f"{tmp_path}/secret.md", *(f"{n}.md" for n in range(6)))
    assert "secret" not in told.instructions
    assert len(told.instructions) < 257 << 10
    assert len(told.left_out) == 4
    assert "long.md is too long" in told.left_out[0]
    assert all("lies outside" in why for why in told.left_out[1:3])
    assert "5.md is too long" in told.left_out[3]


def test_instructions_that_went_are_told_no_longer(tmp_path: Path) -> None:
    assert extras.write("one", tmp_path / "i") == tmp_path / "i"
    (tmp_path / "i" / "CLAUDE.md").write_bytes(b"torn \xff")
    assert extras.write("two", tmp_path / "i") == tmp_path / "i"
    assert [path.read_text() for path in (tmp_path / "i").iterdir()] == ["two"]
    assert extras.write("", tmp_path / "i") is None
    assert list((tmp_path / "i").iterdir()) == []
    assert extras.write("", tmp_path / "never") is None


# --- what Claude Code makes of it -----------------------------------------------------------


def use(stand: Stand) -> tuple[Path, Path]:
    """Have the platform's folders beneath the stand's; return them."""
    configs, shared = stand.root / "configs", stand.root / "plugins"
    configs.mkdir()
    shared.mkdir()
    stand.use(ClaudeSettings(platform_dir=str(configs), plugins_dir=str(shared)))
    return configs, shared


def load(name: str) -> dict[str, object]:
    """A step: the model asks for a skill."""
    return {"tool": "Skill", "input": {"skill": name}}


async def test_skills_hooks_and_instructions_of_the_platform_reach_the_agent(stand: Stand) -> None:
    configs, shared = use(stand)
    put(configs / "system-prompt.md", "You are Ada.")
    put(configs / "CLAUDE.md", "Remember the sea.")
    skill(configs, "review")
    installed = configs / "plugins" / "ours"
    put(installed / ".claude-plugin" / "plugin.json", json.dumps({"name": "ours"}))
    put(installed / "rules" / "kind.md", "Always be kind.")
    skill(installed, "alpha")
    hook(installed, "SessionStart", f"touch {stand.root}/hooked")
    put(shared / "bare" / "plugin.yaml", "name: bare\n")
    skill(shared / "bare", "beta")
    steps = (load("configs:review"), load("ours:alpha"), load("bare:beta"), {"text": "done"})
    async with stand.session() as session:
        run = await follow(session, turn(script(*steps)))
    assert run.finished.answer == "done"
    for word in ("Do the review.", "Do the alpha.", "Do the beta."):
        assert word in stand.told()
    for word in ("You are Ada.", "Remember the sea.", "Always be kind."):
        assert word in stand.told()
    assert (stand.root / "hooked").exists()
    assert [call.name for call in stand.gate.asked] == ["Skill"] * 3


async def test_instructions_that_changed_count_from_the_next_start_on(stand: Stand) -> None:
    configs, _ = use(stand)
    put(configs / "CLAUDE.md", "Remember the sea.")
    async with stand.session() as session:
        run = await follow(session, turn(script({"text": "one"})))
    put(configs / "CLAUDE.md", "Remember the hills.")
    async with stand.session(resume=run.handle) as session:
        again = turn(script({"text": "two"}), id="turn-2", resumption=Resumption.NEW)
        assert (await follow(session, again)).finished.answer == "two"
    assert "Remember the hills." in stand.told()


async def test_they_count_also_where_no_settings_file_does(stand: Stand) -> None:
    configs, shared = use(stand)
    stand.use(ClaudeSettings(platform_dir=str(configs), plugins_dir=str(shared), setting_sources=()))
    put(configs / "CLAUDE.md", "Remember the sea.")
    skill(shared / "good", "alpha")
    async with stand.session() as session:
        await follow(session, turn(script(load("good:alpha"), {"text": "done"})))
    assert "Remember the sea." in stand.told()
    assert "Do the alpha." in stand.told()


async def test_a_broken_plugin_is_named_once_and_the_others_work(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    _, shared = use(stand)
    put(shared / "broken" / ".claude-plugin" / "plugin.json", "{")
    put(shared / "half" / "hooks" / "hooks.json", "{")
    skill(shared / "good", "alpha")
    with caplog.at_level(logging.WARNING, "workspace_adapter"):
        async with stand.session() as session:
            await follow(session, turn(script(load("good:alpha"), {"text": "done"})))
            await follow(session, turn(script({"text": "more"}), id="turn-2"))
        assert "Do the alpha." in stand.told()
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 2
    assert all(line.startswith("left out of what the platform has for the agent: ") for line in named)
    assert "broken" in named[0]


async def test_plugins_that_keep_claude_code_from_starting_are_done_without(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    _, shared = use(stand)
    hook(shared / "deadly", "SessionStart", f"echo started >> {stand.root}/starts; kill -9 $PPID")
    for name in ("ctx-1", "ctx-2"):
        async with stand.session(name) as session:
            run = await follow(session, turn(script({"text": "done"})))
        assert run.finished.answer == "done"
    assert (stand.root / "starts").read_text().split() == ["started", "started"], "and not again"
    said = [record for record in caplog.records if record.name.startswith("workspace_adapter")]
    (error,) = (record.getMessage() for record in said if record.levelno == logging.ERROR)
    assert f"only without them it works: {shared}/deadly: " in error
