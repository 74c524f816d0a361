"""An image that the existing platform starts as it starts its own: its variables, its file, its folders."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from workspace_adapter.testing import FakePlatform
from workspace_adapter.testing.workspace import Workspace as BareWorkspace

from .workspace import Workspace, answer_of, workspace

ADAPTER = """
import json, os
import workspace_adapter as wa

class Session(wa.RuntimeSession):
    async def run_turn(self, turn):
        told = {"tools": self.context.children.environ(), "process": dict(os.environ)}
        yield wa.TurnFinished(answer=json.dumps(told))

class Adapter(wa.RuntimeAdapter):
    name = "theirs"
    capabilities = wa.Capabilities(gate=None)
    Session = Session
    async def check(self):
        raise wa.RuntimeUnusable("the agent's program is missing\\nsee above")
"""

FILE = """\
name: Ada
description: >-
  Writes code
version: 2.10
tier: 2
runtime: langgraph
model: anthropic:claude-opus-4-7
skills: [review]
prompt_files: [system-prompt.md]
a2a:
  port: {port}
  streaming: true
  push_notifications: true
  delivery_mode: push
observability:
  heartbeat_interval_seconds: 30
  log_level: loud
  event_log: {{backend: memory, ttl_seconds: 3600}}
runtime_config: {{timeout: 0, models: [{{id: opus, required_env: [ANTHROPIC_API_KEY]}}]}}
initial_prompt:
"""

SECRETS = {
    "MOLECULE_CONFIG_BOOT_TOKEN": "boot-once",
    "ADMIN_TOKEN": "of-the-platform",
}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[FakePlatform]:
    configs = tmp_path / "configs"
    configs.mkdir()
    with FakePlatform("0b8e5f4e-7c1d-4a57-9f0e-2f9a6f6c1d11", configs_dir=configs) as platform:
        yield platform


@pytest.fixture
async def image(tmp_path: Path, platform: FakePlatform) -> AsyncIterator[Workspace]:
    """With what the platform's provisioner puts into a container, and what the image itself says."""
    async with workspace(tmp_path, start=False) as ws:
        for folder in ("app", "plugins"):
            (tmp_path / folder).mkdir()
        (tmp_path / "app" / "adapter.py").write_text(ADAPTER)
        (tmp_path / "configs" / "config.yaml").write_text(FILE.format(port=ws.port))
        of_the_image = {
            "PATH": ws.environ["PATH"],
            "HOME": ws.environ["HOME"],
            "ADAPTER_MODULE": "adapter",
            "WORKSPACE_STATE_DIR": ws.environ["WORKSPACE_STATE_DIR"],
            "WORKSPACE_WORKDIR": ws.environ["WORKSPACE_WORKDIR"],
            "CONFIGS_DIR": str(tmp_path / "configs"),
        }
        of_the_platform = {
            "WORKSPACE_ID": platform.workspace_id,
            "WORKSPACE_CONFIG_PATH": str(tmp_path / "configs"),
            "PLATFORM_URL": platform.url,
            "MOLECULE_URL": platform.url,
            "TIER": "2",
            "PLUGINS_DIR": str(tmp_path / "plugins"),
            "PYTHONPATH": str(tmp_path / "app"),
            "MOLECULE_WORKSPACE_URL": f"http://localhost:{ws.port}",
            "MODEL": "opus",
            "MOLECULE_MODEL": "opus",
            "MOLECULE_RESOLVED_PROVIDER": "anthropic",
            "LLM_PROVIDER": "anthropic",
            "MOLECULE_AGENT_ROLE": "",
            "PARENT_ID": "",
            "MOLECULE_DECLARED_PLUGINS": "",
            "MOLECULE_LLM_BASE_URL": f"{platform.url}/llm/openai/v1",
            "MOLECULE_LLM_USAGE_TOKEN": "opens-the-model",
            "ANTHROPIC_BASE_URL": f"{platform.url}/llm/anthropic",
            "ANTHROPIC_AUTH_TOKEN": "opens-the-model",
            "LANGFUSE_HOST": "",
            **SECRETS,
        }
        mark = {name: ws.environ[name] for name in ("WORKSPACE_TEST_RUN", "CI_MARK") if name in ws.environ}
        ws.environ = of_the_image | of_the_platform | mark
        yield ws


async def test_it_starts_registers_and_answers_without_a_variable_of_ours(
    image: Workspace, platform: FakePlatform
) -> None:
    await image.start()
    await image.until(lambda: platform.registrations, "the registration")
    (registration,) = platform.registrations
    assert registration["url"] == f"http://localhost:{image.port}"
    assert registration["delivery_mode"] == "push"
    card = registration["agent_card"]
    assert (card["name"], card["description"], card["version"]) == ("Ada", "Writes code", "2.10")
    assert [skill["id"] for skill in card["skills"]] == ["chat", "review"]
    assert card["capabilities"] == {"streaming": True, "pushNotifications": False}
    await image.until(
        lambda: any("configuration_status" in beat["agent_card"] for beat in platform.heartbeats),
        "a heartbeat that says how the runtime is",
    )
    async with httpx.AsyncClient(base_url=image.url) as http:
        shown = (await http.get("/.well-known/agent-card.json")).json()
    assert shown["configuration_status"] == "not_configured"
    assert shown["configuration_error"] == "the agent's program is missing"
    told = json.loads(answer_of((await image.send("hi")).json()))
    for environ in (told["tools"], told["process"]):
        assert not SECRETS.keys() & environ.keys()
        assert environ["ANTHROPIC_AUTH_TOKEN"] == environ["MOLECULE_LLM_USAGE_TOKEN"] == "opens-the-model"
        assert environ["MODEL"] == "opus"
    platform.assert_no_violations()
    (left_out,) = (line for line in image.logged().splitlines() if "left out of the configuration" in line)
    assert "config.yaml: observability.log_level='loud'" in left_out


async def test_where_bearers_are_required_the_platform_is_heard_with_each_secret_it_hands_out(
    image: Workspace, platform: FakePlatform
) -> None:
    image.environ |= {"MOLECULE_A2A_REQUIRE_AUTH": "1", "WORKSPACE_HEARTBEAT_INTERVAL": "0.2"}
    configs = image.root / "configs"
    inbound = configs / ".platform_inbound_secret"
    await image.start()

    def kept() -> bool:
        return inbound.exists() and inbound.read_text().strip() == platform.tokens.inbound_secret

    async def status(path: str, bearer: str | None) -> int:
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        async with httpx.AsyncClient(base_url=image.url) as http:
            return (await http.get(path, headers=headers)).status_code

    before = "none yet"
    for _ in range(2):
        await image.until(kept, "the secret")
        secret = platform.tokens.inbound_secret
        token = (configs / ".auth_token").read_text().strip()
        for bearer, heard in ((secret, 200), (before, 401), (token, 401), (None, 401)):
            assert await status("/internal/a2a-auth-status", bearer) == heard
        for bearer, heard in ((token, 200), (secret, 401), (None, 401)):
            assert await status("/transcript?since=0&limit=10", bearer) == heard
        unsigned = await image.send("hi")
        assert (unsigned.status_code, list(unsigned.json())) == (401, ["error"])
        signed = await image.post(image.envelope("hi"), Authorization=f"Bearer {secret}")
        assert signed.status_code == 200
        before = secret
        platform.provision()


async def test_it_says_where_each_setting_came_from(image: Workspace) -> None:
    said = image.command("config", "--json")
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    file = f"{image.root}/configs/config.yaml"
    assert told["WORKSPACE_PORT"] == {"value": str(image.port), "from": f"{file}: a2a.port"}
    assert told["WORKSPACE_ADAPTER"] == {"value": "adapter", "from": "ADAPTER_MODULE"}
    assert told["WORKSPACE_HEARTBEAT_INTERVAL"]["value"] == "10"
    assert told["WORKSPACE_HOST"] == {"value": "0.0.0.0", "from": "default"}
    assert told["WORKSPACE_LOG_LEVEL"] == {"value": "info", "from": "default"}
    assert "observability.log_level='loud'" in said.stderr
    assert all(word in image.command("config").stdout for word in (f"{file}: name", "ADAPTER_MODULE"))


@pytest.mark.parametrize("text", ["name: Ada: the first\n", "[" * 5000, "a2a: 8000\n", "- x\n"])
async def test_no_file_of_the_platforms_keeps_a_workspace_from_starting(image: Workspace, text: str) -> None:
    (image.root / "configs" / "config.yaml").write_text(text)
    said = image.command("config")
    assert said.returncode == 0
    assert said.stderr.startswith("left out: ")
    assert said.stderr.count("\n") == 1


async def test_what_is_tried_in_a_container_of_the_platforms_is_no_workspace_of_its(
    image: Workspace, platform: FakePlatform
) -> None:
    tried = BareWorkspace(image.root / "tried", "echo", environ=image.environ, settings={})
    try:
        await tried.start()
        assert answer_of((await tried.post(tried.envelope("hi"))).json()) == "hi"
    finally:
        tried.kill_everything()
    assert platform.received == []
