"""The socket that is taken before anything slow."""

from __future__ import annotations

import socket

from workspace_adapter.port import bind


def test_a_response_in_two_writes_does_not_wait_for_an_acknowledgement() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
