"""Clients as people use them: the packages `websockets` and `aiohttp`, node's `ws`, a browser."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import websockets
from support import TESTS, WebSocketClient, eventually, missing
from tantor import Tantor
from websockets.sync.client import connect as connect_sync

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]


def url(server: Tantor) -> str:
    return f"ws://127.0.0.1:{server.port}/chat"


# websockets


def test_websockets_on_asyncio(server: Tantor) -> None:
    async def talk() -> None:
        async with websockets.connect(url(server), proxy=None) as client:
            welcome = json.loads(await client.recv())
            assert welcome["event"] == "welcome"
            await client.send(json.dumps({"action": "join_channel", "channel": "den"}))
            await client.send(json.dumps({"action": "broadcast", "channel": "den", "event": "hi", "data": "🐘"}))
            seen = [json.loads(await client.recv())]
            while seen[-1].get("event") != "hi":
                seen.append(json.loads(await client.recv()))
            assert (seen[-1]["data"], seen[-1]["from"]) == ("🐘", welcome["client_id"])
            assert await server.broadcast("den", "large", "x" * 500_000) == 1
            assert len(json.loads(await client.recv())["data"]) == 500_000
            assert await (await client.ping("are you there")) >= 0
            await client.send(["{", '"action"', ":", '"ping"', "}"])  # in fragments
            assert json.loads(await client.recv())["pong"] is True
        assert client.close_code == 1000

    asyncio.run(asyncio.wait_for(talk(), 30))
    eventually(lambda: len(server.connections) == 0, lambda: list(server.connections))


def test_websockets_on_threads(server: Tantor) -> None:
    with connect_sync(url(server), proxy=None) as one, connect_sync(url(server), proxy=None) as two:
        assert json.loads(one.recv(10))["event"] == "welcome"
        assert json.loads(two.recv(10))["event"] == "welcome"
        one.send(json.dumps({"action": "broadcast", "event": "hi", "data": {"n": 1}}))
        for client in (one, two):
            while (message := json.loads(client.recv(10))).get("event") != "hi":
                assert message["event"] == "user_joined", message
            assert message["data"] == {"n": 1}
        assert one.ping().wait(10)


def test_websockets_sees_a_shutdown(make_server: MakeServer) -> None:
    server = make_server()
    with connect_sync(url(server), proxy=None) as client:
        asyncio.run(server.stop())
        messages = [json.loads(message) for message in client]  # ends with a normal close
        assert messages[-1]["event"] == "server_shutdown"
        assert client.close_code == 1001


def test_websockets_sees_what_it_did_wrong(server: Tantor) -> None:
    with connect_sync(url(server), proxy=None) as client:
        client.send(b"binary")
        client.send("no JSON")
        codes = []
        while len(codes) < 2:
            message = json.loads(client.recv(10))
            if message.get("event") == "error":
                codes.append(message["code"])
        assert codes == [104, 101]


# aiohttp


def test_aiohttp(make_server: MakeServer) -> None:
    server = make_server(heartbeat_interval=0.3, heartbeat_timeout=5)

    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url(server), heartbeat=0.5, compress=15) as client,
        ):
            welcome = await client.receive_json(timeout=10)
            assert welcome["event"] == "welcome"
            assert client.compress == 0, "compression is not negotiated"
            await client.send_json({"action": "broadcast", "event": "hi", "data": [1, 2, 3]})
            beats = 0
            seen = []
            # long enough for heartbeats of both sides
            while beats < 4 or not seen:
                message = await client.receive_json(timeout=10)
                beats += message.get("ping", False)
                if message.get("event") == "hi":
                    seen.append(message["data"])
            assert seen == [[1, 2, 3]]
            await client.close(code=4000, message=b"goodbye")
            assert client.close_code == 4000
        # ends only after the transport had its turn to close
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(lambda: None))])

    asyncio.run(asyncio.wait_for(talk(), 30))
    eventually(lambda: len(server.connections) == 0, lambda: list(server.connections))


# node


NODE_CLIENT = """
const WebSocket = require('ws');
const ws = new WebSocket(process.argv[1]);
const say = (value) => console.log(JSON.stringify(value));
ws.on('message', (data, isBinary) => {
    const message = JSON.parse(data);
    if (message.event === 'welcome') {
        ws.send(JSON.stringify({action: 'broadcast', event: 'hi', data: {from_node: true}}));
    }
    if (message.event === 'hi') ws.ping('there?');
    if (message.event !== 'user_joined') say([message.event ?? message, isBinary]);
});
ws.on('pong', (data) => { say(['pong frame', data.toString()]); ws.send(Buffer.from([1, 2])); });
ws.on('open', () => say(['extensions', ws.extensions]));
ws.on('close', (code) => say(['closed', code]));
ws.on('error', (error) => say(['failed', String(error)]));
"""


def test_node_ws(server: Tantor, connect: Connect) -> None:
    node = shutil.which("node")
    if node is None:
        missing("node")
    if not (TESTS / "node" / "node_modules" / "ws").is_dir():
        missing("node's ws (npm ci in tests/node)")
    watcher = connect(server)
    with subprocess.Popen(
        [node, "-e", NODE_CLIENT, url(server)], cwd=TESTS / "node", stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        hi = watcher.receive_until(event="hi", timeout=30)
        assert hi["data"] == {"from_node": True}
        node_id = hi["from"]
        eventually(lambda: server.stats()["errors_sent"] >= 1, server.stats)
        assert server.send(node_id, {"event": "last"}).result()
        server._begin_stop()
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    lines = [json.loads(line) for line in output.splitlines()]
    assert lines == [
        ["extensions", ""],
        ["welcome", False],
        ["hi", False],
        ["pong frame", "there?"],
        ["error", False],
        ["last", False],
        ["server_shutdown", False],
        ["closed", 1001],
    ]


# A browser


def test_chromium(make_server: MakeServer, browser: "Browser") -> None:
    server = make_server(heartbeat_interval=0.3, heartbeat_timeout=5)
    first, second = browser.new_page(), browser.new_page()
    open_socket = """async (url) => {
        window.seen = [];
        window.ws = new WebSocket(url);
        ws.onmessage = (event) => seen.push(JSON.parse(event.data));
        ws.onclose = (event) => { window.ended = [event.code, event.wasClean]; };
        await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = reject; });
        return [ws.protocol, ws.extensions];
    }"""
    for page in (first, second):
        assert page.evaluate(open_socket, url(server)) == ["", ""]
    first.evaluate("ws.send(JSON.stringify({action: 'broadcast', event: 'hi', data: 'between tabs 🐘'}))")

    def find(page: Any, condition: str) -> Any:
        page.wait_for_function(f"seen.find((message) => {condition})", timeout=10_000)
        return page.evaluate(f"seen.find((message) => {condition})")

    hi = find(second, "message.event === 'hi'")
    assert hi["data"] == "between tabs 🐘"
    assert first.evaluate("seen[0].event") == "welcome"
    assert first.evaluate("seen[0].client_id") == hi["from"]
    find(second, "message.ping")
    first.evaluate("ws.close(4001)")
    first.wait_for_function("window.ended", timeout=10_000)
    assert first.evaluate("ended") == [4001, True]
    assert find(second, "message.event === 'user_left'")["data"] == {"client_id": hi["from"], "total_users": 1}
    server._begin_stop()
    second.wait_for_function("window.ended", timeout=10_000)
    assert second.evaluate("ended") == [1001, True]
    assert second.evaluate("seen.at(-1).event") == "server_shutdown"
