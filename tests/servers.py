"""Servers in the process of the test, and a check that they serve."""

from support import WebSocketClient, eventually
from tantor import Tantor


def quick(port: int = 0, **settings: object) -> Tantor:
    """A server with a short drain."""
    return Tantor(port, "127.0.0.1", **({"drain_timeout": 1} | settings))


def serves(server: Tantor) -> bool:
    """Check that a client gets its welcome and a broadcast. No client is connected when this returns."""
    with WebSocketClient(server.port).greet() as client:
        server.broadcast("jungle", "news")
        has_news = bool(client.receive_until(event="news"))
    eventually(lambda: not server.connections, lambda: f"{server.connections} are still there")
    return has_news
