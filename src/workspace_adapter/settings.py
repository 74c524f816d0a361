"""Every setting: its variable, its key in the platform's ``config.yaml``, parser, sentence, unit and default.

Nothing else reads the environment; ``Settings.from_env`` is handed mappings. An
adapter's own variables are a frozen dataclass of :func:`setting` fields too, so they
are parsed, checked and printed in the same table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar, cast

from .errors import SettingsError

T = TypeVar("T")
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Variable:
    """What one setting is, for the parser and for the table in the README."""

    name: str
    parse: Callable[[str], Any]
    help: str
    default: object
    aliases: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    parse_key: Callable[[str], Any] | None = None
    unit: str = ""
    shown: str | None = None
    secret: bool = False

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    @property
    def shown_default(self) -> str:
        """The default as the table prints it: a value as code, anything else in words."""
        if self.shown is not None:
            return self.shown
        if self.required:
            return "required"
        if self.default is None or self.default == ():
            return "none"
        return f"`{_plain(self.default)}`"


def setting(
    name: str,
    parse: Callable[[str], Any],
    help: str,  # the word every reader expects
    *,
    default: object = _REQUIRED,
    aliases: tuple[str, ...] = (),
    keys: tuple[str, ...] = (),
    parse_key: Callable[[str], Any] | None = None,
    unit: str = "",
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    """Declare one field of a settings class.

    Args:
        name: the variable; ``aliases`` are names an existing platform injects.
        parse: from the text to the value; raises ``ValueError`` with a sentence.
        help: one sentence for the table.
        keys: where it stands in ``config.yaml``, such as ``a2a.port``; the first that is there counts.
        parse_key: in place of ``parse`` for what stands there.
        default: used when the variable is unset or empty; left out, it is required.
        unit: ``seconds``, ``bytes`` …; empty where there is none.
        shown: what the table prints as default where the value itself says little.
        secret: printed masked.
    """
    variable = Variable(name, parse, help, default, aliases, keys, parse_key, unit, shown, secret)
    metadata = {"variable": variable}
    if default is _REQUIRED:
        return field(metadata=metadata)
    return field(default=cast(Any, default), metadata=metadata)


def variables(settings_class: type) -> dict[str, Variable]:
    """Return the variables of a settings class, by field name."""
    return {
        f.name: f.metadata["variable"] for f in dataclasses.fields(settings_class) if "variable" in f.metadata
    }


@dataclass(frozen=True, slots=True)
class Configuration:
    """The platform's ``config.yaml``, as texts; what they mean is for each setting's parser."""

    path: str = "config.yaml"
    values: Mapping[str, str | tuple[str, ...] | None] = field(default_factory=dict)
    """What stands at each key, such as ``a2a.port``: a value, a list of values, or ``None`` for
    anything else, such as a mapping. What is null is not here."""
    problems: tuple[str, ...] = ()
    """Why the file could not be read, or not all of it."""


NO_FILE = Configuration()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a variable was given."""

    source: str
    """The variable, or the file and its key."""
    value: Any = None
    problem: str = ""
    """Why what it was given is no value."""
    in_file: bool = False


_SHOWN = 200
"""Characters of a wrong value that are quoted."""


def read(variable: Variable, environ: Mapping[str, str], config: Configuration) -> Reading | None:
    """Return what a variable was given; the environment goes before the file, and empty is as if unset."""
    for name in (variable.name, *variable.aliases):
        if environ.get(name):
            return _read(variable, name, environ[name])
    readings = [reading for key in variable.keys if (reading := _at(key, variable, config)) is not None]
    return next((reading for reading in readings if not reading.problem), readings[0] if readings else None)


def _at(key: str, variable: Variable, config: Configuration) -> Reading | None:
    """Return what stands at one key of the file."""
    source, found = f"{config.path}: {key}", config.values.get(key, "")
    if isinstance(found, tuple) and variable.parse is words:
        found = ",".join(found)
    if not isinstance(found, str):
        shape = "a mapping or a nested list" if found is None else "a list"
        return Reading(source, problem=f"{source} must be one value, not {shape}", in_file=True)
    if found:
        return _read(variable, source, found, in_file=True)
    above = key.rpartition(".")[0]
    if above and config.values.get(above):
        return Reading(source, problem=f"{config.path}: {above} must be a mapping", in_file=True)
    return None


def _read(variable: Variable, source: str, text: str, *, in_file: bool = False) -> Reading:
    parser = (in_file and variable.parse_key) or variable.parse
    try:
        return Reading(source, parser(text), in_file=in_file)
    except ValueError as error:
        shown = "…" if variable.secret else repr(_quoted(text))
        return Reading(source, problem=f"{source}={shown}: {error}", in_file=in_file)


def _quoted(text: str) -> str:
    """Return a wrong value as it is told: not all of a long one, and no password of a URL."""
    text = re.sub(r"(?<=://)\S*@", "…@", text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def parse(settings_class: type[T], environ: Mapping[str, str], config: Configuration = NO_FILE) -> T:
    """Build a settings object from an environment and the platform's file.

    What the file has wrong is left to the default, and :func:`left_out` tells it: the
    platform writes that file anew at every start, and must not keep a workspace from one.

    Raises:
        SettingsError: with one sentence for every variable that is missing or wrong.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, variable in variables(settings_class).items():
        reading = read(variable, environ, config)
        if reading is not None and not reading.problem:
            values[name] = reading.value
        elif reading is not None and not reading.in_file:
            problems.append(reading.problem)
        elif variable.required:
            problems.append(f"{variable.name} is required: {variable.help}")
    if problems:
        raise SettingsError(tuple(problems))
    return settings_class(**values)


def left_out(
    settings_classes: Iterable[type], environ: Mapping[str, str], config: Configuration
) -> tuple[str, ...]:
    """Say what in the platform's file is not heeded, and why: a sentence each."""
    readings = (
        read(variable, environ, config)
        for settings_class in settings_classes
        for variable in variables(settings_class).values()
    )
    wrong = (reading.problem for reading in readings if reading is not None and reading.in_file)
    return tuple(dict.fromkeys((*config.problems, *filter(None, wrong))))


def sources(settings_class: type, environ: Mapping[str, str], config: Configuration) -> dict[str, str]:
    """Say of every variable where its value comes from."""
    told = {}
    for variable in variables(settings_class).values():
        reading = read(variable, environ, config)
        told[variable.name] = reading.source if reading is not None and not reading.problem else "default"
    return told


def text(value: str) -> str:
    """Take the value as it is."""
    return value


def short_text(maximum: int) -> Callable[[str], str]:
    """Take the value as it is, if it has no more characters."""

    def parse_short(value: str) -> str:
        if len(value) > maximum:
            raise ValueError(f"must have at most {maximum} characters")
        return _utf8(value)

    return parse_short


def _utf8(value: str) -> str:
    """Refuse bytes of the environment that are no text: what is shown to others must be."""
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("must be UTF-8")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    """Take one of these words."""

    def parse_choice(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return parse_choice


def boolean(value: str) -> bool:
    """Take ``true``/``false``, ``1``/``0``, ``yes``/``no``, ``on``/``off``."""
    match value.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("must be true or false")


def seconds(minimum: float = 0.0, maximum: float | None = None) -> Callable[[str], float]:
    """Take seconds within limits, fractions allowed."""

    def parse_seconds(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError("must be a number of seconds") from None
        if not minimum <= number < float("inf"):
            raise ValueError(f"must be at least {minimum:g} seconds and finite")
        if maximum is not None and number > maximum:
            raise ValueError(f"must be at most {maximum:g} seconds")
        return number

    return parse_seconds


def integer(minimum: int = 0, maximum: int | None = None) -> Callable[[str], int]:
    """Take a whole number within limits."""

    def parse_integer(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if number < minimum or (maximum is not None and number > maximum):
            limit = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
            raise ValueError(f"must be {limit}")
        return number

    return parse_integer


def size(value: str) -> int:
    """Take bytes, more than none, with an optional suffix ``KiB``, ``MiB`` or ``GiB``."""
    match = re.fullmatch(r"0*([1-9]\d*)\s*(|B|KiB|MiB|GiB)", value)
    if match is None:
        raise ValueError("must be a number of bytes, such as 1048576 or 1MiB")
    factor = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[match[2]]
    return int(match[1]) * factor


def words(value: str) -> tuple[str, ...]:
    """Take a comma-separated list."""
    return tuple(word.strip() for word in _utf8(value).split(",") if word.strip())


def path(value: str) -> str:
    """Take an absolute path."""
    if not PurePosixPath(value).is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _workspace_id(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", value):
        raise ValueError("must be lower-case letters, digits and dashes, at most 128")
    return value


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+[^\s]*", _utf8(value)):
        raise ValueError("must be an http or https URL")
    if "@" in value.split("/")[2]:
        raise ValueError("must have no user and password: the agent card shows it to everybody")
    return value.rstrip("/")


_PLATFORM_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[!-~]*)?")


def _platform_url(value: str) -> str:
    found = _PLATFORM_URL.fullmatch(value)
    if found is None or re.search("[?#]", value) or int((found[2] or ":80")[1:]) > 65535:
        raise ValueError("must be an http or https URL of host, port and path")
    return value.rstrip("/")


def _header(value: str) -> str:
    if not re.fullmatch(r"[!-~]{1,512}", value):
        raise ValueError("must be visible ASCII characters without spaces")
    return value


def _delivery_mode(value: str) -> str:
    if value != "push":
        raise ValueError("must be push: this sidecar is called by its platform, it does not ask for messages")
    return value


def _platform_interval(value: str) -> float:
    """Take the platform's interval, which means 5 to 300, as far as it is safe.

    It calls a workspace dead that was silent for 15 s, and its own default is 30.
    """
    return min(max(seconds()(value), 5.0), 10.0)


def _log_level(value: str) -> str:
    """Take a level as any library may call it."""
    level = value.lower()
    return one_of("debug", "info", "warning", "error")(_LEVELS.get(level, level))


_LEVELS = {"trace": "debug", "warn": "warning", "critical": "error", "fatal": "error"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the sidecar can be told. Times are seconds, fractions allowed."""

    workspace_id: str = setting("WORKSPACE_ID", _workspace_id, "Which workspace this container is.")
    adapter: str = setting(
        "WORKSPACE_ADAPTER",
        text,
        "The runtime: a registered name, `module:Class`, or the module that has the one class.",
        default="claude",
        aliases=("ADAPTER_MODULE",),
        keys=("runtime",),
    )
    host: str = setting("WORKSPACE_HOST", text, "The address to listen on.", default="0.0.0.0")
    port: int = setting(
        "WORKSPACE_PORT",
        integer(0, 65535),
        "The port to listen on; 0 takes a free one.",
        default=8000,
        keys=("a2a.port",),
    )
    url: str | None = setting(
        "WORKSPACE_URL",
        _url,
        "The address others reach this workspace at, as the agent card says it.",
        default=None,
        aliases=("MOLECULE_WORKSPACE_URL",),
        shown="`http://<hostname>:<port>`",
    )
    state_dir: str = setting(
        "WORKSPACE_STATE_DIR",
        path,
        "Where the journal lives; it must outlive the container, on a local disk.",
        default="/workspace/.workspace_adapter",
    )
    workdir: str = setting("WORKSPACE_WORKDIR", path, "Where the agent works.", default="/workspace")
    configs_dir: str = setting(
        "CONFIGS_DIR", path, "Where the platform puts its files and secrets.", default="/configs"
    )
    config_path: str | None = setting(
        "WORKSPACE_CONFIG_PATH",
        path,
        "The platform's `config.yaml`, or its directory. What the environment says goes before it.",
        default=None,
        shown="in `CONFIGS_DIR`",
    )
    platform_url: str | None = setting(
        "PLATFORM_URL",
        _platform_url,
        "The platform to register with and send heartbeats to; without one the workspace stands alone.",
        default=None,
    )
    org_id: str | None = setting(
        "WORKSPACE_ORG_ID",
        _header,
        "The tenant, for a platform that wants to be told (`X-Molecule-Org-Id`).",
        default=None,
        aliases=("MOLECULE_ORG_ID",),
    )
    delivery_mode: str = setting(
        "WORKSPACE_DELIVERY_MODE",
        _delivery_mode,
        "How messages come, as it is registered; `push` is the only way.",
        default="push",
        aliases=("MOLECULE_DELIVERY_MODE",),
        keys=("a2a.delivery_mode",),
    )
    heartbeat_interval: float = setting(
        "WORKSPACE_HEARTBEAT_INTERVAL",
        seconds(0.05, 10.0),
        "Longest time between two heartbeats, at most 10; retries scale with it.",
        default=10.0,
        keys=("observability.heartbeat_interval_seconds",),
        parse_key=_platform_interval,
        unit="seconds",
    )
    wedged_after: float = setting(
        "WORKSPACE_WEDGED_AFTER",
        seconds(0.05),
        "How long the event loop may be blocked before heartbeats say that the workspace is wedged.",
        default=30.0,
        unit="seconds",
    )
    notify_after: float = setting(
        "WORKSPACE_NOTIFY_AFTER",
        seconds(),
        "How long an end that no caller heard waits for one, before the user of the platform's canvas"
        " is told through the platform.",
        default=15.0,
        unit="seconds",
    )
    initial_prompt: str | None = setting(
        "WORKSPACE_INITIAL_PROMPT",
        text,
        "The message that the workspace sends itself once, when it begins; never again on the same state"
        " directory.",
        default=None,
        keys=("initial_prompt",),
    )
    idle_prompt: str | None = setting(
        "WORKSPACE_IDLE_PROMPT",
        text,
        "The message that the workspace sends itself whenever it was idle; each costs a model call.",
        default=None,
        keys=("idle_prompt",),
    )
    idle_interval: float = setting(
        "WORKSPACE_IDLE_INTERVAL",
        seconds(0.05),
        "How long the workspace must be idle for that.",
        default=600.0,
        keys=("idle_interval_seconds",),
        unit="seconds",
    )
    max_concurrent_turns: int = setting(
        "WORKSPACE_MAX_CONCURRENT_TURNS", integer(1), "Sessions that may work at once.", default=1
    )
    inbox_limit: int = setting(
        "WORKSPACE_INBOX_LIMIT", integer(1), "Accepted turns that may wait.", default=100
    )
    journal_limit_bytes: int = setting(
        "WORKSPACE_JOURNAL_LIMIT_BYTES",
        size,
        "Size of the journal above which no message is accepted.",
        default=2 << 30,
        unit="bytes",
        shown="2 GiB",
    )
    body_limit_bytes: int = setting(
        "WORKSPACE_BODY_LIMIT_BYTES",
        size,
        "Size above which a request's body is refused.",
        default=16 << 20,
        unit="bytes",
        shown="16 MiB",
    )
    held_limit: int = setting(
        "WORKSPACE_HELD_LIMIT", integer(1), "Requests that may be held open at once.", default=1000
    )
    hold_limit: float = setting(
        "WORKSPACE_HOLD_LIMIT",
        seconds(0.001),
        "How long a caller is held before 503; the turn goes on.",
        default=1500.0,
        unit="seconds",
    )
    drain_cap: float = setting(
        "WORKSPACE_DRAIN_CAP",
        seconds(),
        "How long a drain waits for turns to settle before it acknowledges.",
        default=5.0,
        unit="seconds",
    )
    stop_grace: float = setting(
        "WORKSPACE_STOP_GRACE",
        seconds(),
        "How long runtimes get to end once the stop has come.",
        default=3.0,
        unit="seconds",
    )
    stop_timeout: float = setting(
        "WORKSPACE_STOP_TIMEOUT",
        seconds(0.001),
        "What the container engine gives between SIGTERM and SIGKILL.",
        default=10.0,
        unit="seconds",
    )
    restart_window: float = setting(
        "WORKSPACE_RESTART_WINDOW",
        seconds(0.001),
        "How long after an acknowledged drain the restart may come; then work goes on.",
        default=60.0,
        unit="seconds",
    )
    resume_freshness: float = setting(
        "WORKSPACE_RESUME_FRESHNESS",
        seconds(),
        "Interrupted work silent for longer expires; 0 never.",
        default=86400.0,
        unit="seconds",
    )
    resume_max_attempts: int = setting(
        "WORKSPACE_RESUME_MAX_ATTEMPTS",
        integer(1),
        "Attempts without progress before a turn is suspended.",
        default=3,
    )
    resume_max_total: int = setting(
        "WORKSPACE_RESUME_MAX_TOTAL",
        integer(1),
        "Attempts ever before a turn is suspended.",
        default=20,
    )
    recover_limit: float = setting(
        "WORKSPACE_RECOVER_LIMIT",
        seconds(0.001),
        "How long a runtime may look for evidence of one interrupted turn.",
        default=10.0,
        unit="seconds",
    )
    turn_idle_limit: float = setting(
        "WORKSPACE_TURN_IDLE_LIMIT",
        seconds(0.001),
        "Silence of a runtime, with no tool running, after which its turn fails.",
        default=1800.0,
        unit="seconds",
    )
    require_auth: bool = setting(
        "WORKSPACE_REQUIRE_AUTH",
        boolean,
        "Refuse messages and signals that carry no bearer.",
        default=False,
        aliases=("MOLECULE_A2A_REQUIRE_AUTH",),
    )
    journal_retention: float = setting(
        "WORKSPACE_JOURNAL_RETENTION",
        seconds(0.001),
        "How long a finished turn is kept after its delivery; at most twice as long without.",
        default=604800.0,
        unit="seconds",
    )
    dedupe: str = setting(
        "WORKSPACE_DEDUPE",
        one_of("strict", "until-delivered"),
        "`until-delivered` forgets a message once its answer was written to a live connection:"
        " for conformance kits that reuse ids.",
        default="strict",
    )
    a2a_reply: str = setting(
        "WORKSPACE_A2A_REPLY",
        one_of("auto", "task", "message"),
        "What answers a blocking message: `auto` is a Message for A2A 0.3, a Task for 1.0.",
        default="auto",
    )
    sessions_open: int = setting(
        "WORKSPACE_SESSIONS_OPEN", integer(1), "Sessions kept warm at once.", default=8
    )
    session_idle: float = setting(
        "WORKSPACE_SESSION_IDLE",
        seconds(0.001),
        "How long an idle session stays warm.",
        default=600.0,
        unit="seconds",
    )
    name: str | None = setting(
        "WORKSPACE_NAME",
        short_text(200),
        "How the agent card calls the agent.",
        default=None,
        keys=("name",),
        shown="`WORKSPACE_ID`",
    )
    description: str | None = setting(
        "WORKSPACE_DESCRIPTION",
        short_text(4000),
        "What the agent card says of it.",
        default=None,
        keys=("description",),
        shown="a sentence that names the runtime",
    )
    version: str | None = setting(
        "WORKSPACE_VERSION",
        short_text(100),
        "The agent's version on its card.",
        default=None,
        keys=("version",),
        shown="that of workspace_adapter",
    )
    skills: tuple[str, ...] = setting(
        "WORKSPACE_SKILLS",
        words,
        "Skills the agent card names beside `chat`.",
        default=(),
        keys=("skills",),
    )
    offers_streams: bool = setting(
        "WORKSPACE_A2A_STREAMING",
        boolean,
        "Whether the agent card offers streams; who asks for one gets it.",
        default=True,
        keys=("a2a.streaming",),
    )
    agent_card: str | None = setting(
        "WORKSPACE_AGENT_CARD", path, "A JSON file merged over our agent card.", default=None
    )
    log_level: str = setting(
        "WORKSPACE_LOG_LEVEL",
        _log_level,
        "Least severe log line printed: `debug`, `info`, `warning`, `error`.",
        default="info",
        aliases=("LOG_LEVEL",),
        keys=("observability.log_level",),
    )
    log_format: str = setting(
        "WORKSPACE_LOG_FORMAT", one_of("text", "json"), "`json` for machines.", default="text"
    )
    traces_endpoint: str | None = setting(
        "WORKSPACE_TRACES_ENDPOINT",
        _platform_url,
        "Where traces go by OTLP over HTTP: `http://collector:4318/v1/traces`; needs the extra `otel`.",
        default=None,
        aliases=("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",),
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], config: Configuration = NO_FILE) -> Settings:
        """Parse and check everything.

        Raises:
            SettingsError: with every problem at once.
        """
        settings = parse(cls, environ, config)
        problems = settings.conflicts()
        if problems:
            raise SettingsError(problems)
        return settings

    def conflicts(self) -> tuple[str, ...]:
        """Name every pair of settings that cannot work together."""
        problems = []
        if self.stop_grace + STOP_MARGIN > self.stop_timeout:
            problems.append(
                f"WORKSPACE_STOP_GRACE={self.stop_grace:g} must be at least {STOP_MARGIN:g} s shorter"
                f" than WORKSPACE_STOP_TIMEOUT={self.stop_timeout:g}: the engine kills at the latter"
            )
        for name, value in (
            ("WORKSPACE_DRAIN_CAP", self.drain_cap),
            ("WORKSPACE_STOP_GRACE", self.stop_grace),
        ):
            if self.restart_window <= value:
                problems.append(
                    f"WORKSPACE_RESTART_WINDOW={self.restart_window:g} must be longer than"
                    f" {name}={value:g}: a restart takes at least that long"
                )
        if self.sessions_open < self.max_concurrent_turns:
            problems.append(
                f"WORKSPACE_SESSIONS_OPEN={self.sessions_open} must be at least"
                f" WORKSPACE_MAX_CONCURRENT_TURNS={self.max_concurrent_turns}"
            )
        if self.resume_max_attempts > self.resume_max_total:
            problems.append(
                f"WORKSPACE_RESUME_MAX_ATTEMPTS={self.resume_max_attempts} must not exceed"
                f" WORKSPACE_RESUME_MAX_TOTAL={self.resume_max_total}"
            )
        if self.body_limit_bytes > self.journal_limit_bytes:
            problems.append(
                f"WORKSPACE_BODY_LIMIT_BYTES={self.body_limit_bytes} must not exceed"
                f" WORKSPACE_JOURNAL_LIMIT_BYTES={self.journal_limit_bytes}: one body would fill it"
            )
        if PurePosixPath(self.workdir).is_relative_to(self.state_dir):
            problems.append(
                f"WORKSPACE_WORKDIR={self.workdir} must not lie in WORKSPACE_STATE_DIR={self.state_dir}:"
                " the agent would work among the journal's files"
            )
        return tuple(problems)

    @property
    def term_cap(self) -> float:
        """How long a drain begun by SIGTERM may take: what the engine gives, less the grace."""
        return max(0.0, self.stop_timeout - self.stop_grace - STOP_MARGIN)


STOP_MARGIN = 1.0
"""Seconds of the stop timeout kept for writing refusals and closing the journal."""

_SECRET = re.compile(
    r"(MOLECULE|PLATFORM|WORKSPACE|SHIM)_(?!LLM_).*(TOKEN|SECRET|PASSWORD|KEY)|MOLECULE_CONFIG_RELAY_URI|ADMIN_TOKEN"
)
"""The platform's own; what opens the model (``MOLECULE_LLM_…``) or is the user's, the runtime needs."""


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for runtimes and tools: the platform's secrets are not theirs."""
    return {name: value for name, value in environ.items() if not _SECRET.fullmatch(name)}


def table(*settings_classes: type) -> str:
    """Return the settings as a Markdown table, as the pages print it."""
    listed = [variable for given in settings_classes for variable in variables(given).values()]
    in_file = any(variable.keys for variable in listed)
    heads = ["variable", *(["`config.yaml`"] if in_file else []), "default", "unit", "meaning"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variable in listed:
        names = ", ".join(f"`{name}`" for name in (variable.name, *variable.aliases))
        keys = [", ".join(f"`{key}`" for key in variable.keys)] if in_file else []
        cells = [names, *keys, variable.shown_default, variable.unit, variable.help]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def effective(settings: object) -> dict[str, str]:
    """Return every variable with its value as text, secrets masked."""
    shown = {}
    for name, variable in variables(type(settings)).items():
        value = getattr(settings, name)
        if value is None or value == ():
            shown[variable.name] = ""
        elif variable.secret:
            shown[variable.name] = "********"
        else:
            shown[variable.name] = _plain(value)
    return shown


def _plain(value: object) -> str:
    """Write a value as it would be given."""
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(value)
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)
