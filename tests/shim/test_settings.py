"""The shim's settings: checked as a whole, every problem at once."""

import pytest

from workspace_adapter.errors import SettingsError
from workspace_adapter.queueing import Rules
from workspace_adapter.settings import effective
from workspace_adapter.shim.ranges import THIS_MACHINE_TOO, USUAL
from workspace_adapter.shim.settings import ShimSettings, unknown

TOKEN = "a-long-admin-token"


def problems(**environ: str) -> str:
    with pytest.raises(SettingsError) as told:
        ShimSettings.from_env(environ)
    return "\n".join(told.value.problems)


def test_nothing_must_be_set() -> None:
    settings = ShimSettings.from_env({"HOME": "/srv/ann"})

    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert str(settings.directory) == "/srv/ann/.workspace_adapter/shim"
    assert settings.reach == THIS_MACHINE_TOO
    assert settings.rules == Rules()


def test_addresses_that_may_be_called_are_named_by_kind_or_network() -> None:
    named = "public,10.1.0.0/16"
    settings = ShimSettings.from_env({"SHIM_WORKSPACE_ADDRESSES": named})

    assert str(settings.reach) == named
    assert effective(settings)["SHIM_WORKSPACE_ADDRESSES"] == named
    assert "'lan' is neither" in problems(SHIM_WORKSPACE_ADDRESSES="lan")


def test_every_problem_is_told_at_once() -> None:
    told = problems(SHIM_PORT="http", SHIM_HOLD_SECONDS="long", SHIM_DATABASE_URL="mysql://x")

    assert [line.split("=")[0].split()[0] for line in told.splitlines()] == [
        "SHIM_PORT",
        "SHIM_DATABASE_URL",
        "SHIM_HOLD_SECONDS",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "shim.example"])
def test_a_public_address_without_an_admin_token_is_refused_and_says_what_to_set(host: str) -> None:
    assert "SHIM_ADMIN_TOKEN must be set" in problems(SHIM_HOST=host)

    settings = ShimSettings.from_env({"SHIM_HOST": host, "SHIM_ADMIN_TOKEN": TOKEN})
    assert settings.reach == USUAL


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_alone_needs_no_admin_token(host: str) -> None:
    assert ShimSettings.from_env({"SHIM_HOST": host}).admin_token is None


def test_an_admin_token_that_could_be_guessed_is_refused_and_not_quoted() -> None:
    told = problems(SHIM_ADMIN_TOKEN="short")

    assert "at least 16 characters" in told
    assert "short" not in told


@pytest.mark.parametrize(
    "pair",
    [
        {"SHIM_LEASE": "10", "SHIM_LEASE_RENEWAL": "5"},
        {"SHIM_OFFLINE_AFTER": "2", "SHIM_SWEEP_INTERVAL": "1"},
    ],
)
def test_timers_that_cannot_work_together_are_named_both(pair: dict[str, str]) -> None:
    told = problems(**pair)

    assert all(name in told for name in pair)


def test_a_wrong_database_url_does_not_show_its_password() -> None:
    assert "geheim" not in problems(SHIM_DATABASE_URL="mysql://me:geheim@host/db")


@pytest.mark.parametrize("password", ["ge/heim", "ge#heim", "ge?heim"])
def test_a_password_that_splits_the_database_url_is_refused_and_not_shown(password: str) -> None:
    told = problems(SHIM_DATABASE_URL=f"postgresql://me:{password}@host/db")

    assert "%2F" in told
    assert "heim" not in told


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:p%2Fw@host:5432/db?sslmode=require",
        "postgres://host,[::1]:5433/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://me:a:b@c@host/db",
    ],
)
def test_a_database_url_may_name_several_hosts_or_none(url: str) -> None:
    assert ShimSettings.from_env({"SHIM_DATABASE_URL": url}).database_url == url


def test_secrets_are_masked_where_settings_are_shown() -> None:
    settings = ShimSettings.from_env(
        {"SHIM_ADMIN_TOKEN": TOKEN, "SHIM_DATABASE_URL": "postgresql://me:geheim@host/db"}
    )

    assert TOKEN not in str(effective(settings))
    assert "geheim" not in str(effective(settings))


def test_a_misspelt_variable_is_noticed() -> None:
    assert unknown({"SHIM_HOLD": "1", "SHIM_PORT": "1", "PATH": "/bin"}) == ("SHIM_HOLD",)
