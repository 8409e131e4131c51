"""python-socketio on uvicorn and uvloop: `emit()` to all, the publisher left out."""

import sys
from typing import Any

import socketio
import uvicorn

server = socketio.AsyncServer(async_mode="asgi", ping_interval=3600, cors_allowed_origins="*")


@server.on("tick")
async def tick(sid: str, data: Any) -> None:
    await server.emit("tick", data, skip_sid=sid)


def main() -> None:
    application = socketio.ASGIApp(server)
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_level="warning",
        backlog=4096,
    )


if __name__ == "__main__":
    main()
