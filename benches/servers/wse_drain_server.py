"""wse-server in drain mode: its own broadcast to a topic. Everyone is subscribed but who has published."""

import json
import sys

from wse_server import RustWSEServer

WITHOUT_LIMIT = 1e12


def main() -> None:
    server = RustWSEServer(
        "127.0.0.1",
        int(sys.argv[1]),
        max_connections=20_000,
        ping_interval=3600,
        idle_timeout=7200,
        rate_limit_capacity=WITHOUT_LIMIT,
        rate_limit_refill=WITHOUT_LIMIT,
    )
    server.enable_drain_mode()
    server.start()
    publishers: set[str] = set()
    while True:
        for kind, connection, data in server.drain_inbound(256, 50):
            if connection is None:
                continue
            if kind in ("connect", "auth_connect"):
                server.subscribe_connection(connection, ["bench"])
            elif kind == "msg":
                if connection not in publishers:
                    publishers.add(connection)
                    server.unsubscribe_connection(connection, ["bench"])
                # it hands over the parsed object, never the text
                server.broadcast("bench", json.dumps(data, separators=(",", ":")))


if __name__ == "__main__":
    main()
