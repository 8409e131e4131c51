"""Flask: one Tantor for each app, the blueprint's routes, the reloader."""

import contextlib
import gc
import importlib.resources
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flask import Flask, Response, render_template_string, request
from processes import Script, run_python
from support import Site, WebSocketClient, accepts_connections, eventually, free_port, http_request
from tantor import SettingError, Tantor, get_tantor, init_tantor
from tantor.flask import blueprint, js_blueprint

Connect = Callable[..., WebSocketClient]


@pytest.fixture
def app() -> Iterator[Flask]:
    """An app whose Tantor is started, with the routes."""
    app = Flask("application")
    tantor = init_tantor(app, port=0, host="127.0.0.1", drain_timeout=1)
    app.register_blueprint(blueprint())
    tantor.start_background()
    yield app
    tantor._begin_stop()
    assert tantor._wait_stopped(15), "the server did not stop within 15 s"


@pytest.fixture
def site(app: Flask) -> Iterator[Site]:
    with Site(app) as site:
        yield site


# init_tantor and get_tantor


def test_init_registers_and_starts_nothing(free_port: int) -> None:
    app = Flask("application")
    tantor = init_tantor(app, port=free_port, host="127.0.0.1")
    assert app.extensions["tantor"] is tantor
    assert app.tantor is tantor  # type: ignore[attr-defined]
    assert (tantor.port, tantor.host) == (free_port, "127.0.0.1")
    assert not tantor.is_running
    assert not accepts_connections(free_port)


def test_settings_come_from_the_app_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANTOR_PORT", "9001")
    monkeypatch.setenv("TANTOR_HOST", "127.0.0.9")
    monkeypatch.setenv("TANTOR_DEFAULT_CHANNEL", "savanna")
    app = Flask("application")
    app.config["TANTOR_PORT"] = 9002
    app.config["TANTOR_CONFIG"] = {"port": 9003, "host": "127.0.0.3", "max_message_size": 1024 * 1024}
    tantor = init_tantor(app, max_depth=7)
    assert (tantor.port, tantor.host) == (9002, "127.0.0.3")
    assert tantor.setting("default_channel") == "savanna"
    assert tantor.setting("max_message_size") == 1024 * 1024
    assert tantor.setting("max_depth") == 7
    assert init_tantor(Flask("other"), 9004).port == 9004


def test_without_any_setting_it_is_8080_everywhere() -> None:
    tantor = init_tantor(Flask("application"))
    assert (tantor.port, tantor.host) == (8080, "0.0.0.0")


def test_a_bad_setting_leaves_the_app_as_it_was() -> None:
    app = Flask("application")
    app.config["TANTOR_CONFIG"] = {"prot": 9000}
    with pytest.raises(SettingError, match=r"prot.*port"):
        init_tantor(app)
    app.config["TANTOR_CONFIG"] = {"port": 70_000}
    with pytest.raises(SettingError, match="70000"):
        init_tantor(app)
    with pytest.raises(TypeError, match=r"prot.*port"):
        init_tantor(app, prot=9000)
    assert "tantor" not in app.extensions
    del app.config["TANTOR_CONFIG"]
    assert init_tantor(app).port == 8080


def test_a_second_registration_gives_the_same_or_replaces_one_that_does_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask("application")
    first = init_tantor(app, 9000)
    assert init_tantor(app) is init_tantor(app, port=9000) is first
    assert not caplog.records
    second = init_tantor(app, 9001)
    assert second is not first
    assert app.extensions["tantor"] is second
    assert second.port == 9001
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_tantor_that_runs_is_not_replaced(free_port: int) -> None:
    app = Flask("application")
    with init_tantor(app, free_port, "127.0.0.1") as tantor:
        assert init_tantor(app) is tantor
        with pytest.raises(RuntimeError, match=rf"'application' has a Tantor already.*{free_port}.*get_tantor"):
            init_tantor(app, 9001)
        assert app.extensions["tantor"] is tantor


def test_default_is_for_data_that_json_does_not_know() -> None:
    tantor = init_tantor(Flask("application"), default=lambda value: sorted(value))
    assert tantor.broadcast("jungle", "set", {"of": {1, 2}}).result() == 0


def test_two_apps_in_one_process(connect: Connect) -> None:
    with contextlib.ExitStack() as stack:
        apps = []
        for name in ("one", "two"):
            app = Flask(name)
            apps.append(app)
            stack.enter_context(init_tantor(app, port=0, host="127.0.0.1", drain_timeout=1))
            app.register_blueprint(blueprint())
        clients = [connect(app.extensions["tantor"]) for app in apps]
        for app, client in zip(apps, clients, strict=True):
            with app.app_context():
                assert get_tantor() is app.extensions["tantor"]
            with Site(app) as site:
                answer = {"success": True, "recipients": 1, "channel": "jungle"}
                assert site.post("/api/tantor/broadcast", event="news", data=app.name) == (200, answer)
                assert client.receive_until(event="news")["data"] == app.name
                assert site.get("/api/tantor/presence")[1]["jungle"] == 1
        for app, client in zip(apps, clients, strict=True):
            assert all(
                message["data"] == app.name for message in client.settle(app.extensions["tantor"]) if "data" in message
            )
            client.close()


def test_get_tantor_outside_of_a_context_is_the_latest() -> None:
    first = init_tantor(Flask("first"))
    second = Tantor(9000)
    assert get_tantor() is second
    del second
    gc.collect()
    assert get_tantor() is first


def test_get_tantor_in_the_context_of_an_app_without_one_is_none() -> None:
    elsewhere = Tantor()
    with Flask("application").app_context():
        assert get_tantor() is None
    assert get_tantor() is elsewhere


def test_get_tantor_finds_what_an_application_put_where_the_original_did() -> None:
    app = Flask("application")
    app.tantor = Tantor(9000)  # type: ignore[attr-defined]
    with app.app_context():
        assert get_tantor() is app.tantor  # type: ignore[attr-defined]


def test_all_but_the_routes_works_without_importing_flask() -> None:
    result = run_python(
        """
import sys
import tantor, tantor.flask, tantor.cli
from elephants.py_ele.tantor import get_tantor
assert get_tantor() is None
made = tantor.Tantor()
assert get_tantor() is made
assert not {"flask", "werkzeug"} & sys.modules.keys()
"""
    )
    assert result.returncode == 0, result.stderr


# the routes


def test_send(site: Site, app: Flask, connect: Connect) -> None:
    client = connect(app.extensions["tantor"])
    status, answer = site.post("/api/tantor/send", client_id=client.client_id, message="hello")
    assert (status, answer["success"]) == (200, True)
    assert re.fullmatch(r"msg_[0-9a-f]+", answer["message_id"])
    message = client.receive_until(id=answer["message_id"])
    assert (message["message"], message["channel"]) == ("hello", "jungle")

    fields = {"client_id": client.client_id, "message": {"event": "note", "n": 1}, "channel": "den"}
    status, answer = site.post("/api/tantor/send", **fields)
    assert status == 200
    message = client.receive_until(id=answer["message_id"])
    assert (message["event"], message["n"], message["channel"]) == ("note", 1, "den")


def test_broadcast(site: Site, app: Flask, connect: Connect) -> None:
    client = connect(app.extensions["tantor"])
    fields = {"channel": "jungle", "event": "news", "data": {"n": [1, None, "ü"]}}
    assert site.post("/api/tantor/broadcast", **fields) == (
        200,
        {"success": True, "recipients": 1, "channel": "jungle"},
    )
    assert client.receive_until(event="news")["data"] == {"n": [1, None, "ü"]}
    assert site.post("/api/tantor/broadcast") == (200, {"success": True, "recipients": 1, "channel": "jungle"})
    assert client.receive_until(event="message")["data"] == {}


def test_subscribe_unsubscribe_and_presence(site: Site, app: Flask, connect: Connect) -> None:
    client = connect(app.extensions["tantor"])
    fields = {"client_id": client.client_id, "channel": "den"}
    assert site.post("/api/tantor/subscribe", **fields) == (200, {"success": True, **fields})
    presence = {"channel": "den", "online": 1, "users": [client.client_id]}
    assert site.get("/api/tantor/presence?channel=den") == (200, presence)
    assert site.get("/api/tantor/presence")[1]["den"] == 1
    assert site.get("/api/tantor/presence?channel=")[1]["den"] == 1
    assert site.post("/api/tantor/unsubscribe", **fields) == (200, {"success": True, **fields})
    assert site.get("/api/tantor/presence?channel=den") == (200, {"channel": "den", "online": 0, "users": []})
    status, answer = site.post("/api/tantor/unsubscribe", client_id=client.client_id)
    assert (status, answer["channel"]) == (200, "jungle")
    assert site.get("/api/tantor/presence?channel=jungle")[1]["online"] == 0


def test_emergency(site: Site, app: Flask, connect: Connect) -> None:
    client = connect(app.extensions["tantor"])
    answer = {"success": True, "recipients": 1, "message": "fire"}
    assert site.post("/api/tantor/emergency", message="fire") == (200, answer)
    assert client.receive_until(event="emergency_alert")["data"]["message"] == "fire"
    assert site.post("/api/tantor/emergency")[1]["message"] == "Emergency alert!"


def test_stats_and_client(site: Site, app: Flask, connect: Connect) -> None:
    tantor = app.extensions["tantor"]
    client = connect(tantor)
    tantor.connections[client.client_id].user_data["authenticated"] = True
    status, stats = site.get("/api/tantor/stats")
    assert (status, stats["total_connections"], stats["status"]) == (200, 1, "listening")
    status, info = site.get(f"/api/tantor/client/{client.client_id}")
    assert (status, info["client_id"], info["user_data"]) == (200, client.client_id, {"authenticated": True})
    assert info["channels"] == ["jungle"]
    assert site.get("/api/tantor/client/client_nobody") == (404, {"error": "Client not found"})


FIELD_ERRORS: list[tuple[str, dict[str, Any], str, str]] = [
    ("send", {"message": "x"}, "client_id", "the field 'client_id' is missing; it takes a text"),
    ("send", {"client_id": "c"}, "message", "the field 'message' is missing; it takes a text or an object"),
    ("send", {"client_id": 7, "message": "x"}, "client_id", "the field 'client_id' is 7; it takes a text"),
    ("send", {"client_id": "c", "message": [1]}, "message", "'message' is [1]; it takes a text or an object"),
    ("send", {"client_id": "c", "message": None}, "message", "'message' is null; it takes a text or an object"),
    ("send", {"client_id": "c", "message": "x", "channel": 1}, "channel", "'channel' is 1; it takes a text"),
    ("broadcast", {"channel": {"a": 1}}, "channel", """'channel' is {"a": 1}; it takes a text"""),
    ("broadcast", {"event": None}, "event", "'event' is null; it takes a text"),
    ("subscribe", {}, "client_id", "the field 'client_id' is missing; it takes a text"),
    ("subscribe", {"client_id": "c", "channel": False}, "channel", "'channel' is false; it takes a text"),
    ("unsubscribe", {"channel": "den"}, "client_id", "the field 'client_id' is missing; it takes a text"),
    ("emergency", {"message": ["x" * 500]}, "message", "…; it takes a text"),
]


@pytest.mark.parametrize(("route", "fields", "name", "message"), FIELD_ERRORS)
def test_a_bad_field_is_named_with_what_came_and_what_it_takes(
    app: Flask, route: str, fields: dict[str, Any], name: str, message: str
) -> None:
    response = app.test_client().post(f"/api/tantor/{route}", json=fields)
    assert response.status_code == 400
    assert response.json is not None
    assert response.json["field"] == name
    assert response.json["error"].endswith(message)
    assert len(response.json["error"]) < 200


@pytest.mark.parametrize("route", ["send", "broadcast", "subscribe", "unsubscribe", "emergency"])
@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{nonsense", "application/json", "the body is not valid JSON"),
        (b"", "application/json", "the body is not valid JSON"),
        (b"\xff\xfe", "application/json", "the body is not valid JSON"),
        (b"[1, 2]", "application/json", "the body is [1, 2]; it takes a JSON object"),
        (b"null", "application/json", "the body is null; it takes a JSON object"),
        (
            b"client_id=c",
            "application/x-www-form-urlencoded",
            "the body is application/x-www-form-urlencoded; it takes",
        ),
        (b"{}", None, "the body is not said to be of any type; it takes"),
    ],
)
def test_a_body_that_is_no_json_object(app: Flask, route: str, body: bytes, kind: str | None, message: str) -> None:
    response = app.test_client().post(f"/api/tantor/{route}", data=body, content_type=kind)
    assert response.status_code == 400
    assert response.json is not None
    assert response.json["error"].startswith(message)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("broadcast", {"channel": ""}),
        ("broadcast", {"channel": "x" * 256}),
        ("broadcast", {"data": {"price": float("nan")}}),
        ("subscribe", {"client_id": "c", "channel": "a\nb"}),
    ],
)
def test_what_tantor_refuses_is_an_error_of_the_request(app: Flask, route: str, fields: dict[str, Any]) -> None:
    response = app.test_client().post(f"/api/tantor/{route}", json=fields)
    assert response.status_code == 400
    assert response.json is not None
    assert response.json["error"]


def test_a_body_over_the_apps_limit_gets_its_own_status_as_json(app: Flask) -> None:
    app.config["MAX_CONTENT_LENGTH"] = 100
    response = app.test_client().post("/api/tantor/emergency", json={"message": "x" * 200})
    assert response.status_code == 413
    assert response.json is not None
    assert response.json["error"]


@pytest.mark.parametrize(
    ("method", "route"),
    [
        *(("POST", route) for route in ("send", "broadcast", "subscribe", "unsubscribe", "emergency")),
        *(("GET", route) for route in ("presence", "stats", "client/client_1")),
    ],
)
def test_an_app_without_tantor_says_so(method: str, route: str) -> None:
    app = Flask("application")
    app.register_blueprint(blueprint())
    response = app.test_client().open(f"/api/tantor/{route}", method=method, json={})
    assert (response.status_code, response.json) == (500, {"error": "Tantor not initialized"})


def test_the_routes_may_stand_elsewhere_twice_and_behind_a_check(app: Flask) -> None:
    guarded = blueprint("guarded", "/admin/messages")

    @guarded.before_request
    def only_for_admins() -> Response | None:
        return None if request.headers.get("X-Admin") else Response(status=403)

    # a blueprint is registered before the first request, as another app's would be
    app.register_blueprint(guarded)
    client = app.test_client()
    assert client.get("/api/tantor/stats").status_code == 200
    assert client.get("/admin/messages/stats").status_code == 403
    assert client.get("/admin/messages/stats", headers={"X-Admin": "yes"}).status_code == 200


# the reloader

RELOADED = """
import os, sys
from flask import Flask
from tantor import init_tantor
from werkzeug.serving import is_running_from_reloader

app = Flask(__name__)
tantor = init_tantor(app, port=int(sys.argv[1]), host="127.0.0.1")
if is_running_from_reloader():
    tantor.start_background()
    print("serving in", os.getpid(), flush=True)
app.run("127.0.0.1", int(sys.argv[2]), use_reloader=True, reloader_type="stat")
"""


# the JavaScript client


def js_page(**options: Any) -> Flask:
    """An app whose page has the import map and the client's URL."""
    app = Flask("application")
    app.register_blueprint(js_blueprint(), **options)
    app.add_url_rule(
        "/",
        "page",
        lambda: render_template_string("{{ tantor_importmap() }} {{ tantor_js_url() }} {{ tantor_importmap('a\"b') }}"),
    )
    return app


def js_url(app: Flask) -> str:
    """The client's URL, which the import map has too."""
    text = app.test_client().get("/").get_data(as_text=True)
    found = re.fullmatch(
        r'<script type="importmap">{"imports": {"tantor": "(.+)"}}</script> (.+) '
        r'<script type="importmap" nonce="a&#34;b">.+',
        text,
    )
    assert found is not None, text
    assert found[1] == found[2]
    return found[1]


def test_the_app_serves_the_javascript_client_for_good_under_its_version() -> None:
    app = js_page()
    page = app.test_client()
    url = js_url(app)
    folder = importlib.resources.files("tantor") / "js"
    for file, kind in (("tantor.js", "text/javascript"), ("tantor.d.ts", "application/typescript")):
        response = page.get(url.replace("tantor.js", file))
        assert (response.status_code, response.data) == (200, (folder / file).read_bytes())
        assert response.mimetype == kind
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        known = {"If-None-Match": response.headers["ETag"]}
        assert page.get(url.replace("tantor.js", file), headers=known).status_code == 304
    older = page.get("/tantor/0123456789ab/tantor.js")
    assert (older.status_code, older.headers["Cache-Control"]) == (200, "no-cache")
    for nothing in ("other.js", "package.json", "..%2Fflask.py"):
        assert page.get(url.replace("tantor.js", nothing)).status_code == 404
    assert js_url(js_page()) == url, "another process gives the same URL"


def test_the_javascript_client_may_stand_elsewhere_and_under_another_name() -> None:
    app = js_page(url_prefix="/static/rt", name="client")
    assert js_url(app).startswith("/static/rt/")
    assert app.test_client().get(js_url(app)).status_code == 200
    plain = Flask("application")
    plain.register_blueprint(blueprint())
    assert not any("tantor.js" in str(rule) or "<version>" in str(rule) for rule in plain.url_map.iter_rules())


def test_under_the_reloader_it_is_served_once_by_the_child(tmp_path: Path) -> None:
    source = tmp_path / "application.py"
    source.write_text(RELOADED)
    port, page_port = free_port(), free_port()
    command = [sys.executable, str(source), str(port), str(page_port)]
    with Script(command, log=tmp_path / "log") as script:
        started: list[psutil.Process] = []
        try:
            first = int(script.wait_for_line("serving in"))
            started += family(script.process.pid)
            assert first != script.process.pid
            assert listeners(script.process.pid, port) == {first}
            # The parent listens on this port. The child answers once the reloader has taken its first look at the file.
            http_request(page_port, "GET / HTTP/1.0\r\n\r\n", timeout=30)
            with WebSocketClient(port).greet():
                source.write_text(RELOADED + "# changed\n")
                eventually(lambda: script.output.count("serving in") == 2, lambda: script.output, timeout=30)
            with WebSocketClient(port).greet():
                (second,) = listeners(script.process.pid, port)
            assert second not in (first, script.process.pid)
            started += family(script.process.pid)
            script.process.terminate()
            script.wait()
            eventually(lambda: not accepts_connections(port), "the port being free")
        finally:
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def listeners(pid: int, port: int) -> set[int]:
    """Return those of a process and its children that listen on a port."""
    return {
        process.pid
        for process in family(pid)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
