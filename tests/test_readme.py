"""The README's examples, typed in as they stand but for the port."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fenced_blocks import read_blocks
from support import eventually
from websockets.sync.client import connect

BLOCKS = read_blocks((Path(__file__).parent.parent / "README.md").read_text())


def run(heading: str, port: int) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(BLOCKS[heading].source.replace("8080", str(port)), names)
    return names


def test_the_flask_example(free_port: int) -> None:
    pytest.importorskip("flask")
    names = run("In a Flask app", free_port)
    with names["tantor"], connect(f"ws://127.0.0.1:{free_port}") as client:
        assert json.loads(client.recv(timeout=10))["event"] == "welcome"
        assert json.loads(client.recv(timeout=10))["event"] == "user_joined"
        reply = names["app"].test_client().post("/announce", json={"text": "Fruit for all"})
        assert reply.get_json() == {"recipients": 1}
        announcement = json.loads(client.recv(timeout=10))
        assert (announcement["event"], announcement["data"]) == ("announcement", {"text": "Fruit for all"})


def test_the_example_without_flask(free_port: int) -> None:
    names: dict[str, Any] = {}
    source = BLOCKS["Without Flask"].source.replace("8080", str(free_port))

    def serve() -> None:
        exec(source, names)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        eventually(lambda: "tantor" in names and names["tantor"].is_running, "the example does not listen")
        with connect(f"ws://127.0.0.1:{free_port}") as client:
            messages = [json.loads(client.recv(timeout=10)) for _ in range(3)]
        assert messages[-1]["message"] == "Welcome!", messages
    finally:
        names["tantor"].begin_stop()
        serving.join(timeout=20)
    assert not serving.is_alive()
