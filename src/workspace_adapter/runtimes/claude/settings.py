"""What an operator can tell the Claude runtime."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings import integer, one_of, path, setting, words


def _dollars(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number of US dollars") from None
    if not 0 < number < float("inf"):
        raise ValueError("must be more than 0 and finite")
    return number


def _model(value: str) -> str:
    """Take a model as Claude Code knows it; the platform may put its provider before it."""
    return value.removeprefix("anthropic:").removeprefix("anthropic/")


def _sources(value: str) -> tuple[str, ...]:
    if value == "none":
        return ()
    sources = words(value)
    for source in sources:
        one_of("user", "project", "local")(source)
    return sources


@dataclass(frozen=True, kw_only=True)
class ClaudeSettings:
    """Everything the Claude runtime can be told. Credentials are Claude's own variables."""

    model: str | None = setting(
        "WORKSPACE_CLAUDE_MODEL",
        _model,
        "The model.",
        default=None,
        aliases=("MOLECULE_MODEL", "MODEL", "MODEL_PROVIDER"),
        keys=("runtime_config.model", "model"),
        shown="Claude Code's own",
    )
    system_prompt_file: str | None = setting(
        "WORKSPACE_CLAUDE_SYSTEM_PROMPT_FILE",
        path,
        "A file whose text replaces Claude Code's system prompt.",
        default=None,
    )
    allowed_tools: tuple[str, ...] = setting(
        "WORKSPACE_CLAUDE_ALLOWED_TOOLS",
        words,
        "Tools or patterns such as `Bash(git *)` that need no permission where the mode asks for one.",
        default=(),
    )
    disallowed_tools: tuple[str, ...] = setting(
        "WORKSPACE_CLAUDE_DISALLOWED_TOOLS",
        words,
        "Tools or patterns that are refused. Tools that ask a person, or act after the turn, always are.",
        default=(),
    )
    permission_mode: str = setting(
        "WORKSPACE_CLAUDE_PERMISSION_MODE",
        one_of("default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"),
        "What a tool call needs; nobody is there to be asked, so what would ask is refused.",
        default="bypassPermissions",
    )
    mcp_config: str | None = setting(
        "WORKSPACE_CLAUDE_MCP_CONFIG",
        path,
        "A JSON file of MCP servers, beside those of the setting sources.",
        default=None,
    )
    setting_sources: tuple[str, ...] | None = setting(
        "WORKSPACE_CLAUDE_SETTING_SOURCES",
        _sources,
        "Which settings files count: `user`, `project`, `local`; or `none`.",
        default=None,
        shown="all",
    )
    max_turns: int | None = setting(
        "WORKSPACE_CLAUDE_MAX_TURNS",
        integer(1),
        "Model calls one message may take.",
        default=None,
    )
    max_budget_usd: float | None = setting(
        "WORKSPACE_CLAUDE_MAX_BUDGET_USD",
        _dollars,
        "What one open session may cost before its turns are stopped.",
        default=None,
        unit="US dollars",
    )
    platform_dir: str = setting(
        "WORKSPACE_CLAUDE_PLATFORM_DIR",
        path,
        "Where the platform's `plugins`, `skills`, prompt files and `CLAUDE.md` for the agent lie.",
        default="/configs",
        aliases=("CONFIGS_DIR",),
    )
    plugins_dir: str = setting(
        "WORKSPACE_CLAUDE_PLUGINS_DIR",
        path,
        "Where plugins lie that workspaces share; one of the same name in `plugins` goes before.",
        default="/plugins",
        aliases=("PLUGINS_DIR",),
    )
    prompt_files: tuple[str, ...] = setting(
        "WORKSPACE_CLAUDE_PROMPT_FILES",
        words,
        "Files of the platform's directory that the agent is told at all times, beside its `CLAUDE.md`.",
        default=("system-prompt.md",),
        keys=("prompt_files",),
    )
    cli: str | None = setting(
        "WORKSPACE_CLAUDE_CLI",
        path,
        "The Claude Code program.",
        default=None,
        shown="the SDK's own",
    )
    config_dir: str | None = setting(
        "CLAUDE_CONFIG_DIR",
        path,
        "Where Claude Code keeps conversations and settings; must outlive the container.",
        default=None,
        shown="in the state directory, with the rest of `~/.claude` linked in",
    )
