"""Bounds of what clients may have the process hold before they have sent anything whole."""

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import script
from support import (
    CONTINUATION,
    PING,
    TEXT,
    WebSocketClient,
    allow_descriptors,
    encode_frame,
    eventually,
    fill_socket,
    handshake_request,
)
from tantor import Tantor

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]

FRAME = encode_frame(TEXT, b"x" * 200_000)


def open_socket(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=15)


def thread_states(pid: int) -> list[str]:
    """The state of each thread of a process, as Linux names it: R, S, T for stopped, and so on."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    # the name, in parentheses, may contain spaces
    return [stat.read_text().rpartition(")")[2].split()[0] for stat in stats]


def test_unfinished_messages_share_one_budget_and_the_largest_go_first(
    make_server: MakeServer, connect: Connect
) -> None:
    limit = 2 << 20
    server = make_server(max_unfinished_bytes=limit)
    honest, small = connect(server), connect(server)
    small.send_raw(FRAME[:1000])
    holders = [connect(server) for _ in range(40)]
    for client in holders:
        client.send_raw(FRAME[:150_000])
    eventually(lambda: server.stats()["disconnects"].get("input_overload", 0) >= 20, server.stats)
    eventually(lambda: 0 < server.stats()["unfinished_bytes"] <= limit, server.stats)
    ended = [client for client in holders if client.client_id not in server.connections]
    assert {client.wait_closed() for client in ended} == {3015}
    assert small.client_id in server.connections
    assert honest.ask("ping")["pong"] is True
    # those that were left can still finish
    left = next(client for client in holders if client.client_id in server.connections)
    left.send_raw(FRAME[150_000:])
    left.receive_until(code=101)
    for client in [*holders, small]:
        client.close()
    eventually(lambda: server.stats()["unfinished_bytes"] == 0, server.stats)


def test_unfinished_request_heads_count_in_the_same_budget(make_server: MakeServer, connect: Connect) -> None:
    limit = 1 << 16
    server = make_server(max_unfinished_bytes=limit)
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * 15_000
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(server.port)) for _ in range(20)]
        for each in sockets:
            each.sendall(head)
        eventually(lambda: server.stats()["handshakes_shed"] >= 10, server.stats)
        eventually(lambda: server.stats()["unfinished_bytes"] <= limit, server.stats)
        assert connect(server).ask("ping")["pong"] is True


@pytest.mark.parametrize("kind", ["a frame", "fragments", "a message over the limit"])
def test_a_message_that_makes_no_progress_ends_its_connection(
    make_server: MakeServer, connect: Connect, kind: str
) -> None:
    server = make_server(message_timeout=0.3, min_message_rate=1 << 20)
    client, honest = connect(server), connect(server)
    begun = {
        "a frame": FRAME[:1000],
        "fragments": encode_frame(TEXT, b"x", fin=False),
        "a message over the limit": encode_frame(TEXT, b"x" * (2 << 20))[:1000],
    }
    client.send_raw(begun[kind])
    rest = iter(FRAME[1000:])

    def is_closed() -> bool:
        # a byte now and then, or a ping between fragments, is no progress
        client.send_raw(encode_frame(PING, b"") if kind == "fragments" else bytes([next(rest)]))
        return server.stats()["disconnects"].get("input_timeout") == 1

    eventually(is_closed, server.stats)
    assert client.wait_closed() == 3016
    assert honest.ask("ping")["pong"] is True
    assert server.stats()["unfinished_bytes"] == 0


def test_a_long_message_at_an_honest_pace_arrives(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(message_timeout=0.2, min_message_rate=1000)
    client = connect(server)
    begun = server.stats()["uptime"]
    client.send_raw(encode_frame(TEXT, b"x" * 2000, fin=False))
    for step in range(10):
        eventually(lambda step=step: server.stats()["uptime"] > begun + 0.1 * step, server.stats)
        client.send_raw(encode_frame(CONTINUATION, b"x" * 2000, fin=False))
    client.send_raw(encode_frame(CONTINUATION, b""))
    client.receive_until(code=101)


def test_half_open_connections_are_bounded_and_the_oldest_go_first(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_handshakes=40, shards=2)
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(server.port)) for _ in range(100)]
        eventually(lambda: server.stats()["handshakes_shed"] >= 60, server.stats)
        assert server.stats()["handshakes"] <= 40
        assert sockets[0].recv(1) == b""
        assert connect(server).ask("ping")["pong"] is True
        sockets[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            sockets[-1].recv(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the state of threads is read as Linux tells it")
def test_handshakes_whose_request_head_has_arrived_are_not_closed_to_make_room(tmp_path: Path) -> None:
    source = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from tantor import Tantor
with Tantor(0, "127.0.0.1", max_handshakes=64, shards=1) as server:
    print("port", server.port)
    while True:
        signal.sigwait({signal.SIGUSR1})
        print("shed", server.stats()["handshakes_shed"])
"""
    count = 1500
    allow_descriptors(count + 200)
    with script(source, tmp_path) as server, ExitStack() as stack:
        port = int(server.wait_for_line("port "))
        # all heads are there before the server reads the first
        server.process.send_signal(signal.SIGSTOP)
        eventually(lambda: set(thread_states(server.process.pid)) == {"T"}, "the server was not stopped", timeout=60)
        sockets = [stack.enter_context(open_socket(port)) for _ in range(count)]
        for each in sockets:
            each.sendall(handshake_request(port, "/"))
        server.process.send_signal(signal.SIGCONT)
        answers = Counter(each.recv(12) for each in sockets)
        server.process.send_signal(signal.SIGUSR1)
        assert (answers, server.wait_for_line("shed ")) == ({b"HTTP/1.1 101": count}, "0")


@pytest.mark.system_buffers
def test_a_flood_of_handshakes_does_not_cut_connections_in_their_close(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_handshakes=4, shards=1, drain_timeout=60)
    clients = [connect(server, receive_buffer=4096) for _ in range(10)]
    for client in clients:
        fill_socket(server, client)
    server._begin_stop()
    eventually(lambda: server.stats()["handshakes"] >= 10, server.stats)
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(open_socket(server.port))
        eventually(lambda: server.stats()["handshakes_shed"] >= 90, server.stats)
        assert {client.wait_closed() for client in clients} == {1001}


@pytest.mark.parametrize(("soft", "hard"), [(256, 2048), (512, 512)])
def test_half_open_connections_leave_descriptors_for_newcomers(tmp_path: Path, soft: int, hard: int) -> None:
    source = f"""
import logging, resource, signal, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from tantor import Tantor
with Tantor(0, "127.0.0.1") as server:
    print("port", server.port, server.stats()["connection_limit"], resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    signal.pause()
"""
    with script(source, tmp_path) as server, ExitStack() as stack:
        port, limit, in_force = server.wait_for_line("port ").split()
        assert int(in_force) == hard
        assert hard // 2 < int(limit) < hard
        started = server.wait_for_line("listening on ")
        limits = f"(the limit of open files is {hard}; max_connections is 100000)"
        assert started.endswith(f", room for {limit} connections {limits}")
        for _ in range(hard + 100):
            stack.enter_context(open_socket(int(port)))
        for _ in range(20):
            client = stack.enter_context(WebSocketClient(int(port)).greet())
            assert client.ask("ping")["pong"] is True


def test_the_systems_buffers_are_bounded(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(send_buffer_bytes=64 << 10, receive_buffer_bytes=32 << 10)
    client = connect(server)
    sizes = buffer_sizes(client)
    assert sizes == {(128 << 10, 64 << 10)}
    eventually(lambda: server.stats()["socket_buffer_bytes"] == 2 * (96 << 10), server.stats)


def buffer_sizes(client: WebSocketClient) -> set[tuple[int, int]]:
    """The send and receive buffers of the server's end of a connection, which is in this process too."""
    ours, sizes = client.socket.getsockname(), set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found = socket.socket(fileno=os.dup(int(descriptor.name)))
        except OSError:
            continue
        with found:
            try:
                is_the_servers = found.getpeername() == ours
            except OSError:
                continue
            if is_the_servers:
                send = found.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                sizes.add((send, found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)))
    return sizes
