from __future__ import annotations

import ipaddress
import socket

import aiohttp
import pytest
from yarl import URL

from workspace_adapter.errors import AddressRefused
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.ranges import Ranges, parse_ranges
from workspace_adapter.shim.store.contract import Status, Workspace

ALL = parse_ranges("loopback,private,public")


def workspace(url: str | None = None, provisioner: str = "external") -> Workspace:
    return Workspace(
        id="one",
        status=Status.ONLINE,
        url=url,
        boot_id=None,
        restarting=False,
        card=None,
        created_at=0.0,
        beat_at=None,
        active_tasks=0,
        max_concurrent=1,
        hold_until=0.0,
        report={},
        provisioner=provisioner,
        spec={},
        secret="",
    )


def refusal(address: str, ranges: Ranges) -> str | None:
    return ranges.refusal(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "169.254.1.1",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "2001:db8::1",
        "198.18.0.1",
        "100.64.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "2002:a9fe:a9fe::1",
        "2001:0:1::1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
    ],
)
def test_some_addresses_may_never_be_called(address: str) -> None:
    everything = parse_ranges("loopback,private,public,0.0.0.0/0,::/0")
    assert refusal(address, everything) is not None


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.31.0.1", "private"),
        ("192.168.1.1", "private"),
        ("fd12::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("172.32.0.1", "public"),
        ("8.8.8.8", "public"),
        ("2606:4700::1", "public"),
    ],
)
def test_others_are_called_where_their_kind_is_allowed(address: str, kind: str) -> None:
    assert refusal(address, parse_ranges(kind)) is None
    others = ",".join({"loopback", "private", "public"} - {kind})
    assert kind in str(refusal(address, parse_ranges(others)))


def test_a_network_may_be_named() -> None:
    ranges = parse_ranges("10.1.0.0/16, fd00:1::/32")
    assert refusal("10.1.2.3", ranges) is None
    assert refusal("fd00:1::5", ranges) is None
    assert refusal("10.2.0.1", ranges) is not None


def test_a_word_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match=r"'lan' is neither"):
        parse_ranges("private,lan")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://10.0.0.1/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "10.0.0.1:8000",
        "http://user@10.0.0.1:8000",
        "http://user:secret@10.0.0.1:8000",
        "http://10.0.0.1:8000/?a=b",
        "http://10.0.0.1:8000/#a",
        "http://10.0.0.1\\@169.254.169.254/",
        "http://10.0.0.1 /",
        "http://10.0.0.1\r\nX: y",
        "http://10.0.0.1:99999",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f000001/",
        "http://127.1/",
        "http://127.0.0.1./x",
        "http://10.0.0.1/" + "a" * 2000,
        "http://[fe80::1%25eth0]/",
        "http://ⓔxample.com/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:a9fe:a9fe]/",
    ],
)
def test_what_is_no_plain_url_of_a_workspace_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        Addresses(ALL).url(workspace(url))
    assert "secret" not in str(refused.value)


def test_a_url_is_called_as_it_was_registered_without_a_slash_at_the_end() -> None:
    addresses = Addresses(ALL)
    assert addresses.url(workspace("http://10.0.0.1:8000")) == "http://10.0.0.1:8000"
    assert addresses.url(workspace("https://agent.example.com/a/b/")) == "https://agent.example.com/a/b"
    assert addresses.url(workspace(), "http://[::1]:8000/") == "http://[::1]:8000"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize(
    ("provisioner", "called"),
    [
        ("docker", "http://ws-one:8000"),
        ("command", "http://host.docker.internal:49153"),
        ("external", "http://host.docker.internal:49153"),
        ("process", "http://{host}:49153"),
    ],
)
def test_in_a_container_localhost_is_where_the_workspace_is(host: str, provisioner: str, called: str) -> None:
    registered = workspace(f"http://{host}:49153", provisioner)
    assert Addresses(ALL, in_container=True, network="n").url(registered) == called.format(host=host)
    assert Addresses(ALL).url(registered) == f"http://{host}:49153"


def test_a_container_without_a_shared_network_is_where_the_engine_published_it() -> None:
    registered = workspace("http://127.0.0.1:49153", "docker")
    assert Addresses(ALL, in_container=True).url(registered) == "http://127.0.0.1:49153"


def test_in_a_container_what_has_a_name_keeps_it() -> None:
    assert (
        Addresses(ALL, in_container=True).url(workspace("http://agent:8000", "docker")) == "http://agent:8000"
    )


async def test_a_name_is_resolved_and_its_addresses_are_looked_at_when_it_is_registered() -> None:
    await Addresses(ALL).vet(workspace(), "http://localhost:8000")
    with pytest.raises(AddressRefused, match="loopback"):
        await Addresses(parse_ranges("private")).vet(workspace(), "http://localhost:8000")
    with pytest.raises(AddressRefused, match="cannot be resolved"):
        await Addresses(ALL).vet(workspace(), "http://nobody.invalid:8000")


class Rebound(aiohttp.abc.AbstractResolver):
    """A name server that says something else by the time of the connection."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            {"hostname": host, "host": at, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for at in self._hosts
        ]

    async def close(self) -> None: ...


async def test_a_name_that_resolves_to_something_else_at_the_connection_gets_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = URL(f"http://agent.example.com:{listener.getsockname()[1]}/")
        addresses = Addresses(parse_ranges("private,public"))
        connector = addresses.connector(resolver=Rebound("127.0.0.1"))
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(aiohttp.ClientConnectorError, match="may not be called"):
                await session.get(url)
        with pytest.raises(TimeoutError):
            listener.accept()


async def test_an_address_in_the_url_itself_is_looked_at_at_the_connection_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connector = Addresses(parse_ranges("public")).connector()
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(aiohttp.ClientConnectorError, match="may not be called"):
                await session.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")


async def test_of_several_addresses_one_that_may_be_called_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://agent.example.com:{listener.getsockname()[1]}/"
        connector = Addresses(ALL).connector(resolver=Rebound("169.254.169.254", "127.0.0.1"))
        timeout = aiohttp.ClientTimeout(total=0.3)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            with pytest.raises(TimeoutError):
                await session.get(url)
        listener.settimeout(1)
        listener.accept()[0].close()
