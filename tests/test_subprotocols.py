"""Subprotocols: what clients offer, and what the server selects; with browsers' rules in node and `websockets`."""

import asyncio
import logging
import shutil
import socket
import subprocess
from collections.abc import Callable

import pytest
from support import TESTS, eventually, handshake_request, missing
from tantor import SettingError, Tantor
from tantor.settings import load_toml, resolve
from websockets.asyncio.client import connect
from websockets.exceptions import NegotiationError
from websockets.typing import Subprotocol

MakeServer = Callable[..., Tantor]


def selected(server: Tantor, *fields: str) -> tuple[int, str | None]:
    request = handshake_request(server.port, headers=[f"Sec-WebSocket-Protocol: {field}" for field in fields])
    head = b""
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(request)
        while b"\r\n\r\n" not in head and (chunk := connection.recv(4096)):
            head += chunk
    status, *lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    named = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), named.get("sec-websocket-protocol")


@pytest.mark.parametrize(
    ("setting", "fields", "wanted"),
    [
        ([], ["chat"], None),
        ("chat", ["chat"], "chat"),
        (["v1", "v2"], ["v3, v2, v1"], "v2"),
        (["v1"], ["v3", "v1"], "v1"),
        ("*", ["v3, v2"], "v3"),
        ("chat", ["Chat"], None),
        ("chat", ["other"], None),
        ("chat", [", chat,"], "chat"),
    ],
)
def test_the_clients_first_that_is_allowed_is_selected(
    make_server: MakeServer, setting: str | list[str], fields: list[str], wanted: str | None
) -> None:
    assert selected(make_server(subprotocols=setting), *fields) == (101, wanted)


@pytest.mark.parametrize("field", ["chat room", "chat;q=1", '"chat"', "a/b", "(chat)"])
def test_a_field_that_is_no_list_of_tokens_is_refused(server: Tantor, field: str) -> None:
    assert selected(server, field) == (400, None)


def test_what_was_offered_in_vain_is_logged_once_with_the_setting(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tantor.connections"):
        server = make_server(subprotocols="v9")
        for _ in range(3):
            assert selected(server, "chat, v2") == (101, None)
        eventually(lambda: "subprotocols" in caplog.text, lambda: caplog.text)
        server.stop().result(30)
    lines = [line for line in caplog.messages if "offered the subprotocols" in line]
    assert len(lines) == 1
    assert '["chat", "v2"]' in lines[0]
    assert "the setting subprotocols lists those" in lines[0]


def test_the_setting_takes_a_list_or_names_with_commas() -> None:
    assert resolve({"subprotocols": ["a", "b"]}, environ={}) == {"subprotocols": "a, b"}
    assert resolve({"subprotocols": ("a",)}, environ={}) == {"subprotocols": "a"}
    assert resolve({}, config={"TANTOR_SUBPROTOCOLS": ["a", "b"]}, environ={}) == {"subprotocols": "a, b"}
    assert resolve({}, environ={"TANTOR_SUBPROTOCOLS": "a,b"}) == {"subprotocols": "a,b"}
    assert Tantor(subprotocols="a,b").setting("subprotocols") == "a, b"
    assert Tantor().setting("subprotocols") == ""


def test_the_setting_may_be_a_list_in_toml(tmp_path: object) -> None:
    path = f"{tmp_path}/tantor.toml"
    with open(path, "w", encoding="utf-8") as file:
        file.write('subprotocols = ["a", "b"]\n')
    assert load_toml(path) == {"subprotocols": "a, b"}


@pytest.mark.parametrize("wrong", ["a b", "a,,b", ["a b"], [""], ["a,b"], [5], 7, {"a": 1}])
def test_what_can_be_no_subprotocol_is_named(wrong: object) -> None:
    with pytest.raises(SettingError, match=r"subprotocols is .*; it takes"):
        Tantor(subprotocols=wrong)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_websockets_connects_with_the_subprotocol(make_server: MakeServer) -> None:
    offered = [Subprotocol("chat"), Subprotocol("v2")]
    server = make_server(subprotocols=["v2"])
    async with asyncio.timeout(30), connect(f"ws://127.0.0.1:{server.port}", subprotocols=offered) as connection:
        assert connection.subprotocol == "v2"
        assert '"welcome"' in str(await connection.recv())
    plain = make_server()
    # a selected one that was not offered would be an error of the library's
    try:
        async with asyncio.timeout(30), connect(f"ws://127.0.0.1:{plain.port}", subprotocols=offered) as connection:
            assert connection.subprotocol is None
    except NegotiationError:
        pytest.fail("the server selected what was not offered")


SCRIPT = """
const WebSocket = "LIBRARY" === "ws" ? (await import("ws")).default : globalThis.WebSocket;
const socket = new WebSocket("URL", ["chat", "v2"]);
socket.onmessage = () => { socket.onmessage = null; console.log(`open ${socket.protocol}`); socket.close(); };
socket.onerror = () => { console.log("error"); socket.onmessage = null; };
"""


@pytest.mark.parametrize("library", ["ws", "global"])
def test_a_page_that_offers_subprotocols_connects(make_server: MakeServer, library: str) -> None:
    if shutil.which("node") is None:
        missing("node")
    if library == "ws" and not (TESTS / "node" / "node_modules" / "ws").is_dir():
        missing("node's ws (npm ci in tests/node)")

    def run(server: Tantor) -> str:
        url = f"ws://127.0.0.1:{server.port}"
        source = SCRIPT.replace("LIBRARY", library).replace("URL", url)
        # node 20 has a WebSocket of its own behind this option
        options = ["--experimental-websocket"] if library == "global" else []
        command = ["node", *options, "--input-type=module", "-e", source]
        done = subprocess.run(command, cwd=TESTS / "node", capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() or done.stderr

    assert run(make_server(subprotocols="*")) == "open chat"
    assert run(make_server(subprotocols="v2")) == "open v2"
