"""Every runnable block of the user's document, as it stands, against a real server.

The blocks are read from the document itself. Only ports are moved, and names that a block takes for granted
(`tantor`, `get_happy`, `verify_token`, an import) are given to it by its test.
"""

import ast
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from document_blocks import BLOCKS, COVERED, backlog, block, covers, execute, output_of, receive, welcomed
from flask import Flask
from processes import Script, run_python
from support import Site, WebSocketClient, accepts_connections, allow_descriptors, eventually
from tantor import Tantor, get_tantor, init_tantor

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_every_runnable_block_is_covered() -> None:
    runnable = {title for title, block in BLOCKS.items() if block.language in ("python", "javascript")}
    assert len(runnable) == 31, sorted(runnable)
    assert runnable - COVERED == set()


# Usage


@covers("Basic Server Setup")
def test_basic_server_setup(free_port: int, tmp_path: Path) -> None:
    source = block("Basic Server Setup", free_port)
    with Script([sys.executable, "-c", source], log=tmp_path / "log") as script:
        eventually(lambda: accepts_connections(free_port), lambda: script.output, timeout=30)
        with welcomed(free_port) as (client, _):
            script.process.send_signal(signal.SIGINT)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                receive(client, event="nothing")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        assert script.wait() in (0, -signal.SIGINT, 128 + signal.SIGINT), script.output
    assert not accepts_connections(free_port)


@pytest.mark.parametrize("title", ["Flask-TSK Integration", "App Initialization"])
@covers("Flask-TSK Integration", "App Initialization")
def test_flask_initialization_with_a_thread(title: str, free_port: int) -> None:
    names = execute(block(title, free_port))
    tantor, thread = names["tantor"], names["tantor_thread"]
    try:
        assert names["app"].tantor is tantor
        assert (tantor.port, tantor.host) == (free_port, "0.0.0.0")
        eventually(lambda: accepts_connections(free_port), "a listening server")
        with welcomed(free_port) as (client, _):
            with names["app"].app_context():
                assert get_tantor() is tantor
            assert asyncio.run(tantor.broadcast("jungle", "news", {"n": 1})) == 1
            assert receive(client, event="news")["data"] == {"n": 1}
    finally:
        tantor._begin_stop()
        thread.join(15)
    assert not thread.is_alive()


@covers("Basic Messaging")
def test_basic_messaging(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (client, client_id):
        names = execute(block("Basic Messaging"))
        assert names["tantor"] is tantor
        assert names["message_id"].startswith("msg_")
        assert names["recipients"] == 1
        announcement = receive(client, event="announcement")
        assert announcement["data"] == {"message": "Important announcement!", "priority": "high"}

        names = execute(block("Basic Messaging", client_123=client_id))
        message = receive(client, id=names["message_id"])
        assert (message["message"], message["channel"]) == ("Hello from Tantor!", "jungle")


@covers("Channel Management")
def test_channel_management(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (client, client_id), output_of() as output:
        names = execute(block("Channel Management"), tantor=tantor)
        assert names["presence"] == {"channel": "jungle", "online": 1, "users": [client_id]}
        assert tantor.get_presence("treehouse")["users"] == ["client_123"]

        names = execute(block("Channel Management", client_123=client_id), tantor=tantor)
        assert receive(client, event="user_joined", channel="treehouse")["data"]["total_users"] == 2
        assert names["presence"]["online"] == 0
    assert output.getvalue() == "Users in jungle: 1\nUsers in jungle: 0\n"


@covers("Emergency Alerts")
def test_emergency_alerts(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (one, _), welcomed(tantor.port) as (two, _), output_of() as output:
        execute(block("Emergency Alerts"), tantor=tantor)
        for client in (one, two):
            assert receive(client, event="emergency_alert")["data"]["message"] == "Critical system alert!"
    assert output.getvalue() == "Emergency sent to 2 recipients\n"


# Flask-TSK Integration


@covers("Route Usage")
def test_route_usage() -> None:
    app = Flask("document")
    with init_tantor(app, port=0, host="127.0.0.1") as tantor:
        execute(block("Route Usage"), app=app)
        with welcomed(tantor.port) as (client, client_id), Site(app) as site:
            status, answer = site.post("/api/tantor/send", client_id=client_id, message="hello")
            assert (status, answer["success"]) == (200, True)
            assert receive(client, id=answer["message_id"])["message"] == "hello"

            assert site.post("/api/tantor/broadcast", channel="jungle", event="news", data={"n": 1}) == (
                200,
                {"success": True, "recipients": 1, "channel": "jungle"},
            )
            assert receive(client, event="news")["data"] == {"n": 1}

            answered = {"success": True, "client_id": client_id, "channel": "den"}
            assert site.post("/api/tantor/subscribe", client_id=client_id, channel="den") == (200, answered)
            assert receive(client, event="user_joined", channel="den")["data"]["client_id"] == client_id
            presence = {"channel": "den", "online": 1, "users": [client_id]}
            assert site.get("/api/tantor/presence?channel=den") == (200, presence)
            assert site.post("/api/tantor/unsubscribe", client_id=client_id, channel="den") == (200, answered)
            assert site.get("/api/tantor/presence?channel=den") == (200, {"channel": "den", "online": 0, "users": []})
            assert site.get("/api/tantor/presence")[1]["jungle"] == 1

            assert site.post("/api/tantor/emergency", message="fire") == (
                200,
                {"success": True, "recipients": 1, "message": "fire"},
            )
            assert receive(client, event="emergency_alert")["data"]["message"] == "fire"

            status, stats = site.get("/api/tantor/stats")
            assert (status, stats["total_connections"], stats["status"]) == (200, 1, "listening")
            status, info = site.get(f"/api/tantor/client/{client_id}")
            assert (status, info["client_id"], info["channels"]) == (200, client_id, ["jungle"])
            assert site.get("/api/tantor/client/nobody") == (404, {"error": "Client not found"})


# WebSocket Client Usage


@covers("JavaScript Client")
def test_javascript_client(tantor: Tantor, browser: "Browser") -> None:
    page = browser.new_page()
    lines: list[str] = []
    page.on("console", lambda message: lines.append(message.text))
    page.on("pageerror", lambda error: lines.append(f"error: {error}"))

    def printed(start: str, part: str = "") -> str:
        def found() -> str | None:
            page.evaluate("0")  # lets Playwright deliver what the page has said
            return next((line for line in lines if line.startswith(start) and part in line), None)

        return str(eventually(found, lambda: f"a line {start!r} with {part!r} in {lines}"))

    page.add_script_tag(content=block("JavaScript Client", tantor.port))
    assert printed("Connected") == "Connected to Tantor! 🐘"
    assert printed("Welcome") == "Welcome message: Welcome to Tantor's jungle! 🐘"
    with welcomed(tantor.port) as (other, _):
        page.evaluate("sendMessage('hello from the page')")
        message = receive(other, event="chat_message")
        assert (message["data"], message["channel"]) == ({"message": "hello from the page"}, "jungle")
        assert message["from"] in tantor.get_presence("jungle")["users"]
        page.evaluate("sendMessage('in the den', 'den')")
        lines.clear()
        page.evaluate("ping()")
        # its own messages may come first
        printed("Received:", "pong: true")
        tantor.emergency("the volcano")
        assert printed("Emergency") == "Emergency: the volcano"
    assert not [line for line in lines if line.startswith("error")]
    page.close()


@covers("Python Client")
def test_python_client(tantor: Tantor, tmp_path: Path) -> None:
    with welcomed(tantor.port) as (other, _):
        with Script([sys.executable, "-c", block("Python Client", tantor.port)], log=tmp_path / "log") as script:
            assert receive(other, event="chat_message")["data"] == {"message": "Hello from Python client!"}
            eventually(lambda: "Hello from Python client!" in script.output, lambda: script.output)
            tantor._begin_stop()
            assert script.wait() == 0, script.output
        lines = script.output.splitlines()
    assert all(line.startswith("Received: {") for line in lines), script.output
    received = [ast.literal_eval(line.removeprefix("Received: ")) for line in lines]
    assert received[0]["event"] == "welcome"
    assert received[-1]["event"] == "server_shutdown"


# Channel Types


@covers("Public Channels")
def test_public_channels(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (client, client_id):
        execute(block("Public Channels", client_123=client_id), tantor=tantor)
        message = receive(client, event="announcement")
        assert (message["channel"], message["data"]["message"]) == ("jungle", "Welcome to the jungle!")
        execute(block("Public Channels"), tantor=tantor)
        assert sorted(tantor.get_presence("jungle")["users"]) == sorted(["client_123", client_id])


@covers("Private Channels")
def test_private_channels(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (client, client_id), welcomed(tantor.port) as (stranger, _):
        execute(block("Private Channels", client_123=client_id), tantor=tantor)
        secret = {"message": "Secret message", "recipients": [client_id, "client_456"]}
        assert receive(client, event="private_message")["data"] == secret
        tantor.broadcast("jungle", "end")
        while (message := json.loads(stranger.recv(timeout=10))).get("event") != "end":
            assert message.get("event") != "private_message", "a client that is not in the treehouse got it"


@covers("Emergency Channels")
def test_emergency_channels(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (client, client_id):
        execute(block("Emergency Channels", client_123=client_id), tantor=tantor)
        alert = receive(client, event="emergency_alert")
        assert alert["data"]["message"] == "System is down! Immediate attention required!"
        tantor.send(client_id, {"event": "end"})
        while (message := json.loads(client.recv(timeout=10))).get("event") != "end":
            assert message.get("event") != "emergency_alert", "the emergency came twice"


# Event Handling


@covers("Custom Event Handlers")
def test_custom_event_handlers(tantor: Tantor) -> None:
    notified: list[dict[str, Any]] = []

    async def send_admin_notification(data: dict[str, Any]) -> None:
        notified.append(data)

    with output_of() as output:
        execute(block("Custom Event Handlers"), tantor=tantor, send_admin_notification=send_admin_notification)
        with welcomed(tantor.port) as (_, client_id):
            eventually(lambda: f"User {client_id} joined channel jungle\n" in output.getvalue(), output.getvalue)
            tantor.emergency("lions")
            eventually(lambda: notified, "the async handler's call")
    assert "Emergency alert: lions\n" in output.getvalue()
    assert [data["message"] for data in notified] == ["lions"]


# Configuration


def test_environment_variables(free_port: int) -> None:
    variables = dict(
        line.split("=", 1) for line in block("Environment Variables", free_port).splitlines() if line[:1].isalpha()
    )
    assert len(variables) == 6, variables
    source = """if True:
        import json
        from flask import Flask
        from elephants.py_ele.tantor import init_tantor
        tantor = init_tantor(Flask("document"))
        names = "port host default_channel heartbeat_interval message_ttl emergency_ttl".split()
        print(json.dumps([tantor.setting(name) for name in names]))
    """
    done = run_python(source, environment=variables | {"TANTOR_HEARTBEAT_INTERVAL": "31"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [free_port, "0.0.0.0", "jungle", 31, 3600, 86400]


@covers("Configuration File")
def test_configuration_file(free_port: int, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(block("Configuration File", free_port), encoding="utf-8")
    app = Flask("document")
    app.config.from_pyfile(str(path))
    tantor = init_tantor(app)
    settings = app.config["TANTOR_CONFIG"]
    assert len(settings) == 8, settings
    assert {name: tantor.setting(name) for name in settings} == settings
    assert tantor.port == free_port


# Integration with Other Elephants


@covers("Happy Integration")
def test_happy_integration(tantor: Tantor) -> None:
    happy = SimpleNamespace()
    execute(block("Happy Integration"), get_tantor=get_tantor, get_happy=lambda: happy)
    with welcomed(tantor.port) as (client, client_id):
        tantor.subscribe(client_id, "user_notifications")
        asyncio.run(happy.on_processing_complete(7, "/img/herd.png", "sepia"))
        assert receive(client, event="image_processed", channel="user_notifications")["data"] == {
            "user_id": 7,
            "image_path": "/img/herd.png",
            "filter_name": "sepia",
            "status": "completed",
        }


@covers("Heffalump Integration")
def test_heffalump_integration(tantor: Tantor) -> None:
    heffalump = SimpleNamespace()
    execute(block("Heffalump Integration"), get_tantor=get_tantor, get_heffalump=lambda: heffalump, time=time)
    with welcomed(tantor.port) as (client, client_id):
        tantor.subscribe(client_id, "system_notifications")
        asyncio.run(heffalump.on_index_complete("page-1", "indexed"))
        data = receive(client, event="search_indexed", channel="system_notifications")["data"]
        assert (data["content_id"], data["status"]) == ("page-1", "indexed")
        assert abs(data["timestamp"] - time.time()) < 60


@covers("Horton Integration")
def test_horton_integration(tantor: Tantor) -> None:
    horton = SimpleNamespace()
    execute(block("Horton Integration"), get_tantor=get_tantor, get_horton=lambda: horton, time=time)
    with welcomed(tantor.port) as (client, client_id):
        tantor.subscribe(client_id, "job_notifications")
        asyncio.run(horton.on_job_status_change("job-1", "done", result=[1, 2]))
        data = receive(client, event="job_status_changed", channel="job_notifications")["data"]
        assert (data["job_id"], data["status"], data["result"]) == ("job-1", "done", [1, 2])


# Performance Optimization


@covers("Connection Management")
def test_connection_management(make_server: Callable[..., Tantor]) -> None:
    allow_descriptors(3000)
    with backlog(make_server) as tantor, output_of() as output, contextlib.ExitStack() as clients:
        check = execute(block("Connection Management"), tantor=tantor)["check_connection_limits"]
        check()
        assert output.getvalue() == "Warning: Message queue backlog\n"
        for _ in range(1001):
            clients.enter_context(WebSocketClient(tantor.port))
        eventually(lambda: tantor.stats()["total_connections"] == 1002, lambda: tantor.stats())
        check()
        assert "Warning: High connection count\n" in output.getvalue()


@covers("Message Batching")
def test_message_batching(tantor: Tantor) -> None:
    batch_broadcast = execute(block("Message Batching"), tantor=tantor, asyncio=asyncio)["batch_broadcast"]
    with welcomed(tantor.port) as (client, _):
        asyncio.run(batch_broadcast("jungle", [{"event": "batched", "data": number} for number in range(10)]))
        assert [receive(client, event="batched")["data"] for _ in range(10)] == list(range(10))


@covers("Channel Optimization")
def test_channel_optimization(tantor: Tantor) -> None:
    with welcomed(tantor.port) as (_, client_id), output_of() as output:
        tantor.broadcast("deserted", "news")
        tantor.subscribe(client_id, "den")
        cleanup_channels = execute(block("Channel Optimization"), tantor=tantor)["cleanup_channels"]
        asyncio.run(cleanup_channels())
        assert set(tantor.channels) == {"jungle", "emergency", "den"}
    assert sorted(output.getvalue().splitlines()) == [
        "Cleaned up empty channel: deserted",
        "Cleaned up empty channel: treehouse",
    ]


# Testing


@covers("Test Client Generation")
def test_test_client_generation(free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with output_of() as output:
        names = execute(block("Test Client Generation", free_port), Tantor=Tantor)
    path = tmp_path / names["test_client_path"]
    assert output.getvalue() == f"Test client created: {names['test_client_path']}\n"
    assert path.name == "tantor-test-client.html"
    assert str(free_port) in path.read_text(encoding="utf-8")


@covers("Unit Testing")
def test_unit_testing(free_port: int, tmp_path: Path) -> None:
    source = "from elephants.py_ele.tantor import Tantor\n" + block("Unit Testing", free_port)
    (tmp_path / "test_unit.py").write_text(source, encoding="utf-8")
    command = "import pytest; raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider']))"
    done = run_python(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout, done.stdout


@covers("Integration Testing")
def test_integration_testing(free_port: int) -> None:
    names = execute(block("Integration Testing", free_port), Tantor=Tantor, json=json)
    asyncio.run(names["test_websocket_connection"]())
    # asyncio.run() cancels a second time, so that nothing has waited for the end
    eventually(lambda: not accepts_connections(free_port), "the end of the cancelled server")
