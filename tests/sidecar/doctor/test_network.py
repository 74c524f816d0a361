from __future__ import annotations

import pytest

from workspace_adapter.sidecar.doctor import network
from workspace_adapter.sidecar.doctor.finding import Status

OK, WARNING, BROKEN, SKIPPED = Status.OK, Status.WARNING, Status.BROKEN, Status.SKIPPED
PLATFORM = "http://platform:8080"


@pytest.mark.parametrize(
    ("status", "token", "expected"),
    [
        (200, True, OK),
        (200, False, OK),
        (429, True, OK),
        (401, True, BROKEN),
        (401, False, WARNING),
        (500, True, WARNING),
        (503, False, WARNING),
        (301, True, BROKEN),
        (400, True, BROKEN),
        (404, True, BROKEN),
    ],
)
def test_what_the_platform_answers_says_whether_it_knows_us(
    status: int, token: bool, expected: Status
) -> None:
    found = network.platform(PLATFORM, status=status, token=token, json=True, said="a reason")
    assert found.status is expected
    assert expected is OK or "(a reason)" in found.found


def test_a_proxys_page_is_no_answer_of_the_platforms() -> None:
    assert network.platform(PLATFORM, status=200, token=True, json=False, said="").status is BROKEN


@pytest.mark.parametrize(
    ("url", "platform", "warned"),
    [
        ("http://localhost:8000", PLATFORM, True),
        ("http://127.0.0.1:8000", PLATFORM, True),
        ("http://[::1]:8000", PLATFORM, True),
        ("http://localhost:8000", "http://127.0.0.1:8080", False),
        ("http://localhost:8000", None, False),
        ("http://workspace-1:8000", PLATFORM, False),
    ],
)
def test_localhost_is_another_machine_for_a_platform_elsewhere(
    url: str, platform: str | None, warned: bool
) -> None:
    assert (network.url_host(url, platform_url=platform) is not None) is warned


@pytest.mark.parametrize(
    ("boot_id", "answered", "url_is", "port_is"),
    [
        ("b1", "b1", OK, OK),
        ("b1", "b2", BROKEN, BROKEN),
        ("b1", "", BROKEN, BROKEN),
        ("b1", None, WARNING, BROKEN),
        (None, None, SKIPPED, OK),
        (None, "b2", BROKEN, BROKEN),
        (None, "", BROKEN, BROKEN),
    ],
)
def test_who_answers_must_be_the_sidecar_that_runs_here(
    boot_id: str | None, answered: str | None, url_is: Status, port_is: Status
) -> None:
    asked = {"boot_id": boot_id, "answered": answered, "why": "Connection refused"}
    assert network.url("http://workspace-1:8000", **asked).status is url_is  # type: ignore[arg-type]
    assert network.port("http://127.0.0.1:8000", **asked).status is port_is  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("secret", "required", "public", "status"),
    [
        (True, True, True, OK),
        (False, True, True, BROKEN),
        (True, False, True, WARNING),
        (False, False, False, OK),
    ],
)
def test_who_is_heard(secret: bool, required: bool, public: bool, status: Status) -> None:
    assert network.authentication(secret=secret, required=required, public=public).status is status


@pytest.mark.parametrize(
    ("wrong", "right", "status"),
    [(401, 200, OK), (401, None, OK), (200, 200, BROKEN), (401, 401, BROKEN)],
)
def test_a_wrong_bearer_is_to_be_refused_and_the_right_one_taken(
    wrong: int, right: int | None, status: Status
) -> None:
    assert network.bearer(wrong=wrong, right=right).status is status


def test_an_address_that_is_not_this_machines_is_said() -> None:
    found = network.not_ours("http://192.0.2.1:8000", "no route")
    assert (found.status, "WORKSPACE_HOST" in found.todo) == (BROKEN, True)


def test_a_workspace_that_takes_no_message_says_why() -> None:
    assert network.readiness(True, "").status is OK
    found = network.readiness(False, "stopping")
    assert (found.status, "stopping" in found.found) == (WARNING, True)
