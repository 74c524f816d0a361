"""What a spec of a container may say, and what is never the provisioner's to touch."""

from __future__ import annotations

import os
import shutil
import uuid

import pytest

from tests.conftest import require
from tests.containers.engine import answers, attempt, docker
from workspace_adapter.errors import ProvisionerError
from workspace_adapter.shim.provisioners.docker import DockerProvisioner, _archive

from .conftest import Make

NOWHERE = DockerProvisioner("unix:///nowhere/docker.sock")


def test_a_spec_needs_an_image_and_knows_its_members() -> None:
    spec = {
        "image": "workspace",
        "pull": "always",
        "network": "n",
        "user": "1:1",
        "host_config": {"Memory": 1},
    }
    assert NOWHERE.problems(spec) == ()
    wrong = {"pull": "sometimes", "network": 1, "host_config": [], "ports": []}
    assert len(NOWHERE.problems(wrong)) == 5


async def test_an_engine_that_is_not_there_names_the_setting(workspace: Make) -> None:
    one = workspace(spec={"image": "workspace"})
    with pytest.raises(ProvisionerError, match="SHIM_DOCKER_HOST=unix:///nowhere/"):
        await NOWHERE.start(one, {}, {})
    assert await NOWHERE.running(one) is None, "who cannot be asked has not said no"


def test_a_user_known_by_name_only_is_asked_for() -> None:
    assert _archive({"a": "b"}, "10001:10001")
    assert _archive({"a": "b"}, "")
    with pytest.raises(ProvisionerError, match=r"spec\.user"):
        _archive({"a": "b"}, "agent")


@pytest.mark.docker
async def test_a_container_of_somebody_elses_is_left_alone(workspace: Make) -> None:
    require(shutil.which("docker") is not None and answers(), "no container engine answers `docker info`")
    image = docker("image", "ls", "--quiet").split()
    require(bool(image), "the engine has no image")
    one = workspace(f"test-{uuid.uuid4().hex[:8]}", "docker", {"image": image[0]})
    docker("create", "--name", f"ws-{one.id}", image[0])
    try:
        ours = DockerProvisioner(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
        for verb in (ours.start(one, {}, {}), ours.stop(one, 1.0), ours.remove(one)):
            with pytest.raises(ProvisionerError, match="so it is not ours"):
                await verb
        assert docker("inspect", "--format", "{{.State.Status}}", f"ws-{one.id}") == "created"
    finally:
        attempt("rm", "--force", "--volumes", f"ws-{one.id}")
