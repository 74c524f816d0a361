"""The real Claude CLI in the image, restarted in the middle of its work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from workspace_adapter.testing.workspace import answer_of

from ..walks.workspace import script
from .conftest import Images
from .container import Container
from .engine import attempt, docker
from .test_limits import HARDENED
from .test_restarts import WAYS, Way, asked

pytestmark = pytest.mark.docker

PORT = "9000"
WORK = script(
    {
        "tool": "Bash",
        "input": {"command": "echo first >> effects; touch begun; sleep 1.5; echo late >> effects"},
    },
    {"tool": "Bash", "input": {"command": "echo second >> effects"}},
    {"text": "both"},
)


@asynccontextmanager
async def claude(image: str, *options: str) -> AsyncIterator[Container]:
    """Hold a workspace with the real CLI, on a network with the model it talks to and nobody else."""
    model = Container(image, "", (), {})
    ws = Container(
        image,
        "claude",
        ("--network", model.name, *options),
        {"ANTHROPIC_BASE_URL": f"http://model:{PORT}", "ANTHROPIC_API_KEY": "scripted"},
    )
    serve = ("python", "-m", "workspace_adapter.testing.scripted_model", "--host", "0.0.0.0", "--port", PORT)
    try:
        await model.docker("network", "create", model.name)
        reached = ("--network", model.name, "--network-alias", "model")
        await model.docker("run", "--detach", "--name", model.name, *reached, image, *serve)
        await ws.start()
        yield ws
    finally:
        ws.dispose()
        model.dispose()
        attempt("network", "rm", model.name)


@pytest.mark.parametrize("way", WAYS)
async def test_a_claude_that_is_restarted_in_a_tool_goes_on_with_its_conversation(
    images: Images, way: Way
) -> None:
    async with claude(images.workspace, *HARDENED) as ws:
        async with asked(ws, WORK) as answers:
            await ws.until_sh("[ -e begun ]")
            await way(ws)
            await ws.until_ready()
        assert answers[0].endswith("both"), answers
        assert (await ws.effects()).count("second") == 1
        assert answer_of((await ws.send(script({"text": "still here"}))).json()) == "still here"
        transcripts = "find .workspace_adapter/claude/config/projects -name '*.jsonl' | wc -l"
        assert await ws.sh(transcripts) == "2"


def test_the_cli_needs_nothing_that_is_not_in_the_image(images: Images) -> None:
    said = docker("run", "--rm", images.workspace, "bash", "-c", "command -v node git ps bash; true")
    assert said.split() == ["/usr/bin/git", "/usr/bin/ps", "/usr/bin/bash"]
