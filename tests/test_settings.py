"""Every environment variable."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_adapter.errors import SettingsError
from workspace_adapter.settings import (
    Configuration,
    Settings,
    boolean,
    effective,
    integer,
    left_out,
    one_of,
    parse,
    path,
    seconds,
    setting,
    size,
    sources,
    table,
    text,
    variables,
    without_secrets,
    words,
)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """An adapter's own settings."""

    key: str = setting("RUNTIME_KEY", text, "Opens the model.", secret=True)
    tools: tuple[str, ...] = setting("RUNTIME_TOOLS", words, "What it may use.", default=())
    model: str | None = setting(
        "RUNTIME_MODEL", text, "Which model.", default=None, aliases=("MODEL",), keys=("model",)
    )
    turns: int = setting("RUNTIME_TURNS", integer(1), "How many.", default=7)
    strict: bool = setting("RUNTIME_STRICT", boolean, "Whether.", default=True)


def settings(**environ: str) -> Settings:
    return Settings.from_env({"WORKSPACE_ID": "one", **environ})


def problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_env(environ)
    return wrong.value.problems


# --- the whole --------------------------------------------------------------------------


def test_only_the_workspace_id_is_required() -> None:
    required = [v.name for v in variables(Settings).values() if v.required]
    assert required == ["WORKSPACE_ID"]
    assert settings().workspace_id == "one"


def test_the_defaults_can_work_together() -> None:
    assert settings().conflicts() == ()


def test_every_problem_is_told_at_once_with_the_variable_and_its_value() -> None:
    told = problems(WORKSPACE_PORT="http", WORKSPACE_STOP_GRACE="-1", WORKSPACE_LOG_LEVEL="loud")
    assert told == (
        "WORKSPACE_ID is required: Which workspace this container is.",
        "WORKSPACE_PORT='http': must be a whole number",
        "WORKSPACE_STOP_GRACE='-1': must be at least 0 seconds and finite",
        "WORKSPACE_LOG_LEVEL='loud': must be one of debug, info, warning, error",
    )


@pytest.mark.parametrize(
    ("alias", "value", "field"),
    [
        ("ADAPTER_MODULE", "echo", "adapter"),
        ("MOLECULE_WORKSPACE_URL", "http://w:8000", "url"),
        ("LOG_LEVEL", "debug", "log_level"),
    ],
)
def test_the_names_an_existing_platform_injects_keep_working(alias: str, value: str, field: str) -> None:
    assert getattr(settings(**{alias: value}), field) == value


def test_our_own_name_goes_before_the_alias() -> None:
    assert settings(WORKSPACE_ADAPTER="claude", ADAPTER_MODULE="echo").adapter == "claude"


def test_a_wrong_value_is_told_under_the_name_it_came_by() -> None:
    assert problems(WORKSPACE_ID="one", MOLECULE_WORKSPACE_URL="w:8000") == (
        "MOLECULE_WORKSPACE_URL='w:8000': must be an http or https URL",
    )


def test_an_empty_variable_is_as_if_unset() -> None:
    assert settings(WORKSPACE_PORT="", WORKSPACE_AGENT_CARD="").port == 8000
    assert problems(WORKSPACE_ID="")[0].startswith("WORKSPACE_ID is required")


@pytest.mark.parametrize("workspace_id", ["a", "0", "agent-7", "a" * 128])
def test_a_workspace_id_is_lower_case_letters_digits_and_dashes(workspace_id: str) -> None:
    assert Settings.from_env({"WORKSPACE_ID": workspace_id}).workspace_id == workspace_id


@pytest.mark.parametrize("workspace_id", ["-a", "A", "a_b", "a" * 129, "a b", "a\n"])
def test_any_other_workspace_id_is_refused(workspace_id: str) -> None:
    assert "must be lower-case" in problems(WORKSPACE_ID=workspace_id)[0]


def test_a_url_loses_its_last_slash() -> None:
    assert settings(WORKSPACE_URL="https://w.example/base/").url == "https://w.example/base"


@pytest.mark.parametrize(
    "url", ["http://p", "https://p.example:8080", "http://[::1]:8080", "http://10.0.0.1/a/b", "http://p/"]
)
def test_a_platform_is_a_host_with_a_port_and_a_path(url: str) -> None:
    assert settings(PLATFORM_URL=url).platform_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *("p:8080", "ftp://p", "http://", "http://p:99999", "http://p:123456", "http://p:x"),
        *(
            "http://me:pw@p",
            "http://p?a=b",
            "http://p#a",
            "http://p/a b",
            "http://p/a\r\nX: y",
            "http://[::1",
        ),
    ],
)
def test_anything_else_is_no_platform(url: str) -> None:
    (problem,) = problems(WORKSPACE_ID="one", PLATFORM_URL=url)
    assert problem.endswith("must be an http or https URL of host, port and path")


def test_no_password_of_a_url_is_told() -> None:
    (problem,) = problems(WORKSPACE_ID="one", PLATFORM_URL="http://me:p@ss/@p:8080")
    assert problem.startswith("PLATFORM_URL='http://…@p:8080': must be")


def test_the_address_that_everybody_is_shown_has_no_password() -> None:
    (problem,) = problems(WORKSPACE_ID="one", WORKSPACE_URL="http://me:pw@w:8000/a")
    assert problem == (
        "WORKSPACE_URL='http://…@w:8000/a': must have no user and password: the agent card shows it to"
        " everybody"
    )
    assert settings(WORKSPACE_URL="http://w/@me").url == "http://w/@me"


def test_messages_are_pushed_to_this_workspace_and_poll_is_refused() -> None:
    assert settings(MOLECULE_DELIVERY_MODE="push").delivery_mode == "push"
    assert "must be push" in problems(WORKSPACE_ID="one", MOLECULE_DELIVERY_MODE="poll")[0]


def test_a_heartbeat_leaves_at_least_every_ten_seconds() -> None:
    assert settings(WORKSPACE_HEARTBEAT_INTERVAL="2.5").heartbeat_interval == 2.5
    assert "at most 10" in problems(WORKSPACE_ID="one", WORKSPACE_HEARTBEAT_INTERVAL="30")[0]


# --- the platform's file ------------------------------------------------------------------


def told(**values: str | tuple[str, ...] | None) -> Configuration:
    """A file that says this; a key's dot is written as two underscores."""
    return Configuration("/configs/config.yaml", {k.replace("__", "."): v for k, v in values.items()})


def test_the_environment_goes_before_the_file_and_the_file_before_the_default() -> None:
    config = told(a2a__port="8123", name="Ada")
    environ = {"WORKSPACE_ID": "one", "WORKSPACE_PORT": "9000"}
    assert Settings.from_env(environ, config).port == 9000
    assert Settings.from_env({"WORKSPACE_ID": "one", "WORKSPACE_PORT": ""}, config).port == 8123
    assert Settings.from_env({"WORKSPACE_ID": "one"}, told()).port == 8000
    assert {
        name: source for name, source in sources(Settings, environ, config).items() if source != "default"
    } == {
        "WORKSPACE_ID": "WORKSPACE_ID",
        "WORKSPACE_PORT": "WORKSPACE_PORT",
        "WORKSPACE_NAME": "/configs/config.yaml: name",
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a2a__port": "http"}, "/configs/config.yaml: a2a.port='http': must be a whole number"),
        ({"a2a__port": "65536"}, "/configs/config.yaml: a2a.port='65536': must be between 0 and 65535"),
        (
            {"a2a__port": None},
            "/configs/config.yaml: a2a.port must be one value, not a mapping or a nested list",
        ),
        ({"a2a": "8000"}, "/configs/config.yaml: a2a must be a mapping"),
        ({"name": ()}, "/configs/config.yaml: name must be one value, not a list"),
        ({"name": ("a", "b")}, "/configs/config.yaml: name must be one value, not a list"),
        ({"skills": None}, "/configs/config.yaml: skills must be one value, not a mapping or a nested list"),
        (
            {"observability__log_level": "loud"},
            "/configs/config.yaml: observability.log_level='loud': must be one of debug, info,"
            " warning, error",
        ),
    ],
)
def test_a_key_that_cannot_be_used_is_named_and_left_to_its_default(
    values: dict[str, Any], sentence: str
) -> None:
    config = told(**values)
    assert Settings.from_env({"WORKSPACE_ID": "one"}, config) == settings()
    assert sentence in left_out([Settings], {}, config)


@pytest.mark.parametrize(("interval", "kept"), [("30", 10), ("300", 10), ("7", 7), ("1", 5), ("soon", 10)])
def test_heartbeats_are_never_as_rare_as_the_file_may_ask(interval: str, kept: float) -> None:
    config = told(observability__heartbeat_interval_seconds=interval)
    assert Settings.from_env({"WORKSPACE_ID": "one"}, config).heartbeat_interval == kept
    assert bool(left_out([Settings], {}, config)) is (interval == "soon")


def test_of_several_keys_the_first_that_can_be_used_counts() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Chosen:
        turns: int = setting("TURNS", integer(1), "How many.", default=7, keys=("a.turns", "turns"))

    assert parse(Chosen, {}, told(a__turns="2", turns="3")).turns == 2
    for values in ({"a__turns": None}, {"a__turns": "x"}, {"a": "x"}, {"": "x"}):
        assert parse(Chosen, {}, told(**values, turns="3")).turns == 3
    assert parse(Chosen, {}, told(a__turns="x", turns="y")).turns == 7
    assert parse(Chosen, {}, told(turns="")).turns == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKSPACE_NAME", "\udcff"),
        ("WORKSPACE_SKILLS", "plan,\udcff"),
        ("WORKSPACE_URL", "http://w/\udcff"),
    ],
)
def test_what_others_are_shown_and_is_no_text_is_refused(name: str, value: str) -> None:
    (why,) = problems(**{"WORKSPACE_ID": "one", name: value})
    assert why.endswith("must be UTF-8")


def test_a_long_text_is_neither_taken_for_a_name_nor_quoted_whole() -> None:
    (why,) = left_out([Settings], {}, told(name="x" * 100_000))
    assert "name='xxx" in why
    assert "must have at most 200 characters" in why
    assert len(why) < 400


def test_what_the_environment_says_better_is_not_left_out() -> None:
    assert left_out([Settings], {"WORKSPACE_PORT": "9000"}, told(a2a__port="http")) == ()


def test_every_key_of_the_file_is_named_by_one_setting_alone() -> None:
    keys = [key for variable in variables(Settings).values() for key in variable.keys]
    assert len(keys) == len(set(keys)) > 5


@pytest.mark.parametrize(
    ("given_level", "level"),
    [("INFO", "info"), ("Warn", "warning"), ("CRITICAL", "error"), ("trace", "debug")],
)
def test_a_level_may_be_called_as_other_programs_call_it(given_level: str, level: str) -> None:
    assert settings(LOG_LEVEL=given_level).log_level == level


# --- values -----------------------------------------------------------------------------


def test_a_size_of_nothing_is_refused() -> None:
    (told,) = problems(WORKSPACE_ID="one", WORKSPACE_BODY_LIMIT_BYTES="0")
    assert "WORKSPACE_BODY_LIMIT_BYTES" in told


@pytest.mark.parametrize(
    ("given_text", "value"),
    [("1048576", 1 << 20), ("1MiB", 1 << 20), ("2 GiB", 2 << 30), ("3KiB", 3 << 10), ("5B", 5)],
)
def test_sizes_may_have_a_unit(given_text: str, value: int) -> None:
    assert size(given_text) == value


def test_seconds_may_have_a_fraction_and_a_least_value() -> None:
    assert seconds()("0.25") == 0.25
    assert seconds(0.5)("0.5") == 0.5


@pytest.mark.parametrize("given_text", ["yes", "On", "TRUE", "1"])
def test_there_are_four_ways_to_say_yes(given_text: str) -> None:
    assert boolean(given_text) is True


@pytest.mark.parametrize("given_text", ["no", "Off", "FALSE", "0"])
def test_there_are_four_ways_to_say_no(given_text: str) -> None:
    assert boolean(given_text) is False


def test_a_list_is_separated_by_commas() -> None:
    assert words(" Bash , Read,, ") == ("Bash", "Read")


@pytest.mark.parametrize(
    ("parser", "given_text", "sentence"),
    [
        (size, "1GB", "must be a number of bytes"),
        (size, "-1", "must be a number of bytes"),
        (seconds(), "nan", "must be at least 0 seconds and finite"),
        (seconds(), "inf", "must be at least 0 seconds and finite"),
        (seconds(0.001), "0", "must be at least 0.001 seconds"),
        (seconds(), "5s", "must be a number of seconds"),
        (integer(1), "0", "must be at least 1"),
        (integer(0, 9), "10", "must be between 0 and 9"),
        (integer(), "1.5", "must be a whole number"),
        (boolean, "maybe", "must be true or false"),
        (path, "work", "must be an absolute path"),
        (one_of("a", "b"), "c", "must be one of a, b"),
    ],
)
def test_what_cannot_be_a_value_is_refused_with_a_sentence(
    parser: Any, given_text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        parser(given_text)


@given(st.dictionaries(st.sampled_from([v.name for v in variables(Settings).values()]), st.text()))
def test_no_environment_does_more_than_be_refused(environ: dict[str, str]) -> None:
    told: tuple[str, ...] = ()
    try:
        Settings.from_env(environ)
    except SettingsError as wrong:
        told = wrong.problems
    assert all(re.match(r"[A-Z0-9_]+(=| is required)", problem) for problem in told)


# --- together ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        (
            {"WORKSPACE_STOP_GRACE": "9.6"},
            ("WORKSPACE_STOP_GRACE=9.6", "WORKSPACE_STOP_TIMEOUT=10"),
        ),
        (
            {"WORKSPACE_RESTART_WINDOW": "5"},
            ("WORKSPACE_RESTART_WINDOW=5", "WORKSPACE_DRAIN_CAP=5"),
        ),
        (
            {"WORKSPACE_MAX_CONCURRENT_TURNS": "9"},
            ("WORKSPACE_SESSIONS_OPEN=8", "WORKSPACE_MAX_CONCURRENT_TURNS=9"),
        ),
        (
            {"WORKSPACE_RESUME_MAX_ATTEMPTS": "21"},
            ("WORKSPACE_RESUME_MAX_ATTEMPTS=21", "WORKSPACE_RESUME_MAX_TOTAL=20"),
        ),
        (
            {"WORKSPACE_JOURNAL_LIMIT_BYTES": "1MiB"},
            ("WORKSPACE_BODY_LIMIT_BYTES=16777216", "WORKSPACE_JOURNAL_LIMIT_BYTES=1048576"),
        ),
        (
            {"WORKSPACE_WORKDIR": "/state/work", "WORKSPACE_STATE_DIR": "/state"},
            ("WORKSPACE_WORKDIR=/state/work", "WORKSPACE_STATE_DIR=/state"),
        ),
    ],
)
def test_every_pair_that_cannot_work_is_named(environ: dict[str, str], names: tuple[str, str]) -> None:
    (told,) = problems(WORKSPACE_ID="one", **environ)
    assert all(name in told for name in names)


def test_all_pairs_are_told_in_one_message() -> None:
    told = problems(WORKSPACE_ID="one", WORKSPACE_STOP_GRACE="10", WORKSPACE_RESTART_WINDOW="1")
    assert len(told) == 3


def test_sigterm_leaves_time_for_the_grace_and_the_refusals() -> None:
    assert settings().term_cap + settings().stop_grace < settings().stop_timeout
    assert settings(WORKSPACE_STOP_GRACE="9").term_cap == 0


# --- as shown ---------------------------------------------------------------------------


def test_the_table_holds_every_variable_with_its_aliases() -> None:
    shown = table(Settings, Runtime)
    for variable in (*variables(Settings).values(), *variables(Runtime).values()):
        assert f"| `{variable.name}`" in shown
        assert all(f"`{alias}`" in shown for alias in variable.aliases)
    assert "| `RUNTIME_KEY` |  | required |  | Opens the model. |" in shown
    assert "| `RUNTIME_MODEL`, `MODEL` | `model` | none |  | Which model. |" in shown
    assert "| `RUNTIME_TOOLS` |  | none |" in shown
    assert "| `RUNTIME_STRICT` |  | `true` |" in shown
    assert "| `WORKSPACE_JOURNAL_LIMIT_BYTES` |  | 2 GiB | bytes |" in shown


def test_every_time_has_its_unit_and_every_variable_its_sentence() -> None:
    for field in dataclasses.fields(Settings):
        variable = field.metadata["variable"]
        assert (variable.unit == "seconds") == (field.type == "float")
        assert variable.help.endswith(".")


def test_what_is_in_force_can_be_given_again() -> None:
    told = settings(WORKSPACE_PORT="0", WORKSPACE_REQUIRE_AUTH="yes", WORKSPACE_DRAIN_CAP="0.5")
    assert Settings.from_env(effective(told)) == told


def test_a_secret_is_shown_masked_and_never_quoted_in_an_error() -> None:
    runtime = parse(Runtime, {"RUNTIME_KEY": "sesame", "RUNTIME_TOOLS": "Bash,Read"})
    assert effective(runtime) == {
        "RUNTIME_KEY": "********",
        "RUNTIME_TOOLS": "Bash,Read",
        "RUNTIME_MODEL": "",
        "RUNTIME_TURNS": "7",
        "RUNTIME_STRICT": "true",
    }

    @dataclass(frozen=True, kw_only=True)
    class Pin:
        pin: int = setting("PIN", integer(), "Opens the door.", secret=True)

    with pytest.raises(SettingsError) as wrong:
        parse(Pin, {"PIN": "sesame"})
    assert wrong.value.problems == ("PIN=…: must be a whole number",)


def test_runtimes_and_tools_do_not_see_the_platforms_secrets() -> None:
    theirs = {
        name: "x"
        for name in (
            *("PATH", "WORKSPACE_ID", "GITHUB_TOKEN", "LANGFUSE_SECRET_KEY", "PLATFORM_URL"),
            *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "OPENAI_API_KEY"),
            *("MOLECULE_LLM_USAGE_TOKEN", "MOLECULE_LLM_BASE_URL", "MOLECULE_MODEL"),
        )
    }
    ours = {
        name: "x"
        for name in (
            *("MOLECULE_WORKSPACE_TOKEN", "PLATFORM_INBOUND_SECRET", "WORKSPACE_AUTH_TOKEN", "ADMIN_TOKEN"),
            *("MOLECULE_CONFIG_BOOT_TOKEN", "MOLECULE_CONFIG_RELAY_ACK_TOKEN", "MOLECULE_CONFIG_RELAY_URI"),
        )
    }
    assert without_secrets(theirs | ours) == theirs
