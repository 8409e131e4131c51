"""The ports and addresses that a server listens on."""

import asyncio
import socket
from collections.abc import Callable

import pytest
from servers import quick, serves
from support import WebSocketClient, accepts_connections
from tantor import Tantor

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]


# Ports


def test_port_0_picks_one() -> None:
    server = quick()
    assert server.port == 0
    with server:
        assert server.port != 0


def test_a_taken_port_is_an_error_that_names_host_and_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = quick(port)
        with pytest.raises(OSError, match=rf"127\.0\.0\.1.*{port}"):
            server.start_background()
        with pytest.raises(OSError, match=rf"127\.0\.0\.1.*{port}"):
            asyncio.run(server.start())
        with pytest.raises(OSError, match=rf"127\.0\.0\.1.*{port}"), server:
            pass
        assert not server.is_running
    with server:
        assert serves(server), "once the port is free, the same object serves"


def test_a_host_that_is_none_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        Tantor(0, "no-such-host.invalid").start_background()


@pytest.mark.parametrize("host", ["localhost", "::1", "0.0.0.0", "::"])
def test_hosts_of_every_kind(host: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("IPv6 is missing")
    server = Tantor(0, host, drain_timeout=1)
    try:
        server.start_background()
    except OSError:
        if ":" not in host:
            raise
        pytest.skip("IPv6 is missing")
    try:
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        with socket.create_connection((address, server.port), 10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
    finally:
        asyncio.run(server.stop())


# Several addresses


@pytest.mark.parametrize("host", [["127.0.0.1", "127.0.0.2"], "127.0.0.1, 127.0.0.2"])
def test_several_hosts_share_a_port(make_server: MakeServer, host: object) -> None:
    server = make_server(host=host)
    for address in ("127.0.0.1", "127.0.0.2"):
        assert accepts_connections(server.port, address)
    assert not accepts_connections(server.port, "127.0.0.3")
    asyncio.run(server.stop())
    assert not accepts_connections(server.port or 1, "127.0.0.2")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_every_address_of_a_name_and_of_the_dual_stack_is_listened_on(make_server: MakeServer) -> None:
    for host in ("127.0.0.1,::1", "::"):
        server = make_server(host=host)
        with (
            socket.create_connection(("127.0.0.1", server.port), 10),
            socket.create_connection(("::1", server.port), 10),
        ):
            pass


def test_a_taken_address_among_several_is_named(make_server: MakeServer) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        server = Tantor(port, ["127.0.0.1", "127.0.0.2"])
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.2:{port}"):
            server.start_background()
        assert not accepts_connections(port, "127.0.0.1")
