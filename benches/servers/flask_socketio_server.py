"""Flask-SocketIO: `emit()` to all, the publisher left out. Second argument: threading or gevent."""

import sys
from typing import Any

if sys.argv[2] == "gevent":
    from gevent import monkey

    monkey.patch_all()

from flask import Flask, request
from flask_socketio import SocketIO, emit


def main() -> None:
    application = Flask(__name__)
    server = SocketIO(application, async_mode=sys.argv[2], ping_interval=3600, cors_allowed_origins="*")

    @server.on("tick")
    def tick(data: Any) -> None:
        emit("tick", data, broadcast=True, skip_sid=request.sid)

    server.run(application, host="127.0.0.1", port=int(sys.argv[1]), allow_unsafe_werkzeug=True)


if __name__ == "__main__":
    main()
