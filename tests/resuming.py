"""For the tests of resuming: clients that are lost and come back."""

from collections.abc import Callable
from typing import Any

from support import WebSocketClient, eventually
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]

EXPIRED = "the resume token is of nobody who is expected back: it has expired, or the client has left"
USED = "the resume token is not the client's latest: it was used before, or made up"
MALFORMED = "the resume token is malformed"


def is_gone(server: Tantor, client: WebSocketClient) -> None:
    eventually(lambda: client.client_id not in server.connections, lambda: server.stats())


def lost(server: Tantor, client: WebSocketClient) -> str:
    """Break a connection; return the token with which the client can resume."""
    client.reset()
    is_gone(server, client)
    return str(client.welcome["resume"])


def path(token: str) -> str:
    return f"/?resume={token}"


def resume(server: Tantor, connect: Connect, client: WebSocketClient) -> WebSocketClient:
    """Lose a client and let it resume; return the new connection."""
    return connect(server, path(lost(server, client)))


def named(messages: list[dict[str, Any]], *events: str) -> list[dict[str, Any]]:
    return [message for message in messages if message.get("event") in events]


def refused(client: WebSocketClient, reason: str) -> None:
    assert (client.welcome["resumed"], client.welcome["reason"]) == (False, reason)
    assert client.welcome["channels"] == ["jungle"], "as every new client"
