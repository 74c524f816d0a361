from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPMessage
from pathlib import Path

import pytest

from workspace_adapter.sidecar.doctor import asking

from ...conftest import require


@contextmanager
def listener(says: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Somebody who says one thing to whoever connects."""

    def speak() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    if tls is not None:
                        connection = tls.wrap_socket(connection, server_side=True)
                    connection.recv(4096)
                    connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        speaker = threading.Thread(target=speak)
        speaker.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            speaker.join()


@pytest.mark.parametrize(
    ("scheme", "says", "words"),
    [
        ("http", b"", "the connection was closed without an answer"),
        ("http", b"SSH-2.0-OpenSSH_9.2\r\n", "what answers speaks no HTTP"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "no TLS is spoken there"),
    ],
)
def test_why_there_was_no_answer_is_said(scheme: str, says: bytes, words: str) -> None:
    with listener(says) as port, pytest.raises(asking.NoAnswer, match=words) as told:
        asking.get(f"{scheme}://127.0.0.1:{port}/", {})
    assert told.value.heard is (scheme == "http")


def test_a_certificate_that_nobody_vouches_for_is_named(tmp_path: Path) -> None:
    require(shutil.which("openssl") is not None, "openssl is not installed")
    made = "req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with listener(b"", tls) as port, pytest.raises(asking.NoAnswer, match=r"not trusted \(self.signed cert"):
        asking.get(f"https://127.0.0.1:{port}/", {})


def test_nobody_listening_no_such_name_and_no_answer_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        with pytest.raises(asking.NoAnswer, match=r"no answer within 0\.1 s"):
            asking.get(f"http://127.0.0.1:{port}/", {}, patience=0.1)
    with pytest.raises(asking.NoAnswer, match="Connection refused") as told:
        asking.get(f"http://127.0.0.1:{port}/", {})
    assert told.value.refused
    with pytest.raises(asking.NoAnswer, match="does not resolve"):
        asking.get("http://name.invalid/", {})
    with pytest.raises(asking.NoAnswer):
        asking.get("http://[::1/", {})


def test_an_answer_says_its_status_its_words_and_its_time() -> None:
    body = b'{"error": "no\\nsuch   workspace"}'
    date = "Date: Thu, 01 Jan 1970 00:01:40 GMT"
    head = f"HTTP/1.1 404 Not Found\r\n{date}\r\nContent-Length: {len(body)}\r\n\r\n"
    with listener(head.encode() + body) as port:
        reply = asking.get(f"http://127.0.0.1:{port}/path?limit=1", {"X-Workspace-ID": "ws"})
    assert (reply.status, reply.error(), reply.date()) == (404, "no such workspace", 100.0)


def test_of_a_secret_that_is_repeated_not_even_half_is_told() -> None:
    body = b'{"error": "' + b"x" * 195 + b'the-token"}'
    reply = asking.Reply(400, HTTPMessage(), body)
    assert reply.error(without="the-token") == "x" * 195 + "…"
