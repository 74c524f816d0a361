"""The port, taken before anything slow is loaded."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> socket.socket:
    """Take the port; who connects from now on is kept by the kernel until somebody serves.

    Raises:
        OSError: it is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    listener.setblocking(False)
    # asyncio sets it only on sockets whose protocol number says TCP; without it a response
    # in two writes waits 40 ms for the caller's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
