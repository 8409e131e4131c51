"""A well-behaved client, which shows whether bad clients affect others."""

import time

from support import WebSocketClient
from tantor import Tantor


class Healthy:
    """A client on a channel of its own, on which messages are published all the time."""

    def __init__(self, server: Tantor) -> None:
        self._server = server
        self._client = WebSocketClient(server.port).greet()
        server.subscribe(self._client.client_id, "health")
        self._client.action("leave_channel", channel="jungle")
        self._client.settle(server)
        self._sent = 0

    def notices_nothing(self) -> None:
        """Check that the client is connected and got every message in time, in order, and nothing else."""
        for _ in range(5):
            self._sent += 1
            assert self._server.broadcast("health", "beat", self._sent).result() == 1
        started = time.monotonic()
        seen = self._client.settle(self._server)
        assert [message.get("data") for message in seen] == list(range(self._sent - 4, self._sent + 1)), seen
        assert time.monotonic() - started < 5, "it was served late"

    def close(self) -> None:
        self._client.close()
