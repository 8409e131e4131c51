"""Fixtures: servers, clients, a browser."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import support
from healthy import Healthy
from support import WebSocketClient

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from tantor import Tantor

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Tests of these files share expensive fixtures, so one process runs the whole file.
SHARING_FILES = {"tests/test_data.py", "tests/test_dropin.py", "tests/test_types.py"}


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so it is in a job that a shell runs in the background, and scripts that are to be interrupted inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule tests with `-n`: a free process runs the next test, or the next file that stays together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in SHARING_FILES else nodeid

    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def no_settings_lie_about(monkeypatch: pytest.MonkeyPatch, runtime_dir: Path) -> None:
    for name in list(os.environ):
        if name.startswith("TANTOR_") and name != "TANTOR_WHEEL":
            monkeypatch.delenv(name)
    # the apps of different tests may have the same name and folder
    monkeypatch.setenv("TANTOR_RUNTIME_DIR", str(runtime_dir))


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A folder in which the processes of a test meet; its path is short, as the address of a Unix socket has to be."""
    with tempfile.TemporaryDirectory(prefix="tt", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def free_port() -> int:
    return support.free_port()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'tantor.db'}"


@pytest.fixture
def make_server(request: pytest.FixtureRequest) -> "Iterator[Callable[..., Tantor]]":
    """`make_server(**settings)`: a server that listens on a port of its own, stopped after the test.

    With the mark `system_buffers` the system sizes the sockets' buffers. A full one then takes nothing more at all; a
    small one takes some kilobytes now and then, as the system repacks what the client has not read.
    """
    from tantor import Tantor

    servers: list[Tantor] = []
    buffers = {"send_buffer_bytes": 0} if request.node.get_closest_marker("system_buffers") else {}

    def make(**settings: Any) -> Tantor:
        # the clients of tests end without a close frame, so a long drain would be of no use
        server = Tantor(**({"port": 0, "host": "127.0.0.1", "drain_timeout": 1} | buffers | settings))
        servers.append(server)
        server.start_background()
        return server

    yield make
    for server in servers:
        server._begin_stop()
    for server in servers:
        assert server._wait_stopped(15), f"{server!r} did not stop within 15 s"


@pytest.fixture
def server(make_server: "Callable[..., Tantor]") -> "Tantor":
    """A running server with default settings."""
    return make_server()


@pytest.fixture
def tantor() -> "Iterator[Tantor]":
    """A running server that `get_tantor()` finds, as after the document's initialization."""
    from flask import Flask
    from tantor import init_tantor

    app = Flask("document")
    app.config["TANTOR_DRAIN_TIMEOUT"] = 1
    tantor = init_tantor(app, port=0, host="127.0.0.1")
    tantor.start_background()
    yield tantor
    tantor._begin_stop()
    assert tantor._wait_stopped(15), "the server did not stop within 15 s"


@pytest.fixture
def connect(make_server: "Callable[..., Tantor]") -> Iterator[Callable[..., WebSocketClient]]:
    """`connect(server, **options)`: a client that has its welcome; it disconnects before the server stops."""
    with ExitStack() as stack:

        def open_client(server: "Tantor", path: str = "/", **options: Any) -> WebSocketClient:
            return stack.enter_context(WebSocketClient(server.port, path, **options)).greet()

        yield open_client


@pytest.fixture
def healthy(server: "Tantor") -> Iterator[Healthy]:
    """A client that must not be affected by what the test does to the server."""
    with closing(Healthy(server)) as client:
        yield client
        client.notices_nothing()


@pytest.fixture
def browser() -> "Iterator[Browser]":
    """Chromium without a window. One for each test: Playwright's loop must not outlive the test that uses it."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        support.missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
