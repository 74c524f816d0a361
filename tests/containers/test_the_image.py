"""What is in the images, and what is not."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from workspace_adapter import __version__
from workspace_adapter.testing.workspace import answer_of

from .conftest import Images, base
from .container import container
from .engine import attempt, docker

pytestmark = pytest.mark.docker


def run(image: str, command: str, *options: str) -> str:
    return docker("run", "--rm", *options, image, "bash", "-c", command)


def test_it_is_configured_as_the_page_says(images: Images) -> None:
    (inspected,) = json.loads(docker("image", "inspect", images.workspace))
    config = inspected["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/workspace": {}}
    assert config["Entrypoint"] == ["tini", "-s", "--"]
    assert config["ExposedPorts"] == {"8000/tcp": {}}
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def told_of(image: str) -> list[str]:
    """Everything the image tells of itself to whoever has it: its layers' commands, and its environment."""
    (inspected,) = json.loads(docker("image", "inspect", image))
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    return [*history.splitlines(), *(inspected["Config"]["Env"] or [])]


def test_no_layer_of_ours_names_a_host_or_holds_a_secret(images: Images) -> None:
    ours = [line for line in told_of(images.workspace) if line not in told_of(base())]
    assert any("tini" in line for line in ours)
    assert [line for line in ours if re.search(r"\w://(?!127\.0\.0\.1)|index", line, re.I)] == []
    assert [line for line in ours if re.search(r"(token|secret|password|key)\w*=", line, re.I)] == []
    assert run(images.workspace, "find / -xdev -name pip.conf 2>/dev/null; true") == ""
    assert run(images.workspace, "find /opt/venv -name direct_url.json") == ""


def test_the_wheel_is_in_it_and_neither_tree_nor_tools_to_build(images: Images) -> None:
    (version,) = re.findall(r"python:(.*)-slim", base())
    said = run(
        images.workspace,
        "workspace-adapter --version; id --user; command -v cc gcc make hatchling;"
        " ls -A /build /tools ~/.cache 2>/dev/null;"
        " python -c 'import workspace_adapter; print(workspace_adapter.__file__)'",
    )
    assert said.splitlines() == [
        f"workspace-adapter {__version__}",
        "10001",
        f"/opt/venv/lib/python{version}/site-packages/workspace_adapter/__init__.py",
    ]


def test_nothing_is_compiled_at_the_start(images: Images) -> None:
    said = run(images.workspace, "python -v -c 'import workspace_adapter.sidecar.serve' 2>&1")
    assert re.search("^# code object from '/opt/venv/.*pyc'$", said, re.M)
    assert re.findall("^# code object from (/opt/venv/.*)$", said, re.M) == []


def test_with_nothing_set_it_says_what_it_needs(images: Images) -> None:
    done = attempt("run", "--rm", images.workspace)
    assert done.returncode == 2
    assert done.stderr.strip() == "WORKSPACE_ID is required: Which workspace this container is."


@pytest.mark.parametrize("user", ["0", "1234"])
async def test_any_user_may_run_it_on_a_new_volume(images: Images, user: str) -> None:
    async with container(images.workspace, "echo", "--user", user) as ws:
        assert answer_of((await ws.send("hello")).json()) == "hello"
        assert await ws.sh("touch ~/x /configs/x && id --user") == user


async def test_its_health_is_that_of_the_sidecar(images: Images) -> None:
    often = ("--health-interval", "0.2s", "--health-timeout", "1s", "--health-retries", "1")
    async with container(images.workspace, "echo", *often, "--health-start-period", "0s") as ws:
        await ws.until(lambda: ws.inspect(".State.Health.Status") == "healthy", "a healthy container")
        await ws.sh("pkill -STOP -f ^/opt/venv/bin/python")
        await ws.until(lambda: ws.inspect(".State.Health.Status") == "unhealthy", "an unhealthy container")
        await ws.sh("pkill -CONT -f ^/opt/venv/bin/python")
        await ws.until(lambda: ws.inspect(".State.Health.Status") == "healthy", "a healthy container")


async def test_the_example_for_the_platform_reads_the_token_it_is_given_and_stops_as_ours_does(
    images: Images,
) -> None:
    async with container(images.platform, "echo", start=False) as ws:
        # As that platform does, before the container is there: a directory of root's, a file of user 1000's.
        given = "echo token >.auth_token; chmod 600 .auth_token; chown 1000:1000 .auth_token; chown 0:0 ."
        await ws.docker(
            *("run", "--rm", "--user", "0", "--volume", f"{ws.configs}:/given", "--workdir", "/given"),
            *(images.workspace, "bash", "-c", f"{given}; chmod 755 ."),
        )
        await ws.start()
        async with httpx.AsyncClient(base_url=ws.url) as client:
            reply = await client.get("/transcript", headers={"Authorization": "Bearer token"})
        assert reply.status_code == 200, reply.text
        made = "/configs /workspace/.workspace_adapter /workspace/.workspace_adapter/journal.db"
        assert set((await ws.sh(f"stat --format %u {made}")).split()) == {"1000"}
        assert await ws.sh("touch /configs/x ~/x; id --user --name", "--user", "agent") == "agent"
        assert await ws.stop() < 3
        assert ws.inspect(".State.ExitCode") == "0"


async def test_the_example_is_an_agent_that_outlives_its_container(images: Images) -> None:
    async with container(images.notes, start=False) as ws:
        del ws.settings["WORKSPACE_ADAPTER"]
        await ws.start()
        first = ws.envelope("milk")
        assert answer_of((await ws.post(first)).json()) == "that makes 1"
        await ws.remove()
        await ws.start()
        assert answer_of((await ws.post(first)).json()) == "that makes 1"
        assert answer_of((await ws.send("bread")).json()) == "that makes 2"
        assert [line.split()[1] for line in (await ws.sh("cat notes.txt")).splitlines()] == ["milk", "bread"]
