"""uWebSockets in socketify: its own publish to a topic."""

import sys
from typing import Any

from socketify import App, AppListenOptions, CompressOptions, OpCode

application = App()


def upgrade(response: Any, request: Any, context: Any) -> None:
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol") or "",
        request.get_header("sec-websocket-extensions") or "",
        context,
        request.get_url(),
    )


def opened(socket: Any) -> None:
    if socket.get_user_data() != "/publish":
        socket.subscribe("bench")


def received(socket: Any, message: Any, opcode: OpCode) -> None:
    application.publish("bench", message, OpCode.TEXT)


def main() -> None:
    application.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "max_backpressure": 64 * 1024 * 1024,
            "idle_timeout": 0,
            "upgrade": upgrade,
            "open": opened,
            "message": received,
        },
    )
    application.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"))
    application.run()


if __name__ == "__main__":
    main()
