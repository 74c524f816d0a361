"""Which addresses the shim may call: what a workspace registers is not trusted with our network.

A URL is checked when it is registered, and each address once more when a socket is made
for it, so a name that resolves to something else by then gets nowhere. There is no
cache of URLs: a dispatch reads its workspace from the store, which has the last one.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Any

import aiohttp
import anyio
from yarl import URL

from ..errors import AddressRefused
from .ranges import Address, Ranges
from .store.contract import Workspace

_RESOLVE = 5.0
"""Seconds a name may take at registration."""

_LONGEST = 2000
"""Characters of a URL; each registration is logged with its own."""

_REMEMBERED = 10_000
"""URLs that are remembered as read."""


def container_name(workspace_id: str) -> str:
    """Return what the container of a workspace is called."""
    return f"ws-{workspace_id}"


class Addresses:
    """Checks and translates what workspaces register.

    Args:
        ranges: which addresses may be called.
        in_container: the shim runs in a container: what a workspace calls ``localhost`` is elsewhere.
        network: the engine's network that it shares with the containers it starts, where there is one.
    """

    def __init__(self, ranges: Ranges, *, in_container: bool = False, network: str | None = None) -> None:
        self.ranges = ranges
        self._in_container = in_container
        self._network = network
        self._called: dict[tuple[str, str | None], str] = {}
        """URLs that may be called: reading one takes longer than the rest of a call."""

    def url(self, workspace: Workspace, url: str | None = None) -> str:
        """Return the URL to call for a workspace, without a slash at the end.

        Args:
            url: what it registers; by default what it registered.

        Raises:
            AddressRefused: it may not be called. Names are looked at by :meth:`vet` and at the connection.
        """
        wanted = workspace.url if url is None else url
        if (called := self._called.get((workspace.id, wanted))) is not None:
            return called
        parsed = _parsed(wanted)
        if self._in_container and _is_local(parsed):
            parsed = self._from_container(parsed, workspace)
        if (literal := _literal(parsed)) and (why := self.ranges.refusal(literal)):
            raise AddressRefused(f"the URL {parsed} may not be called: {why}")
        if len(self._called) >= _REMEMBERED:
            self._called.clear()
        called = self._called[workspace.id, wanted] = str(parsed).rstrip("/")
        return called

    async def vet(self, workspace: Workspace, url: str) -> None:
        """Check what a workspace registers, its name's addresses too.

        Raises:
            AddressRefused: it may not be called; its text is for the workspace's log.
        """
        called = URL(self.url(workspace, url))
        host, port = called.host or "", called.port
        try:
            with anyio.fail_after(_RESOLVE):
                found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise AddressRefused(
                f"the host {host} of {url} cannot be resolved by the shim: {error}"
            ) from None
        whys = [self.ranges.refusal(_address(sockaddr)) for *_, sockaddr in found]
        if all(whys):
            raise AddressRefused(f"the URL {url} may not be called: {whys[0]}")

    def connector(self, **options: Any) -> aiohttp.TCPConnector:
        """Return a connector that makes no socket for an address which may not be called.

        Args:
            options: further ones of aiohttp's.
        """
        return aiohttp.TCPConnector(socket_factory=self._socket, **options)

    def _from_container(self, url: URL, workspace: Workspace) -> URL:
        """Return where a workspace that calls itself ``localhost`` is, seen from the shim's container."""
        match workspace.provisioner:
            case "process":  # in the same container
                return url
            case "docker":  # without a network its port is published where the engine is: beside us
                shared = workspace.spec.get("network") or self._network
                return url.with_host(container_name(workspace.id)).with_port(8000) if shared else url
            case _:
                return url.with_host("host.docker.internal")

    def _socket(self, info: Any) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        if why := self.ranges.refusal(_address(sockaddr)):
            raise PermissionError(errno.EACCES, f"it may not be called: {why}")
        return socket.socket(family, kind, protocol)


def _address(sockaddr: Any) -> Address:
    return ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])


def _parsed(text: str | None) -> URL:
    """Read a workspace's URL.

    Raises:
        AddressRefused: it is none that could be one.
    """
    if not text:
        raise AddressRefused("the workspace has no URL: it never registered one")
    shown = re.sub(r"(?<=://)[^/]*@", "…@", text[:200])
    if len(text) > _LONGEST:
        raise AddressRefused(f"the URL {shown!r}… is longer than {_LONGEST} characters")
    if not text.isascii() or re.search(r"[\s\\\x00-\x1f\x7f]", text):
        raise AddressRefused(f"the URL {shown!r} has a character that no URL has")
    try:
        url = URL(text)
        host = url.host
    except ValueError as error:
        raise AddressRefused(f"the URL {shown!r} cannot be read: {error}") from None
    if url.scheme not in ("http", "https") or not host:
        raise AddressRefused(f"the URL {shown!r} must begin with http:// or https:// and name a host")
    if url.user is not None or url.password is not None:
        raise AddressRefused(f"the URL {shown!r} must not hold a name or a password")
    if url.query_string or url.fragment:
        raise AddressRefused(f"the URL {shown!r} must end with its path")
    if "%" in host:
        raise AddressRefused(f"the URL {shown!r} must not name a zone")
    if not _literal(url) and re.fullmatch(r"(0x[0-9a-f]*|\d+)", host.rstrip(".").rpartition(".")[2], re.I):
        raise AddressRefused(
            f"the URL {shown!r} writes an address in an unusual way; write 192.0.2.1 or [::1]"
        )
    return url


def _literal(url: URL) -> Address | None:
    try:
        return ipaddress.ip_address(url.host or "")
    except ValueError:
        return None


def _is_local(url: URL) -> bool:
    literal = _literal(url)
    return url.host == "localhost" if literal is None else literal.is_loopback
