"""Each slip of a workspace is noticed, in the platform's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from workspace_adapter.testing import ContractBroken, FakePlatform, Fault, Times

from .workspace import BEAT, CARD, REGISTRATION, Sidecar


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as made:
        yield made


@pytest.fixture
def sidecar(platform: FakePlatform) -> Iterator[Sidecar]:
    made = Sidecar(platform)
    with made.client:
        yield made


def complaint(platform: FakePlatform) -> str:
    """The one violation there is."""
    assert len(platform.violations) == 1, platform.violations
    return platform.violations.pop()


def test_who_keeps_the_contract_hears_no_complaint(platform: FakePlatform, sidecar: Sidecar) -> None:
    assert sidecar.client.get("/health").status_code == 200
    registered = sidecar.register().json()
    assert registered["status"] == "registered"
    assert registered["delivery_mode"] == "push"
    assert registered["platform_inbound_secret"] == platform.tokens.inbound_secret
    assert sidecar.beat().json() == {
        "status": "ok",
        "generation": 1,
        "platform_inbound_secret": platform.tokens.inbound_secret,
    }
    beat = sidecar.beat(active_tasks=1, is_busy=True, error_rate=0, observed_generation=1, state="serving")
    assert beat.status_code == 200
    card = {"workspace_id": "ws-test", "agent_card": CARD}
    assert sidecar.post("/registry/update-card", card).json() == {"status": "updated"}
    activity = {"activity_type": "agent_log", "summary": "reads a file"}
    assert sidecar.post("/workspaces/ws-test/activity", activity).json() == {"status": "logged"}
    assert sidecar.post("/workspaces/ws-test/notify", {"message": "done"}).json() == {"status": "sent"}
    boot = {"step": 1, "total": 2, "key": "journal", "label": "opens the journal", "status": "ok"}
    assert sidecar.post("/workspaces/ws-test/boot-event", boot).json() == {"status": "broadcast"}
    assert sidecar.client.get("/workspaces/ws-test").json()["status"] == "online"
    platform.assert_no_violations()
    assert len(platform.heartbeats) == 2
    assert platform.registrations == [REGISTRATION]
    assert platform.activities == [activity]
    assert platform.notifications == [{"message": "done"}]


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


@pytest.mark.parametrize("name", sorted(BEAT.keys() - {"boot_id", "workspace_id"}))
def test_a_partial_beat_is_taken_and_noticed(platform: FakePlatform, sidecar: Sidecar, name: str) -> None:
    sidecar.register()
    assert sidecar.post("/registry/heartbeat", without(BEAT, name)).status_code == 200
    assert complaint(platform).startswith(f"POST /registry/heartbeat: {name} is missing: ")


REFUSED_BEATS: list[tuple[dict[str, Any], str]] = [
    ({"active_tasks": 1.5}, "active_tasks is a number with a fraction instead of a whole number"),
    ({"active_tasks": True}, "active_tasks is a boolean instead of a whole number"),
    ({"uptime_seconds": "7"}, "uptime_seconds is a string instead of a whole number"),
    ({"is_busy": 1}, "is_busy is a whole number instead of a boolean or null"),
    ({"current_task": None}, "current_task is null instead of a string"),
    ({"error_rate": "low"}, "error_rate is a string instead of a whole number or a number with a fraction"),
    ({"runtime_metadata": None}, "runtime_metadata is null instead of an object"),
    ({"agent_card": "a card"}, "agent_card is a string instead of an object"),
    ({"monthly_spend": 1.0}, "monthly_spend is a number with a fraction instead of a whole number"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED_BEATS, ids=[s for _, s in REFUSED_BEATS])
def test_what_is_of_the_wrong_type_is_refused(
    platform: FakePlatform, sidecar: Sidecar, change: dict[str, Any], sentence: str
) -> None:
    sidecar.register()
    assert sidecar.beat(**change).status_code == 400
    assert complaint(platform) == f"POST /registry/heartbeat: {sentence}"


CARELESS_BEATS: list[tuple[dict[str, Any], str]] = [
    ({"active_tasks": -1}, "active_tasks is negative"),
    ({"error_rate": 1.2}, "error_rate is not between 0 and 1"),
    ({"runtime_state": "sleepy"}, "runtime_state is neither empty nor wedged"),
    ({"observed_generation": 9}, "observed_generation is one that was never handed out"),
    (
        {"runtime_metadata": {"capabilities": {"session": True}}},
        "runtime_metadata.capabilities has not exactly",
    ),
    ({"agent_card": {**CARD, "url": "http://127.0.0.1:8000/"}}, "agent_card.url ends with a slash"),
    ({"agent_card": without(CARD, "name")}, "agent_card has no name"),
]


@pytest.mark.parametrize(("change", "sentence"), CARELESS_BEATS, ids=[s for _, s in CARELESS_BEATS])
def test_what_does_harm_is_noticed(
    platform: FakePlatform, sidecar: Sidecar, change: dict[str, Any], sentence: str
) -> None:
    sidecar.register()
    assert sidecar.beat(**change).status_code == 200
    assert complaint(platform).startswith(f"POST /registry/heartbeat: {sentence}")


REGISTRATIONS: list[tuple[dict[str, Any], int, str]] = [
    ({"url": "http://127.0.0.1:8000/"}, 200, "url ends with a slash"),
    ({"url": "127.0.0.1:8000"}, 400, "url is not an http URL"),
    ({"url": ""}, 200, "url is missing: the platform falls back to the card's"),
    ({"url": "", "agent_card": {"name": "a"}}, 400, "url is required for push-mode workspaces"),
    ({"delivery_mode": "pull"}, 400, "delivery_mode is neither push nor poll"),
    ({"kind": "platform"}, 400, "kind is not workspace"),
    ({"agent_card": []}, 400, "agent_card is a list instead of an object"),
    ({"id": "ws-other"}, 401, "speaks for the workspace ws-other"),
]


@pytest.mark.parametrize(("change", "status", "sentence"), REGISTRATIONS, ids=[s for *_, s in REGISTRATIONS])
def test_a_registration_is_held_against_the_contract(
    platform: FakePlatform, sidecar: Sidecar, change: dict[str, Any], status: int, sentence: str
) -> None:
    assert sidecar.register(**change).status_code == status
    assert complaint(platform).startswith(f"POST /registry/register: {sentence}")


def test_a_registration_that_does_not_declare_how_it_hears_is_noticed(
    platform: FakePlatform, sidecar: Sidecar
) -> None:
    assert sidecar.post("/registry/register", without(REGISTRATION, "delivery_mode")).status_code == 200
    assert "delivery_mode is missing" in complaint(platform)


OTHERS: list[tuple[str, dict[str, Any], int, str]] = [
    ("activity", {"activity_type": "gossip"}, 400, "activity_type is none of"),
    ("activity", {"activity_type": "agent_log", "sumary": "reads"}, 200, "sumary: nobody reads that"),
    ("activity", {"activity_type": "agent_log", "source_id": "ws-other"}, 403, "source_id is somebody else"),
    (
        "activity",
        {"activity_type": "agent_log", "duration_ms": 1.5},
        400,
        "duration_ms is a number with a fraction",
    ),
    ("notify", {}, 400, "message is missing"),
    ("notify", {"message": ""}, 200, "message is empty"),
    ("notify", {"message": "see", "attachments": [{"uri": "workspace:/a"}]}, 400, "an attachment lacks"),
    (
        "boot-event",
        {"step": 3, "total": 2, "key": "k", "label": "l", "status": "ok"},
        400,
        "step is not between 1 and total",
    ),
    (
        "boot-event",
        {"step": 1, "total": 2, "key": "far-too-long", "label": "l", "status": "ok"},
        400,
        "key is longer than 8 characters",
    ),
    ("nonsense", {}, 404, "the platform has no such route"),
]


@pytest.mark.parametrize(("path", "body", "status", "sentence"), OTHERS, ids=[s for *_, s in OTHERS])
def test_the_other_calls_are_held_against_the_contract(
    platform: FakePlatform, sidecar: Sidecar, path: str, body: dict[str, Any], status: int, sentence: str
) -> None:
    sidecar.register()
    assert sidecar.post(f"/workspaces/ws-test/{path}", body).status_code == status
    assert f"POST /workspaces/ws-test/{path}: {sentence}" in complaint(platform)


def test_what_is_no_json_is_refused(platform: FakePlatform, sidecar: Sidecar) -> None:
    reply = sidecar.client.post(
        "/registry/register", content=b"{", headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert complaint(platform) == "POST /registry/register: the body is not a JSON object"


def test_another_content_type_is_noticed(platform: FakePlatform, sidecar: Sidecar) -> None:
    reply = sidecar.post("/registry/register", REGISTRATION, **{"content-type": "text/plain"})
    assert reply.status_code == 200
    assert complaint(platform).endswith("Content-Type is not application/json")


@pytest.mark.parametrize("path", ["//registry/register", "/registry/register/"])
def test_a_slash_too_many_is_noticed(platform: FakePlatform, sidecar: Sidecar, path: str) -> None:
    url = f"{platform.url}{path}"
    assert sidecar.client.post(url, json=REGISTRATION).status_code == 404
    assert "a slash too many" in complaint(platform)


def test_the_first_registration_gets_the_token_and_the_next_must_show_it(
    platform: FakePlatform, sidecar: Sidecar
) -> None:
    assert "auth_token" in sidecar.register().json()
    assert "auth_token" not in sidecar.register().json()
    platform.assert_no_violations()
    sidecar.token = None
    assert sidecar.beat().status_code == 401
    assert "has no bearer, although the workspace was given a token" in complaint(platform)
    sidecar.beat()
    with pytest.raises(ContractBroken, match="has no bearer"):
        platform.assert_no_violations()


def test_a_token_that_was_revoked_may_be_tried_again_but_not_for_ever(
    platform: FakePlatform, sidecar: Sidecar, tmp_path: Any
) -> None:
    with FakePlatform(configs_dir=tmp_path) as provisioning:
        provisioning.provision()
        late = Sidecar(provisioning)
        with late.client:
            late.token = "of another life"
            assert [late.register().status_code for _ in range(2)] == [401, 401]
            provisioning.assert_no_violations()
            late.register()
            assert "has a token that was refused 3 times" in complaint(provisioning)
            late.token = (tmp_path / ".auth_token").read_text().strip()
            assert late.register().status_code == 200
            assert late.beat().status_code == 200
            provisioning.provision()
            assert late.beat().status_code == 401
            late.token = (tmp_path / ".auth_token").read_text().strip()
            assert late.beat().status_code == 200
            provisioning.assert_no_violations()


def test_a_provision_writes_the_token_for_its_owner_alone(tmp_path: Any) -> None:
    with FakePlatform(configs_dir=tmp_path) as platform:
        before = platform.tokens.inbound_secret
        platform.provision()
        assert (tmp_path / ".auth_token").stat().st_mode & 0o777 == 0o600
        assert platform.tokens.inbound_secret != before


def test_a_claim_to_be_another_workspace_is_refused(platform: FakePlatform, sidecar: Sidecar) -> None:
    sidecar.register()
    assert sidecar.post("/registry/heartbeat", BEAT, **{"x-workspace-id": "ws-other"}).status_code == 401
    assert "X-Workspace-ID is not the workspace of the bearer" in complaint(platform)
    assert sidecar.post("/registry/heartbeat", BEAT, **{"x-workspace-id": "ws-test"}).status_code == 200


def test_the_organisation_is_demanded_but_for_registration_and_beats() -> None:
    with FakePlatform(org_id="org-1") as platform:
        sidecar = Sidecar(platform)
        with sidecar.client:
            assert sidecar.register().status_code == 200
            assert sidecar.beat().status_code == 200
            platform.assert_no_violations()
            note = {"message": "done"}
            refused = sidecar.post("/workspaces/ws-test/notify", note)
            assert (refused.status_code, refused.json()["code"]) == (400, "TENANT_ORG_HEADER_REQUIRED")
            assert "has no X-Molecule-Org-Id" in complaint(platform)
            wrong = sidecar.post("/workspaces/ws-test/notify", note, **{"x-molecule-org-id": "org-2"})
            assert (wrong.status_code, wrong.content) == (404, b"")
            assert "another organisation's" in complaint(platform)
            right = sidecar.post("/workspaces/ws-test/notify", note, **{"x-molecule-org-id": "org-1"})
            assert right.status_code == 200
            assert sidecar.client.get("/health").status_code == 200


def test_a_beat_that_comes_late_is_noticed(sidecar: Sidecar, platform: FakePlatform) -> None:
    sidecar.register()
    sidecar.beat()
    platform._registry._beat_at = platform.received[-1].at - 16
    sidecar.beat()
    assert complaint(platform) == "POST /registry/heartbeat: came 16.0 s after the one before"
    sidecar.beat(boot_id="another life")
    platform._registry._beat_at = platform.received[-1].at - 16
    sidecar.beat(boot_id="a third life")
    platform._registry._beat_at = platform.received[-1].at - 16
    sidecar.register(boot_id="a fourth life")
    sidecar.beat(boot_id="a fourth life")
    platform.assert_no_violations()


def test_a_gap_that_is_the_platforms_own_is_not_held_against_the_workspace(
    platform: FakePlatform, sidecar: Sidecar
) -> None:
    def be_away() -> None:
        with platform.failing(Fault.refused()):
            pass

    def refuse() -> None:
        sidecar.post("/registry/heartbeat", BEAT, authorization="Bearer of another life")

    sidecar.register()
    for spoil in (be_away, refuse):
        sidecar.beat()
        platform._registry._beat_at = platform.received[-1].at - 16
        spoil()
        sidecar.beat()
        platform.assert_no_violations()


def test_an_uptime_that_goes_back_is_noticed_within_one_life(
    platform: FakePlatform, sidecar: Sidecar
) -> None:
    sidecar.register()
    sidecar.beat(uptime_seconds=9)
    sidecar.beat(uptime_seconds=8)
    assert "uptime_seconds went back" in complaint(platform)
    sidecar.beat(uptime_seconds=1, boot_id="another life")
    platform.assert_no_violations()


def test_more_requests_than_the_rate_allows_are_refused() -> None:
    with FakePlatform(rate_limit=3, times=Times(rate_window=600)) as platform:
        sidecar = Sidecar(platform)
        with sidecar.client:
            sidecar.register()
            assert [sidecar.beat().status_code for _ in range(3)] == [200, 200, 429]
            assert "is more than request 3 within the rate's window" in complaint(platform)
