"""Servers of this process, and whether they serve."""

from support import WebSocketClient, eventually
from tantor import Tantor


def quick(port: int = 0, **settings: object) -> Tantor:
    """A server that does not wait long for clients at its end."""
    return Tantor(port, "127.0.0.1", **({"drain_timeout": 1} | settings))


def serves(server: Tantor) -> bool:
    """A client is welcomed, gets a broadcast and goes; nobody is on the server again when this returns."""
    with WebSocketClient(server.port).greet() as client:
        server.broadcast("jungle", "news")
        has_news = bool(client.receive_until(event="news"))
    eventually(lambda: not server.connections, lambda: f"{server.connections} are still there")
    return has_news
