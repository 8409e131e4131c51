"""aiohttp on uvloop: `send_str()` in a loop, as its documentation does it."""

import sys

import uvloop
from aiohttp import WSMsgType, web

subscribers: set[web.WebSocketResponse] = set()


async def subscribe(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse(compress=False)
    await response.prepare(request)
    subscribers.add(response)
    try:
        async for _ in response:
            pass
    finally:
        subscribers.discard(response)
    return response


async def publish(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse(compress=False)
    await response.prepare(request)
    async for message in response:
        if message.type is WSMsgType.TEXT:
            for subscriber in list(subscribers):
                await subscriber.send_str(message.data)
    return response


def main() -> None:
    application = web.Application()
    application.router.add_get("/", subscribe)
    application.router.add_get("/publish", publish)
    loop = uvloop.new_event_loop()
    port = int(sys.argv[1])
    web.run_app(application, host="127.0.0.1", port=port, loop=loop, access_log=None, print=None, backlog=4096)


if __name__ == "__main__":
    main()
