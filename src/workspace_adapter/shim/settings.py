"""Every setting of the shim: its variable, parser, sentence, unit and default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import PurePosixPath

from ..errors import SettingsError
from ..queueing import Rules
from ..settings import boolean, integer, one_of, parse, path, seconds, setting, size, text, variables
from .ranges import THIS_MACHINE_TOO, USUAL, Ranges, parse_ranges

_RULES = Rules()
_TOKEN_LENGTH = 16
_HTTP_URL = re.compile(r"https?://[^\s/?#@]+(/[!-~]*)?")


_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{1,5})?")


def _database_url(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("postgres", "postgresql"):
        raise ValueError("must be a postgresql:// URL; without one SQLite is used, in SHIM_STATE_DIR")
    hosts = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if not all(_HOST_AND_PORT.fullmatch(host) for host in hosts.split(",")):
        raise ValueError(
            "names a port that is no number; in a name or password the signs : / ? # @ % must be written as"
            " %3A %2F %3F %23 %40 %25"
        )
    return value


def _admin_token(value: str) -> str:
    if len(value) < _TOKEN_LENGTH or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(
            f"must have at least {_TOKEN_LENGTH} characters, ASCII and no spaces: `openssl rand -hex 32`"
            " makes a good one"
        )
    return value


def _http_url(value: str) -> str:
    if not _HTTP_URL.fullmatch(value):
        raise ValueError("must be an http or https URL of host, port and path")
    return value.rstrip("/")


def _ranges(value: str) -> str:
    parse_ranges(value)
    return value


@dataclass(frozen=True, kw_only=True)
class ShimSettings:
    """The shim's configuration, checked as a whole."""

    host: str = setting(
        "SHIM_HOST",
        text,
        "The address to listen on; any other than this machine's own needs `SHIM_ADMIN_TOKEN`.",
        default="127.0.0.1",
    )
    port: int = setting(
        "SHIM_PORT", integer(0, 65535), "The port to listen on; 0 takes a free one.", default=8080
    )
    url: str | None = setting(
        "SHIM_URL",
        _http_url,
        "The address at which workspaces that the shim starts reach it.",
        default=None,
        shown="`http://<SHIM_HOST>:<SHIM_PORT>`",
    )
    state_dir: str | None = setting(
        "SHIM_STATE_DIR",
        path,
        "Where SQLite's file and the logs of workspaces that run as processes lie; on a local disk.",
        default=None,
        shown="`~/.workspace_adapter/shim`",
    )
    database_url: str | None = setting(
        "SHIM_DATABASE_URL",
        _database_url,
        "PostgreSQL, for any number of replicas: `postgresql://user:password@host/database`.",
        default=None,
        shown="SQLite in `SHIM_STATE_DIR`",
        secret=True,
    )
    admin_token: str | None = setting(
        "SHIM_ADMIN_TOKEN",
        _admin_token,
        "The bearer of the operator's calls. Without one, only this machine is served, and whoever asks is"
        " the operator.",
        default=None,
        secret=True,
    )
    hold_seconds: float = setting(
        "SHIM_HOLD_SECONDS",
        seconds(),
        "How long a caller is held open before 202; its message stays queued.",
        default=600.0,
        unit="seconds",
    )
    held_limit: int = setting(
        "SHIM_HELD_LIMIT", integer(1), "Callers that may be held open at once.", default=10_000
    )
    body_limit_bytes: int = setting(
        "SHIM_BODY_LIMIT_BYTES",
        size,
        "Size above which a request's body is refused.",
        default=16 << 20,
        unit="bytes",
        shown="16 MiB",
    )
    answer_limit_bytes: int = setting(
        "SHIM_ANSWER_LIMIT_BYTES",
        size,
        "Size above which a workspace's answer is not taken.",
        default=64 << 20,
        unit="bytes",
        shown="64 MiB",
    )
    rate_limit: int = setting(
        "SHIM_RATE_LIMIT",
        integer(0),
        "Requests a minute that one caller may make; registrations and heartbeats are not counted."
        " 0 is no limit.",
        default=600,
    )
    queue_limit: int = setting(
        "SHIM_QUEUE_LIMIT", integer(1), "Messages that may wait for one workspace.", default=_RULES.depth_cap
    )
    retention: float = setting(
        "SHIM_RETENTION",
        seconds(0.001),
        "How long an ended message is kept, and with it what is known of it when it is sent again.",
        default=_RULES.retention,
        unit="seconds",
    )
    priority_weight: float = setting(
        "SHIM_PRIORITY_WEIGHT",
        seconds(),
        "How much sooner one step of priority makes a message come.",
        default=_RULES.priority_weight,
        unit="seconds",
    )
    strikes: int = setting(
        "SHIM_STRIKES", integer(1), "Failures that make a message a dead letter.", default=_RULES.strikes
    )
    lease: float = setting(
        "SHIM_LEASE",
        seconds(0.001),
        "How long a replica that says nothing more keeps the messages it dispatches.",
        default=_RULES.lease,
        unit="seconds",
    )
    renewal: float = setting(
        "SHIM_LEASE_RENEWAL",
        seconds(0.001),
        "How often a replica renews them.",
        default=_RULES.renewal,
        unit="seconds",
    )
    connect_timeout: float = setting(
        "SHIM_CONNECT_TIMEOUT",
        seconds(0.001),
        "How long a connection to a workspace may take.",
        default=10.0,
        unit="seconds",
    )
    dispatch_deadline: float = setting(
        "SHIM_DISPATCH_DEADLINE",
        seconds(0.001),
        "How long a workspace may take for one answer; then it is asked again for the same message.",
        default=1800.0,
        unit="seconds",
    )
    dispatches: int = setting(
        "SHIM_DISPATCHES",
        integer(1),
        "Messages that one replica has sent at once and waits for; no workspace may have more of them than"
        " are still free.",
        default=1000,
    )
    sweep_interval: float = setting(
        "SHIM_SWEEP_INTERVAL",
        seconds(0.01),
        "How often the queue is looked through for what nobody rang for.",
        default=1.0,
        unit="seconds",
    )
    offline_after: float = setting(
        "SHIM_OFFLINE_AFTER",
        seconds(0.1),
        "Silence after which a workspace counts as offline; ours beat every 10 seconds.",
        default=30.0,
        unit="seconds",
    )
    stranded_after: float = setting(
        "SHIM_STRANDED_AFTER",
        seconds(),
        "How long messages may wait for a workspace that is not there, before an alert.",
        default=60.0,
        unit="seconds",
    )
    alert_command: str | None = setting(
        "SHIM_ALERT_COMMAND",
        path,
        "A program that is run for an alert, with the JSON of it on standard input.",
        default=None,
    )
    alert_url: str | None = setting(
        "SHIM_ALERT_URL", _http_url, "Where an alert is posted to, as JSON.", default=None
    )
    drain_seconds: float = setting(
        "SHIM_DRAIN_SECONDS",
        seconds(),
        "How long a restart waits for the workspace to say that it is safe to stop.",
        default=60.0,
        unit="seconds",
    )
    stop_grace: float = setting(
        "SHIM_STOP_GRACE",
        seconds(),
        "What a workspace gets between SIGTERM and SIGKILL.",
        default=15.0,
        unit="seconds",
    )
    start_timeout: float = setting(
        "SHIM_START_TIMEOUT",
        seconds(0.001),
        "How long a started workspace may take to register.",
        default=120.0,
        unit="seconds",
    )
    workspace_addresses: str | None = setting(
        "SHIM_WORKSPACE_ADDRESSES",
        _ranges,
        "Where a workspace may be called: `loopback`, `private`, `public` and networks such as `10.1.0.0/16`."
        " Link-local addresses and those of cloud metadata never.",
        default=None,
        shown="`private,public`, and `loopback` while `SHIM_HOST` is this machine's own",
    )
    in_docker: bool | None = setting(
        "SHIM_IN_DOCKER",
        boolean,
        "Whether the shim runs in a container, where a workspace's `localhost` is not its own.",
        default=None,
        shown="looked for",
    )
    docker_host: str = setting(
        "SHIM_DOCKER_HOST",
        text,
        "The engine that the `docker` provisioner speaks to.",
        default="unix:///var/run/docker.sock",
        aliases=("DOCKER_HOST",),
    )
    docker_network: str | None = setting(
        "SHIM_DOCKER_NETWORK",
        text,
        "The engine's network that the shim shares with the containers it starts.",
        default=None,
        shown="ports are published on this machine's loopback",
    )
    provisioner_command: str | None = setting(
        "SHIM_PROVISIONER_COMMAND",
        path,
        "The program that the `command` provisioner runs.",
        default=None,
    )
    log_level: str = setting(
        "SHIM_LOG_LEVEL",
        one_of("debug", "info", "warning", "error"),
        "Least severe log line printed.",
        default="info",
        aliases=("LOG_LEVEL",),
    )
    log_format: str = setting(
        "SHIM_LOG_FORMAT", one_of("text", "json"), "`json` for machines.", default="text"
    )
    home: str = field(default="")
    """Of whoever runs the shim: where the state directory is by default."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> ShimSettings:
        """Parse and check everything.

        Raises:
            SettingsError: with every problem at once.
        """
        settings = replace(parse(cls, environ), home=environ.get("HOME", ""))
        problems = settings.conflicts()
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach the address that is listened on."""
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def directory(self) -> PurePosixPath:
        """Where the state lies."""
        return PurePosixPath(self.state_dir or f"{self.home}/.workspace_adapter/shim")

    @property
    def reach(self) -> Ranges:
        """Where a workspace may be called."""
        if self.workspace_addresses is not None:
            return parse_ranges(self.workspace_addresses)
        return USUAL if self.is_public else THIS_MACHINE_TOO

    @property
    def rules(self) -> Rules:
        """The queue's numbers."""
        return Rules(
            strikes=self.strikes,
            lease=self.lease,
            renewal=self.renewal,
            depth_cap=self.queue_limit,
            retention=self.retention,
            priority_weight=self.priority_weight,
        )

    def conflicts(self) -> tuple[str, ...]:
        """Name every pair of settings that cannot work together."""
        problems = []
        if self.is_public and self.admin_token is None:
            problems.append(
                f"SHIM_HOST={self.host} can be reached from other machines, so SHIM_ADMIN_TOKEN must be set:"
                " `openssl rand -hex 32` makes one. Or leave SHIM_HOST at 127.0.0.1"
            )
        if self.lease <= 2 * self.renewal:
            problems.append(
                f"SHIM_LEASE={self.lease:g} must be longer than two times"
                f" SHIM_LEASE_RENEWAL={self.renewal:g}: a renewal that comes late must not lose it"
            )
        if self.offline_after <= 2 * self.sweep_interval:
            problems.append(
                f"SHIM_OFFLINE_AFTER={self.offline_after:g} must be longer than two times"
                f" SHIM_SWEEP_INTERVAL={self.sweep_interval:g}: silence is looked for that often"
            )
        return tuple(problems)


def unknown(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables that look like ours and are none: a typing error, most likely."""
    known = {n for variable in variables(ShimSettings).values() for n in (variable.name, *variable.aliases)}
    return tuple(sorted(name for name in environ if name.startswith("SHIM_") and name not in known))
