"""Which addresses may be called, by what they are."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

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

_PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"))
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TUNNELS = tuple(
    map(ipaddress.ip_network, ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "2001::/32", "2002::/16"))
)
"""IPv6 that carries an IPv4 address which a router of somebody's picks out."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Which addresses may be called.

    Metadata services, link-local, multicast, unspecified, documentation and shared
    addresses (100.64.0.0/10) never may.
    """

    kinds: frozenset[str]
    networks: tuple[Network, ...] = ()

    def __str__(self) -> str:
        return ",".join((*sorted(self.kinds), *map(str, self.networks)))

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


USUAL = Ranges(frozenset({"private", "public"}))
"""What may be called where nobody said."""

THIS_MACHINE_TOO = Ranges(frozenset(_KINDS))
"""The same for a shim that itself listens on loopback alone."""


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
