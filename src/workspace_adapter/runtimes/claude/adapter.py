"""The Claude runtime: how its sessions are opened, checked and recovered."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import anyio
import anyio.to_thread

from ...adapter import (
    AtClosedGate,
    Capabilities,
    Children,
    ForgottenSession,
    InterruptedTurn,
    RuntimeAdapter,
    SessionContext,
)
from ...errors import RuntimeUnusable, SessionLost
from ...resume import Evidence
from .. import process
from . import extras, failures, home
from .calls import Calls
from .names import is_uuid, prompt_uuid, session_uuid
from .settings import ClaudeSettings
from .transcript import evidence

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeAgentOptions
    from claude_agent_sdk.types import PermissionMode, SettingSource

    from .session import ClaudeSession

logger = logging.getLogger(__name__)

_CONNECT_LIMIT = 20.0
"""Seconds a CLI gets to answer; a warm one takes 0.3."""

_PARALLEL_CONNECTS = 2
_STDERR_LINES = 20
_LONGEST_MESSAGE = 64 << 20
"""Bytes; at the SDK's default of 1 MiB a large tool result ends the session."""

_KEPT_DAYS = 3650
"""Claude Code sweeps conversations older than 30 days; ours may be resumed at any time."""

_INSTRUCTIONS = "instructions"
"""Where in the adapter's directory the platform's instructions are put for Claude Code."""

_ASK_A_PERSON = ("AskUserQuestion", "EnterPlanMode", "ExitPlanMode")
_OUTLIVE_THE_TURN = ("CronCreate", "CronDelete", "CronList", "Monitor", "ScheduleWakeup", "Workflow")

_FIXED_ENVIRONMENT = {
    # The prompt is on disk before the model is asked.
    "CLAUDE_CODE_EAGER_FLUSH": "1",
    # One result per turn; nothing goes on after it.
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    # Set by the SDK where it is missing.
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
}
_DEFAULT_ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_RETRIES": "3",
}
_SET_BY_THE_SDK = ("CLAUDE_AGENT_SDK_VERSION", "PWD", "TRACEPARENT", "TRACESTATE")


class ClaudeAdapter(RuntimeAdapter):
    """Claude Code, one warm process per open session."""

    name: ClassVar[str] = "claude"
    capabilities: ClassVar[Capabilities] = Capabilities(
        gate=AtClosedGate.END,
        covers="every tool call, built-in and MCP, also of subagents",
        resumes=True,
        cancels=True,
        images=True,
    )
    Settings: ClassVar[type] = ClaudeSettings
    credentials: ClassVar[tuple[str, ...]] = (
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDE_CODE_USE_FOUNDRY",
    )
    session_bytes: ClassVar[int] = 120 << 20

    settings: ClaudeSettings

    def __init__(self, settings: ClaudeSettings | None = None) -> None:
        super().__init__(settings or ClaudeSettings())
        self._connecting = anyio.Semaphore(_PARALLEL_CONNECTS)
        self._writing = anyio.Lock()
        self._harmful: set[Path] = set()
        """Plugins with which Claude Code did not start, and without which it did."""
        self._said: set[str] = set()
        """What of the platform's extras was said to be left out."""

    async def check(self) -> str:
        """Run the CLI once, for its version."""
        await _load_sdk()
        cli = self._cli(os.defpath)
        try:
            with anyio.fail_after(_CONNECT_LIMIT):
                done = await anyio.run_process([cli, "--version"], env={"PATH": os.defpath}, check=False)
        except (OSError, TimeoutError) as error:
            raise failures.of_start(f"{cli}: {error or 'no answer'}") from error
        if done.returncode != 0:
            raise failures.of_start(f"{cli}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode(errors="replace").strip()

    @asynccontextmanager
    async def running(self, children: Children, state_dir: Path) -> AsyncGenerator[None, None]:
        """Have the SDK at hand before the first session: a boot has larger imports to come."""
        with suppress(RuntimeUnusable):  # whoever needs it is told
            await _load_sdk()
        yield

    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[ClaudeSession, None]:
        """Start a CLI on the conversation's transcript, or on a new one."""
        await _load_sdk()
        session = await self._open(context)
        stack = AsyncExitStack()
        try:
            await context.children.started(session.pid, "claude")
            # Left without the body's exception, which it would wrap in a group.
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(session.read)
            try:
                yield session
            finally:
                tasks.cancel_scope.cancel()
                await stack.aclose()
        finally:
            await session.close()

    async def recover(self, turn: InterruptedTurn) -> Evidence:
        """Read the transcript. That there is a handle says that there was one."""
        directory = home.config_dir(self.settings.config_dir, turn.state_dir)
        prompts = [prompt_uuid(turn.id, attempt) for attempt in range(1, turn.attempts + 1)]
        return await anyio.to_thread.run_sync(_recover, directory, turn, prompts)

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Remove what Claude Code keeps under the conversation's id, known or derived from ours.

        What the agent wrote elsewhere stays: files in the workdir, and its own memory,
        which all conversations share.
        """
        directory = home.config_dir(self.settings.config_dir, session.state_dir)
        erased: list[str] = []
        ids = {session_uuid(session.session_id)}
        if session.handle is not None and is_uuid(session.handle):  # else it is another runtime's
            ids.add(session.handle)
        for id in ids:
            try:
                erased += await anyio.to_thread.run_sync(home.erase, directory, id, home.scratch())
            except OSError as error:
                raise RuntimeUnusable(
                    f"{error.filename} cannot be removed ({error.strerror}): remove it, then forget again"
                ) from error
        return erased

    async def _open(self, context: SessionContext) -> ClaudeSession:
        environ = context.children.environ()
        directory = await anyio.to_thread.run_sync(
            home.prepare, self.settings.config_dir, context.state_dir, environ
        )
        id = context.resume or session_uuid(context.session_id)
        path = await anyio.to_thread.run_sync(home.transcript, directory, id)
        if path is None:
            if context.resume is not None:
                raise SessionLost(f"there is no transcript {id}.jsonl in {directory / 'projects'}")
            return await self._connect(context, directory, session_id=id)
        try:
            return await self._connect(context, directory, resume=id)
        except SessionLost:
            if context.resume is not None:
                raise
        # Cut off before its first prompt was whole: nothing in it to go on from.
        logger.warning("session %s: transcript %s holds no conversation", context.session_id, path)
        home.set_aside(path)
        return await self._connect(context, directory, session_id=id)

    async def _connect(
        self,
        context: SessionContext,
        directory: Path,
        *,
        session_id: str | None = None,
        resume: str | None = None,
    ) -> ClaudeSession:
        """Start the CLI on a new conversation, or on one it knows; if it fails, once more, then plain.

        Raises:
            SessionLost: it does not know the conversation ``resume``.
            RuntimeUnusable: it does not start.
        """
        from claude_agent_sdk import ClaudeSDKClient, ClaudeSDKError

        from .session import ClaudeSession

        async def once(extra: extras.Extras) -> ClaudeSession:
            stderr: deque[str] = deque(maxlen=_STDERR_LINES)
            calls = Calls(context.gate)
            options = self._options(context, directory, calls, extra.plugins, instructions)
            options.stderr = stderr.append
            options.session_id, options.resume = session_id, resume
            client = ClaudeSDKClient(options)
            try:
                async with self._connecting:
                    with anyio.fail_after(_CONNECT_LIMIT):
                        await client.connect()
                info = await client.get_server_info() or {}
            except TimeoutError as error:
                raise failures.of_start(f"no answer within {_CONNECT_LIMIT:g} s") from error
            except ClaudeSDKError as error:
                if resume is not None and "No conversation found" in f"{error} {stderr}":
                    raise SessionLost(f"Claude Code does not know the conversation {resume}") from error
                raise failures.of_start(str(error), stderr) from error
            return ClaudeSession(
                client, info["pid"], calls, stderr, bound=context.resume, unusable=self._say_once
            )

        extra = await self._extras()
        instructions = await self._instructions(extra, context.state_dir)
        try:
            return await once(extra)
        except RuntimeUnusable as error:
            logger.warning("%s; trying once more", error)
        try:
            return await once(extra)
        except RuntimeUnusable as error:
            if not extra.plugins:
                raise
            why = error
        session = await once(replace(extra, plugins=()))
        self._harmful.update(extra.plugins)
        shown = ", ".join(map(str, extra.plugins))
        logger.error("left out until the next start, since only without them it works: %s: %s", shown, why)
        return session

    async def _extras(self) -> extras.Extras:
        """Look anew at what the platform has laid out: a plugin may have been installed since."""
        settings = self.settings
        found = await anyio.to_thread.run_sync(
            extras.find, Path(settings.platform_dir), Path(settings.plugins_dir), settings.prompt_files
        )
        for why in found.left_out:
            self._say_once(why)
        return replace(found, plugins=tuple(path for path in found.plugins if path not in self._harmful))

    async def _instructions(self, extra: extras.Extras, state_dir: Path) -> Path | None:
        """Return the directory with the platform's instructions, if there are any."""
        directory = state_dir / _INSTRUCTIONS
        try:
            async with self._writing:
                return await anyio.to_thread.run_sync(extras.write, extra.instructions, directory)
        except OSError as error:
            self._say_once(f"the instructions cannot be put into {directory}: {error.strerror}")
            return None

    def _say_once(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            logger.warning("left out of what the platform has for the agent: %s", why)

    def _options(
        self,
        context: SessionContext,
        directory: Path,
        calls: Calls,
        plugins: Sequence[Path],
        instructions: Path | None,
    ) -> ClaudeAgentOptions:
        """Everything the CLI is told at its start."""
        from claude_agent_sdk import ClaudeAgentOptions

        settings, environ = self.settings, context.children.environ()
        environ = _DEFAULT_ENVIRONMENT | environ | _FIXED_ENVIRONMENT | {"CLAUDE_CONFIG_DIR": str(directory)}
        if instructions is not None:
            environ["CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD"] = "1"
        environ.pop("CLAUDECODE", None)  # we are no session of Claude Code's, whoever started us
        if os.geteuid() == 0:
            environ["IS_SANDBOX"] = "1"  # else it refuses to bypass permissions; no other word counts
        cli = self._cli(environ.get("PATH", os.defpath))
        return ClaudeAgentOptions(
            cli_path=process.launcher(context.state_dir, cli),
            env=process.leashed(environ, also=_SET_BY_THE_SDK),
            cwd=context.workdir,
            add_dirs=[] if instructions is None else [instructions],
            plugins=[{"type": "local", "path": str(path)} for path in plugins],
            hooks=calls.hooks(),
            verbatim_prompts=True,
            max_buffer_size=_LONGEST_MESSAGE,
            model=settings.model,
            system_prompt=(
                {"type": "file", "path": settings.system_prompt_file}
                if settings.system_prompt_file
                else {"type": "preset", "preset": "claude_code"}
            ),
            allowed_tools=list(settings.allowed_tools),
            disallowed_tools=[*_ASK_A_PERSON, *_OUTLIVE_THE_TURN, *settings.disallowed_tools],
            permission_mode=cast("PermissionMode", settings.permission_mode),
            mcp_servers=settings.mcp_config or {},
            setting_sources=(
                None
                if settings.setting_sources is None
                else cast("list[SettingSource]", list(settings.setting_sources))
            ),
            max_turns=settings.max_turns,
            max_budget_usd=settings.max_budget_usd,
            settings=json.dumps({"cleanupPeriodDays": _KEPT_DAYS}),
        )

    def _cli(self, search: str) -> Path:
        """Find the program: as set, else the SDK's own, else on the search path.

        Raises:
            RuntimeUnusable: there is none.
        """
        import claude_agent_sdk

        bundled = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
        found = self.settings.cli or (bundled if bundled.is_file() else shutil.which("claude", path=search))
        if found is None or not Path(found).is_file():
            raise failures.not_installed(f"there is no program {found or 'claude'}")
        return Path(found)


async def _load_sdk() -> None:
    """Import the SDK, which takes a second, beside the event loop.

    Raises:
        RuntimeUnusable: it is not installed.
    """
    try:
        await anyio.to_thread.run_sync(importlib.import_module, "claude_agent_sdk", abandon_on_cancel=True)
    except ImportError as error:
        raise failures.not_installed(str(error)) from error


def _recover(directory: Path, turn: InterruptedTurn, prompts: list[str]) -> Evidence:
    path = home.transcript(directory, turn.handle or session_uuid(turn.session_id))
    if path is None:
        return Evidence.unseen() if turn.handle is None else Evidence.session_lost()
    with path.open("rb") as lines:
        return evidence(lines, prompts)
