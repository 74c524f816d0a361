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
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio
from yarl import URL

from ..errors import AddressRefused
from .store.contract import Workspace

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_RESOLVE = 5.0
"""Seconds a name may take at registration."""

_KINDS = ("loopback", "private", "public")

_METADATA = tuple(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
        ),
    )
)
"""Where clouds hand out credentials to whoever asks; some stand among private or public addresses."""

_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TUNNELS = tuple(map(ipaddress.ip_network, ("::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")))
"""IPv6 that carries an IPv4 address which a router of somebody's picks out."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Which addresses may be called.

    Metadata services, link-local, multicast, unspecified, documentation and shared
    addresses (100.64.0.0/10) never may.
    """

    kinds: frozenset[str]
    networks: tuple[Network, ...] = ()

    def refusal(self, address: Address) -> str | None:
        """Say why an address may not be called; ``None`` when it may."""
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return self.refusal(address.ipv4_mapped)
            if address in _NAT64:
                return self.refusal(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        kind = _kind(address)
        if kind not in _KINDS:
            return f"{address} is {kind}"
        if kind in self.kinds or any(address in network for network in self.networks):
            return None
        return f"{address} is {kind}, and SHIM_WORKSPACE_ADDRESSES has neither {kind} nor a network with it"


def parse_ranges(text: str) -> Ranges:
    """Read ``SHIM_WORKSPACE_ADDRESSES``: ``loopback``, ``private``, ``public`` and networks, by commas.

    Raises:
        ValueError: with a sentence.
    """
    kinds, networks = set[str](), list[Network]()
    for word in filter(None, map(str.strip, text.split(","))):
        if word in _KINDS:
            kinds.add(word)
            continue
        try:
            networks.append(ipaddress.ip_network(word))
        except ValueError:
            raise ValueError(
                f"{word!r} is neither loopback, private nor public, nor a network such as 10.1.0.0/16"
            ) from None
    return Ranges(frozenset(kinds), tuple(networks))


def usual_ranges(host: str) -> Ranges:
    """Return what may be called where nobody said: loopback too when the shim itself listens there alone."""
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    return Ranges(frozenset(_KINDS if alone else _KINDS[1:]))


def _kind(address: Address) -> str:
    """Return one of ``_KINDS``, or words for what is never called."""
    if address in _METADATA:
        return "a metadata service"
    if address.is_loopback:
        return "loopback"
    for what in ("unspecified", "multicast"):
        if getattr(address, f"is_{what}"):
            return what
    if address.is_link_local:
        return "link-local"
    if any(address in network for network in _TUNNELS):
        return "an IPv4 address within IPv6"
    if any(address in network for network in _PRIVATE):
        return "private"
    return "public" if address.is_global else "reserved"


def container_name(workspace_id: str) -> str:
    """Return what the container of a workspace is called."""
    return f"ws-{workspace_id}"


class Addresses:
    """Checks and translates what workspaces register.

    Args:
        ranges: which addresses may be called.
        in_container: the shim runs in a container: what a workspace calls ``localhost`` is elsewhere.
    """

    def __init__(self, ranges: Ranges, *, in_container: bool = False) -> None:
        self.ranges = ranges
        self._in_container = in_container

    def url(self, workspace: Workspace, url: str | None = None) -> str:
        """Return the URL to call for a workspace, without a slash at the end.

        Args:
            url: what it registers; by default what it registered.

        Raises:
            AddressRefused: it may not be called. Names are looked at by :meth:`vet` and at the connection.
        """
        parsed = _parsed(workspace.url if url is None else url)
        if self._in_container and _is_local(parsed):
            parsed = _from_container(parsed, workspace)
        if (literal := _literal(parsed)) and (why := self.ranges.refusal(literal)):
            raise AddressRefused(f"the URL {parsed} may not be called: {why}")
        return str(parsed).rstrip("/")

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


def _from_container(url: URL, workspace: Workspace) -> URL:
    """Return where a workspace that calls itself ``localhost`` is, seen from the shim's container."""
    match workspace.provisioner:
        case "process":  # in the same container
            return url
        case "docker":
            return url.with_host(container_name(workspace.id)).with_port(8000)
        case _:
            return url.with_host("host.docker.internal")
