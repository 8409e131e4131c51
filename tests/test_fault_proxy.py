"""The faults of the tests' proxy are as documented."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fault_proxy import BOTH, FIN, RESET, TO_CLIENT, TO_SERVER, FaultProxy
from support import eventually

SHORT = 0.3  # for what must not happen: a slow machine cannot make it happen


class Echo:
    """An echo server; `ended` counts the streams that have ended, by FIN or reset."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.ended: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
                self.ended.append(FIN)
                connection.sendall(b"bye")
            except OSError:
                self.ended.append(RESET)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.port) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 10)


def ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return receive(client, len(text))


def receive(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := client.recv(65536)):
        data += more
    return data


def stays_silent(client: socket.socket) -> bool:
    client.settimeout(SHORT)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)
    return False


def test_bytes_go_both_ways_and_connections_are_counted(proxy: FaultProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"one") == b"one"
        large = bytes(range(256)) * 20_000
        sender = threading.Thread(target=other.sendall, args=[large])
        sender.start()
        assert receive(other, len(large)) == large
        sender.join()
        assert (proxy.accepted, len(proxy.connections)) == (2, 2)
        assert [link.forwarded[TO_SERVER] for link in proxy.connections] == [3, len(large)]
    eventually(lambda: not proxy.connections, "connections that were closed are gone")


def test_the_end_of_a_stream_goes_through(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as client:
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 100) == b"lastbye"
    assert echo.ended == [FIN]


@pytest.mark.parametrize("how", [RESET, FIN])
def test_cut_ends_both_sides_as_asked(proxy: FaultProxy, echo: Echo, how: str) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"1") + ask(other, b"2") == b"12"
        assert proxy.cut(how, connection=proxy.connections[0]) == 1
        if how == RESET:
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        else:
            assert one.recv(1) == b""
        eventually(lambda: echo.ended == [how], lambda: echo.ended)
        assert ask(other, b"3") == b"3"
        assert proxy.cut(how) >= 1
        assert how == RESET or other.recv(1) == b""


def test_refuse_lets_connections_live_and_no_new_one_in(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(client, b"2") == b"2"
        proxy.accept()
        with connect(proxy) as again:
            assert ask(again, b"3") == b"3"


def test_refuse_for_a_time_ends_by_itself(proxy: FaultProxy) -> None:
    proxy.refuse(0.05)

    def connects() -> bool:
        with contextlib.suppress(ConnectionRefusedError), connect(proxy) as client:
            return ask(client, b"1") == b"1"
        return False

    eventually(connects, "it accepts again")


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT, BOTH])
def test_stall_holds_bytes_back_and_resume_lets_them_go(proxy: FaultProxy, direction: str) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.stall(direction, later=True)
        client.sendall(b"2")
        assert stays_silent(client)
        with connect(proxy) as later:
            later.sendall(b"3")
            assert stays_silent(later)
            proxy.resume()
            assert receive(client, 1) == b"2"
            assert receive(later, 1) == b"3"


def test_what_a_stall_holds_is_bounded(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.stall(TO_SERVER)
        client.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(64 << 20))


def test_delay_makes_bytes_late_and_keeps_their_order(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.delay(SHORT, TO_CLIENT)
        before = time.monotonic()
        client.sendall(b"1")
        eventually(lambda: [link.waiting[TO_CLIENT] for link in proxy.connections] == [1], "it is on its way back")
        proxy.delay(0.0)
        client.sendall(b"2")
        assert receive(client, 2) == b"12"
        assert time.monotonic() - before >= SHORT


def test_half_close_ends_one_direction(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.half_close(TO_SERVER)
        assert receive(client, 3) == b"bye"
        client.sendall(b"to nobody")
        assert echo.ended == [FIN]


def test_drop_swallows_everything_and_says_nothing(proxy: FaultProxy, echo: Echo) -> None:
    client = connect(proxy)
    with connect(proxy) as other:
        assert ask(client, b"1") + ask(other, b"1") == b"11"
        proxy.drop(connection=proxy.connections[0])
        client.sendall(b"2")
        assert stays_silent(client)
        client.close()
        assert ask(other, b"2") == b"2"
        assert echo.ended == []
        assert len(proxy.connections) == 2
        proxy.drop(later=True)
        with connect(proxy) as later:
            later.sendall(b"3")
            assert stays_silent(later)
        proxy.resume()
        with connect(proxy) as again:
            assert ask(again, b"4") == b"4"


def test_another_server_may_take_the_place(proxy: FaultProxy) -> None:
    other = Echo()
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.target_port = other.port
        with connect(proxy) as later:
            assert ask(later, b"2") == b"2"
            other.close()
    proxy.target_port = other.port
    with pytest.raises(ConnectionResetError), connect(proxy) as nowhere:
        nowhere.recv(1)
    assert proxy.failed == 1


def test_a_direction_that_is_none_is_named(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="direction is 'sideways'; it takes 'to_server', 'to_client' or 'both'"):
        proxy.stall("sideways")
