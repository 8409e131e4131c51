"""The examples of the README, as they are except for the port."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fenced_blocks import read_blocks
from support import eventually
from tantor import Tantor, init_tantor
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
        # the notice that the client joined and the greeting may come in either order
        assert any(message.get("message") == "Welcome!" for message in messages), messages
    finally:
        names["tantor"]._begin_stop()
        serving.join(timeout=20)
    assert not serving.is_alive()


def test_the_example_of_nothing_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flask = pytest.importorskip("flask")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"app": flask.Flask("example"), "init_tantor": init_tantor}
    exec(BLOCKS["Nothing lost"].source, names)
    assert names["tantor"].broadcast("orders", "placed", {"n": 1}).result(10) == 0
    names["tantor"]._close_storage(10)
    assert (tmp_path / "tantor.db").exists()


def test_the_example_of_settings_for_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    operations = read_blocks((Path(__file__).parent.parent / "docs" / "operations.md").read_text())
    names: dict[str, Any] = {"Tantor": Tantor}
    exec(operations["What is kept, and how long"].source, names)
    tantor = names["tantor"]
    for channel, kept in (("orders", 150), ("chat:1", 100), ("cursor:1", 0), ("other", 100)):
        sent = [tantor.broadcast(channel, "message", {"n": number}) for number in range(150)]
        # on a durable channel it is kept when it is saved
        sent[-1].result()
        assert len(tantor.history(channel, 1000).result().publications) == kept, channel
    tantor._close_storage(10)
