"""Connections that are displaced, and crowds that come back at once: nothing is lost, nobody is there twice."""

import contextlib
import random
import socket
import threading
from typing import Any

from resuming import Connect, MakeServer, lost, named, path
from storms import publishing
from support import CLOSE, PING, TEXT, ClosedError, WebSocketClient, encode_frame, eventually, handshake_request
from tantor import Tantor

# Displaced connections


def test_a_half_dead_connection_is_displaced(server: Tantor, connect: Connect) -> None:
    """A socket that no longer carries anything, of which the server cannot know it yet."""
    client = connect(server, receive_buffer=4096)
    where = client.ask("join_channel", channel="den")
    blackholed = client  # nothing is read from it any more, and nothing is sent
    for number in range(20):
        server.broadcast("den", "n", [number, "x" * 10_000])
    again = connect(server, path(client.welcome["resume"]))
    assert again.client_id == client.client_id
    reply = again.ask("join_channel", channel="den", recover={"epoch": where["epoch"], "offset": 0})
    assert reply["recovered"] is True
    assert [publication["data"][0] for publication in reply["publications"]] == list(range(20))
    server.send(again.client_id, {"to": "the newer one"})
    assert again.receive_until(to="the newer one")
    assert server.stats()["total_connections"] == 1
    # the server lets go of it though its peer never answers
    eventually(lambda: server.stats()["disconnects"].get("displaced") == 1, lambda: server.stats())
    assert blackholed.wait_closed() in (3503, None)


def test_what_a_displaced_connection_still_sends_is_not_carried_out(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(shards=2)
    for _ in range(20):
        client = connect(server)
        newer: list[WebSocketClient] = []
        frames = b"".join(
            encode_frame(TEXT, f'{{"action":"join_channel","channel":"old {n}","ref":{n}}}'.encode()) for n in range(50)
        )
        thread = threading.Thread(target=lambda: newer.append(connect(server, path(client.welcome["resume"]))))  # noqa: B023
        thread.start()
        with contextlib.suppress(OSError):
            client.send_raw(frames)
        thread.join()
        answered = []
        with contextlib.suppress(ClosedError):
            while True:
                message = client.receive()
                answered += [message["ref"]] if "ref" in message else []
        assert answered == list(range(len(answered)))
        heard = newer[0].settle(server)
        assert not [message for message in heard if "ref" in message], "answers go where the questions came from"
        # what was carried out was carried out before, in order
        channels = server.connections[client.client_id].channels
        assert channels == ["jungle", *(f"old {n}" for n in range(len(channels) - 1))]
        assert set(channels) == set(newer[0].welcome["channels"])
        newer[0].say_goodbye()


def test_two_that_resume_with_one_token_at_once_leave_one_connection(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(shards=2)
    for _ in range(30):
        client = connect(server)
        client.ask("join_channel", channel="den")
        token = lost(server, client)
        rivals: list[WebSocketClient] = []
        threads = [
            threading.Thread(target=lambda: rivals.append(connect(server, path(token))))  # noqa: B023
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # nobody has sent a frame, so the token was good for each
        assert [rival.client_id for rival in rivals] == [client.client_id] * 4
        eventually(lambda: server.stats()["total_connections"] == 1, lambda: server.stats())
        server.send(client.client_id, {"for": "one"})
        reached = 0
        for rival in rivals:
            try:
                while rival.receive(timeout=10).get("for") != "one":
                    pass
                reached += 1
                survivor = rival
            except ClosedError as closed:
                assert closed.code == 3503  # noqa: PT017
        assert reached == 1
        assert sorted(server.connections[client.client_id].channels) == ["den", "jungle"]
        server.broadcast("den", "n", 1)
        assert survivor.receive_until(event="n")["data"] == 1
        assert [m for m in survivor.settle(server) if m.get("event") == "n"] == [], "once"
        survivor.say_goodbye()


def test_a_full_server_lets_a_client_take_the_place_of_its_own_connection(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_connections=2)
    client, _other = connect(server), connect(server)
    again = connect(server, path(client.welcome["resume"]))
    assert (again.client_id, again.welcome["resumed"]) == (client.client_id, True)
    assert client.wait_closed() == 3503
    token = lost(server, again)
    third = connect(server)
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(handshake_request(server.port, path(token)))
        assert b"HTTP/1.1 503 " in connection.recv(4096)
    third.say_goodbye()
    assert connect(server, path(token)).client_id == client.client_id, "a full server has not used the token up"
    assert server.stats()["total_connections"] == 2


# Storms


class Returning:
    """A client that holds live messages back until it has recovered, and drops by offset what comes twice."""

    def __init__(self, server: Tantor) -> None:
        self.server = server
        self.client = WebSocketClient(server.port).greet()
        self.id = self.client.client_id
        reply = self.client.ask("join_channel", channel="den")
        self.epoch, self.first, self.last = reply["epoch"], reply["offset"], reply["offset"]
        self._take(self.client.heard)
        self.repeated = 0

    def listen(self, count: int) -> None:
        for _ in range(count):
            self._take([self.client.receive()])

    def cut(self, how: str) -> None:
        if how == "reset":
            self.client.reset()
        elif how == "close":
            self.client.close()
        older = self.client
        self.client = WebSocketClient(self.server.port, path(older.welcome["resume"])).greet()
        older.close()
        assert (self.client.client_id, self.client.welcome["resumed"]) == (self.id, True), self.client.welcome
        self.catch_up()

    def catch_up(self) -> None:
        self.client.heard.clear()
        recover = {"epoch": self.epoch, "offset": self.last}
        reply = self.client.ask("join_channel", channel="den", recover=recover)
        assert reply["recovered"] is True, reply
        for publication in reply["publications"]:
            assert publication["offset"] > self.last
            assert publication["offset"] == self.last + 1, "the reply has a gap"
            self.last += 1
        self._take(self.client.heard)

    def _take(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if message.get("event") == "n":
                if message["offset"] <= self.last:
                    self.repeated += 1
                    continue
                assert message["offset"] == self.last + 1, "a gap"
                self.last += 1


def test_clients_that_are_cut_at_random_miss_nothing_under_publishing_threads(make_server: MakeServer) -> None:
    server = make_server(history_size=100_000, shards=2, max_pending_bytes=1 << 22)
    errors: list[BaseException] = []
    clients = [Returning(server) for _ in range(8)]

    def live(client: Returning, seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(25):
                client.listen(chance.randrange(30))
                # the last: it comes back while the older connection still stands
                client.cut(chance.choice(["reset", "close", "displace"]))
        except BaseException as error:
            errors.append(error)
            raise

    watcher = WebSocketClient(server.port).greet()
    watcher.ask("join_channel", channel="den")
    watcher.settle(server)
    with publishing(server, "den", threads=4, pause=0.002) as end:
        threads = [threading.Thread(target=live, args=(client, seed)) for seed, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        end()
    assert not errors, errors
    top = server.history("den", limit=1).result().offset
    for client in clients:
        client.catch_up()
        assert client.last == top
        client.client.close()
    assert named(watcher.settle(server), "user_left", "user_joined") == [], "nobody has left in between"
    watcher.close()


def test_a_storm_of_clients_that_come_back_at_once(make_server: MakeServer) -> None:
    server = make_server(shards=2)
    crowd = 300
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(WebSocketClient(server.port)).greet() for _ in range(crowd)]
        where = clients[0].ask("join_channel", channel="den")
        for client in clients[1:]:
            client.ask("join_channel", channel="den")
        for client in clients:
            client.reset()
        eventually(lambda: server.stats()["total_connections"] == 0, lambda: server.stats())
        assert server.stats()["away"] == crowd
        for number in range(10):
            server.broadcast("den", "n", number)
        returned: list[WebSocketClient] = []

        def come_back(some: list[WebSocketClient]) -> None:
            for client in some:
                again = stack.enter_context(WebSocketClient(server.port, path(client.welcome["resume"]))).greet()
                assert again.client_id == client.client_id
                recover = {"epoch": where["epoch"], "offset": 0}
                reply = again.ask("join_channel", channel="den", recover=recover)
                assert [publication["data"] for publication in reply["publications"]] == list(range(10))
                returned.append(again)

        threads = [threading.Thread(target=come_back, args=(clients[n::6],)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(returned) == crowd
        stats = server.stats()
        assert (stats["resumes"], stats["away"], stats["total_connections"]) == (crowd, 0, crowd)
        assert server.get_presence("den")["online"] == crowd
        assert server.broadcast("den", "n", "all").result() == crowd


def test_pings_and_closes_of_a_connection_that_is_displaced_harm_nothing(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    again = connect(server, path(client.welcome["resume"]))
    with contextlib.suppress(OSError):
        client.send_frame(PING, b"x")
        client.send_frame(CLOSE, (1000).to_bytes(2))
        client.wait_closed()
    client.close()
    assert again.ask("ping")["pong"] is True
    token = lost(server, again)
    assert connect(server, path(token)).client_id == client.client_id, "its close was not the client's goodbye"
