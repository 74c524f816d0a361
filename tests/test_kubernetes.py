"""The manifest's numbers fit the sidecar's timers, and its places those of the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from workspace_adapter import cli
from workspace_adapter.cli.asking import PATIENCE
from workspace_adapter.runtimes.claude import ClaudeAdapter
from workspace_adapter.settings import Settings, variables
from workspace_adapter.sidecar.doctor import container as doctor
from workspace_adapter.sidecar.doctor.finding import Status
from workspace_adapter.sidecar.door import edge

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "examples" / "kubernetes" / "workspace.yaml").read_text()
IMAGE = (ROOT / "Dockerfile.workspace").read_text()

SERVICE, SET = yaml.safe_load_all(TEXT)
POD: dict[str, Any] = SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
GIVEN = {env["name"]: env["value"] for env in CONTAINER["env"] if "value" in env}
SETTINGS = Settings.from_env(GIVEN)


def bytes_of(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", size).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def test_one_pod_at_a_time_has_the_journal() -> None:
    assert (SET["kind"], SET["spec"]["replicas"]) == ("StatefulSet", 1)
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in SET["spec"]["volumeClaimTemplates"]}
    assert {tuple(claim["accessModes"]) for claim in claims.values()} == {("ReadWriteOncePod",)}
    mounted = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert claims.keys() >= {mounted[SETTINGS.workdir], mounted[SETTINGS.configs_dir]}
    assert Path(SETTINGS.state_dir).is_relative_to(SETTINGS.workdir)
    room = bytes_of(claims[mounted[SETTINGS.workdir]]["resources"]["requests"]["storage"])
    assert room > 2 * SETTINGS.journal_limit_bytes


def test_the_grace_period_holds_the_drain_and_the_stop() -> None:
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["workspace-adapter", "drain"]
    wait = cli._parser().parse_args(command[1:]).wait
    assert wait > SETTINGS.drain_cap, "the hook would wait no longer than a restart signal does"
    assert POD["terminationGracePeriodSeconds"] >= wait + PATIENCE + SETTINGS.stop_timeout
    assert str(int(PATIENCE)) in re.findall(r"preStop may take \(\d+, and (\d+) more", TEXT)


def test_no_probe_kills_a_workspace_that_works_drains_or_waits_for_its_disk() -> None:
    startup, liveness, readiness = (
        CONTAINER[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")
    )
    assert startup["httpGet"]["path"] == liveness["httpGet"]["path"] == edge.HEALTH
    assert readiness["httpGet"]["path"] == edge.READY
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > 3 * SETTINGS.wedged_after
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
    for probe in (startup, liveness, readiness):
        assert probe["httpGet"]["port"] == "http"
        assert probe["timeoutSeconds"] > 1
    assert SERVICE["spec"]["publishNotReadyAddresses"] is True


def test_ports_places_and_user_are_those_of_the_image() -> None:
    (port,) = CONTAINER["ports"]
    assert re.findall(r"^EXPOSE (\d+)$", IMAGE, re.M) == [str(port["containerPort"])] == [str(SETTINGS.port)]
    assert [p["targetPort"] for p in SERVICE["spec"]["ports"]] == [port["name"]]
    assert SETTINGS.url == f"http://{SERVICE['metadata']['name']}:{SERVICE['spec']['ports'][0]['port']}"
    assert SERVICE["spec"]["selector"] == SET["spec"]["template"]["metadata"]["labels"]
    assert SET["spec"]["selector"]["matchLabels"] == SET["spec"]["template"]["metadata"]["labels"]
    user = POD["securityContext"]
    assert re.findall(r"^USER (\d+):(\d+)$", IMAGE, re.M) == [
        (str(user["runAsUser"]), str(user["runAsGroup"]))
    ]
    assert user["fsGroup"] == user["runAsGroup"]
    assert user["runAsNonRoot"] is True
    paths = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    volumes = re.findall(r"^VOLUME \[(.*)\]$", IMAGE, re.M)[0]
    home = re.findall(r"^ENV HOME=(\S+)", IMAGE, re.M)[0]
    assert paths >= {*re.findall(r'"(.*?)"', volumes), home, "/tmp"}
    assert {*(v["name"] for v in POD["volumes"]), "workspace", "configs"} == {
        mount["name"] for mount in CONTAINER["volumeMounts"]
    }


def test_what_runs_in_it_may_do_nothing_but_its_work() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False


def test_no_service_of_the_namespace_sets_a_variable_of_ours() -> None:
    assert POD["enableServiceLinks"] is False


def test_the_image_is_one_image_and_secrets_are_only_referred_to() -> None:
    tag = CONTAINER["image"].rpartition(":")[2]
    assert re.fullmatch(r"\d+\.\d+\.\d+", tag)
    secret = {env["name"]: env["valueFrom"] for env in CONTAINER["env"] if "value" not in env}
    assert secret.keys() & set(ClaudeAdapter.credentials)
    assert all(source.keys() == {"secretKeyRef"} for source in secret.values())
    assert not [name for name in GIVEN if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


def test_the_memory_is_enough_for_every_session_that_may_be_warm() -> None:
    limit = bytes_of(CONTAINER["resources"]["limits"]["memory"])
    sessions, each = SETTINGS.sessions_open, ClaudeAdapter.session_bytes
    found = doctor.memory(limit=limit, killed=0, sessions=sessions, session_bytes=each)
    assert found.status is Status.OK


@pytest.mark.parametrize("name", [name for name in GIVEN if name.startswith("WORKSPACE_")])
def test_every_variable_is_one_of_ours(name: str) -> None:
    assert name in {variable.name for variable in variables(Settings).values()}
