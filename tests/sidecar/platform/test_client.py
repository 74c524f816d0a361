"""The platform's client, against sockets that do what no platform should."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from workspace_adapter.errors import PlatformError
from workspace_adapter.sidecar.platform.client import REPLY_LIMIT, PlatformClient
from workspace_adapter.sidecar.secret_file import Secrets

PATIENCE = 0.5
"""Seconds one exchange may take here."""

Answer = Callable[[socket.socket], None]


class Platform:
    """A listener that reads requests and answers as told."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self.connections += 1
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while request := connection.recv(1 << 20):
                while not request.endswith(b"}"):
                    request += connection.recv(1 << 20)
                self.requests.append(request)
                self._answers.pop(0)(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@contextmanager
def platform(*answers: Answer) -> Iterator[Platform]:
    made = Platform(*answers)
    try:
        yield made
    finally:
        made.close()


def sends(*chunks: bytes, pause: float = 0.0, close: bool = True) -> Answer:
    def answer(connection: socket.socket) -> None:
        for chunk in chunks:
            connection.sendall(chunk)
            time.sleep(pause)
        if close:
            connection.shutdown(socket.SHUT_RDWR)

    return answer


def says(body: bytes | dict[str, object], status: str = "200 OK", *headers: str) -> Answer:
    told = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Length: {len(told)}", *headers))
    return sends(head.encode() + b"\r\n" + told, close=False)


@contextmanager
def client_of(made: Platform | str, configs: Path, *, org_id: str | None = None) -> Iterator[PlatformClient]:
    client = PlatformClient(
        platform_url=made if isinstance(made, str) else made.url,
        workspace_id="ws-test",
        configs_dir=configs,
        timeout=PATIENCE,
        org_id=org_id,
    )
    try:
        yield client
    finally:
        client.close()


def refusal(configs: Path, *answers: Answer) -> PlatformError:
    with (
        platform(*answers) as made,
        client_of(made, configs) as client,
        pytest.raises(PlatformError) as raised,
    ):
        client.heartbeat({})
    assert "PLATFORM_URL=http://127.0.0.1" in str(raised.value)
    assert str(raised.value).isprintable()
    return raised.value


# --- good days --------------------------------------------------------------------------


def test_each_call_goes_where_the_contract_says_with_what_it_wants(tmp_path: Path) -> None:
    (tmp_path / ".auth_token").write_text("the-token\n")
    with (
        platform(*[says({})] * 4) as made,
        client_of(f"{made.url}/base/", tmp_path, org_id="org") as client,
    ):
        client.register({"id": "ws-test"})
        client.heartbeat({"current_task": "ü \ud800"})
        client.activity(activity_type="agent_log", summary="works", metadata={"a": 1})
        client.notify("done")
    firsts = [request.split(b"\r\n")[0].decode() for request in made.requests]
    assert firsts == [
        "POST /base/registry/register HTTP/1.1",
        "POST /base/registry/heartbeat HTTP/1.1",
        "POST /base/workspaces/ws-test/activity HTTP/1.1",
        "POST /base/workspaces/ws-test/notify HTTP/1.1",
    ]
    for request in made.requests:
        assert b"Authorization: Bearer the-token\r\n" in request
        assert b"X-Workspace-ID: ws-test\r\n" in request
        assert b"X-Molecule-Org-Id: org\r\n" in request
        assert b"User-Agent: workspace_adapter/" in request
    bodies = [json.loads(request.split(b"\r\n\r\n", 1)[1]) for request in made.requests]
    assert bodies[1] == {"current_task": "ü \ud800"}
    assert bodies[2] == {"activity_type": "agent_log", "summary": "works", "metadata": {"a": 1}}
    assert made.connections == 1, "one connection serves them all"


def test_a_connection_that_the_platform_has_closed_costs_no_call(tmp_path: Path) -> None:
    closing = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    with platform(closing, closing, closing) as made, client_of(made, tmp_path) as client:
        for _ in range(3):
            client.heartbeat({})
            time.sleep(0.02)  # for the end to arrive
    assert made.connections == 3


def test_no_proxy_of_the_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with platform(says({})) as made, client_of(made, tmp_path) as client:
        client.heartbeat({})


def test_secrets_of_a_reply_are_kept_and_shown_from_then_on(tmp_path: Path) -> None:
    first = says({"auth_token": "t-1", "platform_inbound_secret": "s-1"})
    with platform(first, says({})) as made, client_of(made, tmp_path) as client:
        client.register({})
        client.heartbeat({})
    assert b"Authorization" not in made.requests[0]
    assert b"Authorization: Bearer t-1\r\n" in made.requests[1]
    secrets = Secrets(tmp_path)
    assert (secrets.token.read(), secrets.inbound.read()) == ("t-1", "s-1")


@pytest.mark.parametrize("secret", ["", "a\r\nX-Evil: 1", "ü", "x" * 9999, 7, None, ["x"], {"a": 1}])
def test_a_secret_that_is_none_is_not_kept(tmp_path: Path, secret: object) -> None:
    answer = says({"auth_token": secret, "platform_inbound_secret": secret})
    with platform(answer) as made, client_of(made, tmp_path) as client:
        client.register({})
    assert list(tmp_path.iterdir()) == []


def test_after_a_401_a_new_token_is_tried_once(tmp_path: Path) -> None:
    token = tmp_path / ".auth_token"
    token.write_text("old")

    def provisions(connection: socket.socket) -> None:
        token.write_text("newer")
        says(b"{}", "401 Unauthorized")(connection)

    with platform(provisions, says({"generation": 1})) as made, client_of(made, tmp_path) as client:
        assert client.heartbeat({}) == {"generation": 1}
    assert b"Bearer newer" in made.requests[1]
    error = refusal(tmp_path, says(b"{}", "401 Unauthorized"))
    assert error.status == 401, "with the same token it is not tried again"
    assert ".auth_token" in str(error)


# --- bad days ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (says(b"<html>soon</html>"), 200),
        (says(b"null"), 200),
        (says(b""), 200),
        (says(b"[" * 100_000), 200),
        (says(b'{"a":'), 200),
        (sends(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"a":'), 200),
        (says(b"", "302 Found", "Location: http://127.0.0.1:9/"), 302),
        (says(b"", "204 No Content"), 204),
        (says(b"{}", "500 No"), 500),
        (sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), None),
        (sends(b"SSH-2.0-OpenSSH\r\n"), None),
        (sends(b"\0" * 100_000), None),
        (sends(b""), None),
    ],
)
def test_what_is_no_answer_is_an_error_that_names_the_setting(
    tmp_path: Path, answer: Answer, status: int | None
) -> None:
    assert refusal(tmp_path, answer).status == status


def test_an_endless_answer_is_not_read_to_its_end(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    error = refusal(tmp_path, sends(head, *[b"x" * 65536] * (REPLY_LIMIT // 65536 + 4)))
    assert f"more than {REPLY_LIMIT} bytes" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        sends(close=False),
        sends(*[b"X"] * 40, pause=0.05, close=False),
        sends(b"HTTP/1.1 200 OK\r\nX-A: ", *[b"x"] * 40, pause=0.05, close=False),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", *[b" "] * 40, pause=0.05, close=False),
    ],
    ids=["silence", "a status line in drops", "headers in drops", "a body in drops"],
)
def test_one_deadline_holds_for_the_whole_answer(tmp_path: Path, answer: Answer) -> None:
    began = time.monotonic()
    error = refusal(tmp_path, answer)
    assert error.status is None
    assert "took too long" in str(error)
    assert PATIENCE <= time.monotonic() - began < 3 * PATIENCE


def test_a_refusal_that_comes_before_all_was_sent_is_heard(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                says({"error": "too large"}, "413 Too Large")(connection)
                connection.shutdown(socket.SHUT_RDWR)

        refusing = threading.Thread(target=refuse)
        refusing.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with client_of(url, tmp_path) as client, pytest.raises(PlatformError) as raised:
            client.notify("x" * 20_000_000)
        refusing.join()
    assert raised.value.status == 413


def test_the_reply_that_may_bring_the_only_token_is_waited_for_longer(tmp_path: Path) -> None:
    def late(connection: socket.socket) -> None:
        time.sleep(2 * PATIENCE)
        says({"auth_token": "the-only-one"})(connection)

    with platform(late, late) as made, client_of(made.url, tmp_path) as client:
        client.register({})
        assert Secrets(tmp_path).token.read() == "the-only-one"
        with pytest.raises(PlatformError, match="took too long"):
            client.register({})


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "http://name.invalid", "http://a..b", "https://127.0.0.1:1", "http://[::1]:1"],
)
def test_nobody_there_is_an_error_without_a_status(tmp_path: Path, url: str) -> None:
    with client_of(url, tmp_path) as client, pytest.raises(PlatformError, match="gave no answer") as raised:
        client.heartbeat({})
    assert raised.value.status is None
    assert url in str(raised.value)


def test_a_host_is_reached_though_its_first_address_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with platform(says({})) as made, socket.socket() as silent:
        port = made.port
        silent.bind(("127.0.0.2", port))
        silent.listen(0)
        waiting = [socket.socket() for _ in range(3)]  # with its backlog full, it answers nobody
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.2", port))
        ask = socket.getaddrinfo

        def two(host: str, port: int, *args: Any, **more: Any) -> list[Any]:
            names = ("127.0.0.2", "127.0.0.1") if host == "two.test" else (host,)
            return [found for name in names for found in ask(name, port, *args, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        with client_of(f"http://two.test:{port}", tmp_path) as client:
            assert client.heartbeat({}) == {}
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (says(b"{}", "429 Too Many", "Retry-After: 7"), 7.0),
        (says({"retry_after": 15}, "503 No"), 15.0),
        (says(b"{}", "503 No", "Retry-After: 99999999"), 3600.0),
        (says(b"{}", "503 No", "Retry-After: -1"), None),
        (says(b"{}", "503 No", "Retry-After: nan"), None),
        (says(b"{}", "503 No", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"), None),
        (says({"retry_after": 10**400}, "503 No"), None),
        (says(b"{}", "503 No"), None),
    ],
)
def test_what_the_platform_asks_us_to_wait_is_passed_on(
    tmp_path: Path, answer: Answer, seconds: float | None
) -> None:
    assert refusal(tmp_path, answer).retry_after == seconds


def test_an_error_repeats_the_platforms_words_and_never_a_secret(tmp_path: Path) -> None:
    (tmp_path / ".auth_token").write_text("the-token")
    (tmp_path / ".platform_inbound_secret").write_text("the-secret")
    words = "no room\nfor the-token or the-secret " + "x" * 5000
    text = str(refusal(tmp_path, says({"error": words}, "400 No")))
    assert "no room for … or …" in text
    assert "the-token" not in text
    assert "the-secret" not in text
    assert len(text) < 600
    cut = str(refusal(tmp_path, says({"error": "x" * 195 + "the-token"}, "400 No")))
    assert "the-" not in cut
