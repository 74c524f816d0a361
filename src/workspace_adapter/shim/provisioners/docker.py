"""Workspaces as containers, over the engine's API."""

from __future__ import annotations

import io
import math
import re
import socket
import tarfile
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import anyio

from ...errors import ProvisionerError
from ..address import container_name
from ..store.contract import Workspace
from .contract import DELETE, common_problems

T = TypeVar("T")

LABEL = "workspace-adapter.workspace"
"""Marks our containers and volumes with the workspace's id; what lacks it is not ours to touch."""

PORT = 8000
"""Where a workspace listens in its container."""

_LIMIT = 60.0
"""Seconds a call of the engine may take; a stop gets the grace besides, a pull ten minutes."""
_PULL = 600.0

_KNOWN = frozenset({"image", "network", "user", "pull", "host_config"})
_WORK, _CONFIGS = "/workspace", "/configs"
"""Where the volumes of a workspace lie in its container."""


class DockerProvisioner:
    """Runs a container for each workspace: a new one for each start, on volumes that stay.

    Args:
        host: where the engine listens, as ``DOCKER_HOST`` says it.
        network: the engine's network that shim and workspaces share, for specs that name none. Without
            one, a workspace's port is published on this machine's loopback.
    """

    certain = True

    def __init__(self, host: str, *, network: str | None = None) -> None:
        self._host = host
        self._network = network

    def problems(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        problems = common_problems(spec, _KNOWN)
        if not isinstance(spec.get("image"), str) or not spec["image"]:
            problems.append("spec.image must name an image")
        for name in ("network", "user"):
            if not isinstance(spec.get(name, ""), str):
                problems.append(f"spec.{name} must be a text")
        if spec.get("pull", "missing") not in ("missing", "always"):
            problems.append("spec.pull must be missing or always")
        if not isinstance(spec.get("host_config", {}), Mapping):
            problems.append("spec.host_config must be an object, as the engine's API has it")
        return tuple(problems)

    async def prepare(self, workspace: Workspace) -> None:
        """Have the image, pulled where it is not there; a container is never stopped for one that is not."""
        image = workspace.spec["image"]
        async with self._engine(workspace, f"have the image {image} for", limit=_PULL) as docker:
            if workspace.spec.get("pull") != "always" and await _known(docker.images.inspect(image)):
                return
            await docker.images.pull(image)

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None:
        async with self._engine(workspace, "start") as docker:
            container = await self._container(docker, workspace)
            if container is not None:
                if container["State"]["Running"]:
                    return
                await container.delete(force=True, v=True)  # named volumes stay
            for volume in _volumes(workspace):
                await docker.volumes.create({"Name": volume, "Labels": {LABEL: workspace.id}})
            container = await docker.containers.create(
                self._config(workspace, environ), name=container_name(workspace.id)
            )
            owner = (await container.show())["Config"]["User"]
            await container.put_archive(_CONFIGS, _archive(secrets, owner))
            await container.start()

    async def stop(self, workspace: Workspace, grace: float) -> None:
        async with self._engine(workspace, "stop", limit=_LIMIT + grace) as docker:
            container = await self._container(docker, workspace)
            if container is not None:
                await container.stop(t=math.ceil(grace))

    async def running(self, workspace: Workspace) -> bool | None:
        try:
            async with self._engine(workspace, "look at", limit=5.0) as docker:
                container = await self._container(docker, workspace)
        except ProvisionerError:
            return None
        # One that the engine is starting again is its affair.
        return container is not None and (container["State"]["Running"] or container["State"]["Restarting"])

    async def remove(self, workspace: Workspace) -> None:
        async with self._engine(workspace, "remove") as docker:
            container = await self._container(docker, workspace)
            if container is not None:
                await container.delete(force=True, v=True)  # named volumes stay
            if workspace.spec.get("files") == DELETE:
                for name in _volumes(workspace):
                    if await _known(docker.volumes.get(name)):
                        await (await docker.volumes.get(name)).delete()

    def log(self, workspace_id: str) -> str:
        return f"`docker logs {container_name(workspace_id)}`"

    def ended(self) -> list[str]:
        return []  # the engine starts again what ends by itself

    async def _container(self, docker: Any, workspace: Workspace) -> Any:
        """Return the container of a workspace; ``None``: there is none.

        Raises:
            ProvisionerError: something else has its name.
        """
        container = await _known(docker.containers.get(container_name(workspace.id)))
        if container is not None and container["Config"]["Labels"].get(LABEL) != workspace.id:
            raise ProvisionerError(
                f"the container {container_name(workspace.id)} has no label {LABEL}={workspace.id}, so it is"
                " not ours: rename it or remove it"
            )
        return container

    def _config(self, workspace: Workspace, environ: Mapping[str, str]) -> dict[str, Any]:
        spec = workspace.spec
        network = spec.get("network") or self._network
        given = {"CONFIGS_DIR": _CONFIGS, "WORKSPACE_PORT": str(PORT)}
        wanted = dict(spec.get("host_config", {}))
        host: dict[str, Any] = {
            "RestartPolicy": {"Name": "unless-stopped"},
            "ExtraHosts": ["host.docker.internal:host-gateway"],
        }
        if network:
            host["NetworkMode"] = network
            given["WORKSPACE_URL"] = f"http://{container_name(workspace.id)}:{PORT}"
        else:
            port = _free_port()
            host["PortBindings"] = {f"{PORT}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
            given["WORKSPACE_URL"] = f"http://127.0.0.1:{port}"
        binds = [f"{volume}:{folder}" for volume, folder in _volumes(workspace).items()]
        host |= wanted | {"Binds": [*binds, *wanted.get("Binds", ())]}
        return {
            "Image": spec["image"],
            "Env": [f"{name}={value}" for name, value in {**environ, **given}.items()],
            "Labels": {LABEL: workspace.id},
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "HostConfig": host,
            **({"User": spec["user"]} if "user" in spec else {}),
        }

    @asynccontextmanager
    async def _engine(
        self, workspace: Workspace, what: str, *, limit: float = _LIMIT
    ) -> AsyncIterator[Any]:  # not all of it has types
        import aiodocker  # most shims start no container

        try:
            with anyio.fail_after(limit):
                async with aiodocker.Docker(url=self._host) as docker:
                    yield docker
        except aiodocker.DockerError as error:
            why = error.message
        except TimeoutError:
            why = f"it took longer than {limit:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = str(error)
        else:
            return
        raise ProvisionerError(
            f"the engine at SHIM_DOCKER_HOST={self._host}, asked to {what} workspace {workspace.id}: {why}"
        )


def _volumes(workspace: Workspace) -> dict[str, str]:
    name = container_name(workspace.id)
    return {f"{name}-work": _WORK, f"{name}-configs": _CONFIGS}


async def _known(question: Awaitable[T]) -> T | None:
    """Return what the engine answers; ``None``: it knows no such thing."""
    import aiodocker

    try:
        return await question
    except aiodocker.DockerError as error:
        if error.status == 404:
            return None
        raise


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _archive(secrets: Mapping[str, str], owner: str) -> bytes:
    """Pack files that only the container's user may read.

    Raises:
        ProvisionerError: who that is stands nowhere but in the image.
    """
    found = re.fullmatch(r"(\d+)?(?::(\d+))?", owner)
    if found is None:
        raise ProvisionerError(
            f"the image runs as {owner!r}, and files for it need an owner's number: set spec.user, such as"
            " 10001:10001"
        )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, secret in secrets.items():
            data = f"{secret}\n".encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            entry.uid, entry.gid = int(found[1] or 0), int(found[2] or found[1] or 0)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
