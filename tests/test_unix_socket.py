"""Unix sockets: `host="unix:/run/app/tantor.sock"`, alone or beside TCP."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import QUIET_FORK, Script, run_python, script
from support import WebSocketClient, accepts_connections, eventually, fill_socket, http_request
from tantor import SettingError, Tantor, get_tantor
from websockets.asyncio.client import unix_connect

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no Unix sockets")

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]

HEALTHZ = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def path() -> Iterator[Path]:
    """A path for a socket. It is short: pytest's own folders may be longer than a socket's path can be."""
    with tempfile.TemporaryDirectory(prefix="tantor-") as folder:
        yield Path(folder) / "t.sock"


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        return probe.connect_ex(str(path)) == 0


def leave_stale(path: Path) -> None:
    """Leave the file of a socket that nothing listens on, as a killed server does."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_fails(path: Path, **settings: Any) -> OSError:
    server = Tantor(host=f"unix:{path}", **settings)
    with pytest.raises(OSError, match=re.escape(f"cannot listen on unix:{path}: ")) as failure:
        server.start_background()
    assert not server.is_running
    return failure.value


def test_a_websocket_client_and_http(make_server: MakeServer, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tantor")
    server = make_server(host=f"unix:{path}")

    async def talk() -> None:
        async with unix_connect(str(path), "ws://localhost/") as client:
            welcome = json.loads(await client.recv())
            assert welcome["event"] == "welcome"
            await client.send(json.dumps({"action": "broadcast", "channel": "jungle", "event": "hi", "ref": 1}))
            events = [json.loads(await asyncio.wait_for(client.recv(), 10)) for _ in range(3)]
            assert {"user_joined", "hi"} <= {event.get("event") for event in events}
            assert server.connections[welcome["client_id"]].channels

    asyncio.run(talk())
    status, _, body = http_request(path, HEALTHZ)
    assert (status, json.loads(body)["status"]) == (200, "ok")
    assert server.port == 0
    assert repr(server) == f"<Tantor on unix:{path}, listening>"
    eventually(lambda: f"listening on unix:{path} with" in caplog.text, lambda: caplog.text)
    asyncio.run(server.stop())
    assert not path.exists()
    assert server.port == 0
    # once more on the same path
    server.start_background()
    assert http_request(path, HEALTHZ)[0] == 200


def test_large_messages_and_a_slow_consumer(make_server: MakeServer, path: Path) -> None:
    server = make_server(host=f"unix:{path}", max_pending_bytes=256 << 10)
    with WebSocketClient(path).greet() as client, WebSocketClient(path).greet() as slow:
        text = "x" * 700_000
        client.action("echo", text=text)
        server.send(client.client_id, {"text": text[: 200 << 10]})
        assert client.receive_until(lambda message: "text" in message)["text"] == text[: 200 << 10]
        fill_socket(server, slow)
        eventually(
            lambda: server.send(slow.client_id, {"fill": "x" * 65_536}) and slow.client_id not in server.connections,
            server.stats,
        )
    assert server.stats()["disconnects"]["slow_consumer"] == 1


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o660), (0o600, 0o600), ("666", 0o666), ("0o640", 0o640)])
def test_the_mode_of_the_file(make_server: MakeServer, path: Path, mode: Any, expected: int) -> None:
    server = make_server(host=f"unix:{path}", unix_socket_mode=mode)
    assert permissions(path) == expected
    assert server.setting("unix_socket_mode") == f"{expected:o}"


def test_the_mode_in_the_environment_is_octal(
    make_server: MakeServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANTOR_UNIX_SOCKET_MODE", "0606")
    make_server(host=f"unix:{path}")
    assert permissions(path) == 0o606


@pytest.mark.parametrize("mode", [660, 0o1000, -1, "668", "1000", "rw", 1.5, True])
def test_a_mode_that_is_none_is_a_setting_error(mode: Any) -> None:
    with pytest.raises(SettingError, match=r"unix_socket_mode is .*it takes"):
        Tantor(unix_socket_mode=mode)


def test_the_file_of_a_server_that_has_ended_is_replaced(make_server: MakeServer, path: Path) -> None:
    leave_stale(path)
    assert path.is_socket()
    assert not listens(path)
    make_server(host=f"unix:{path}")
    assert http_request(path, HEALTHZ)[0] == 200


def test_another_server_is_left_alone(make_server: MakeServer, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        error = start_fails(path)
        assert "a server listens on it" in str(error)
        assert listens(path)
    first = make_server(host=f"unix:{path}.2")
    error = start_fails(Path(f"{path}.2"))
    assert "of this process has the socket" in str(error)
    assert get_tantor() is first
    assert http_request(Path(f"{path}.2"), HEALTHZ)[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog looks like a socket without a server")
def test_a_server_that_takes_no_connections_for_now_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))  # the backlog is full now
        assert "a server listens on it" in str(start_fails(path))


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    error = start_fails(path)
    assert isinstance(error, FileExistsError)
    assert "it is not a socket" in str(error)
    assert path.read_text() == "mine"


def test_a_directory_that_is_missing_is_named(path: Path) -> None:
    error = start_fails(path.parent / "none" / "t.sock")
    assert isinstance(error, FileNotFoundError)
    assert f"the directory {path.parent / 'none'} must exist" in str(error)


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("unix:/" + "x" * 200, "a path of 201 bytes; the system takes at most"),
        ("unix:t.sock", "no absolute path"),
        ("unix:", "no absolute path"),
        ("unix:@name", "abstract name"),
        ("unix:/a\0b", "abstract name"),
        (["127.0.0.1", "unix:t.sock"], "no absolute path"),
        ("127.0.0.1,,::1", "one of them is empty"),
    ],
)
def test_a_host_that_cannot_be_is_a_setting_error(host: Any, problem: str) -> None:
    with pytest.raises(SettingError, match=f"host is .*it takes addresses, names, or unix: .*{problem}"):
        Tantor(host=host)


def test_beside_tcp(make_server: MakeServer, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tantor")
    server = make_server(host=[f"unix:{path}", "127.0.0.1", f"unix:{path}.2", f"unix:{path}"])
    port = server.port
    assert port > 0
    assert repr(server).startswith(f"<Tantor on unix:{path}, 127.0.0.1:{port}, unix:{path}.2, ")
    listening = f"listening on 127.0.0.1:{port} and unix:{path} and unix:{path}.2 with"
    eventually(lambda: listening in caplog.text, lambda: caplog.text)
    with (
        WebSocketClient(port).greet() as tcp,
        WebSocketClient(path).greet() as first,
        WebSocketClient(Path(f"{path}.2")).greet() as second,
    ):
        tcp.action("broadcast", channel="jungle", event="hello")
        for client in (tcp, first, second):
            client.receive_until(event="hello")
        server.stop().result()
        for client in (tcp, first, second):
            assert client.wait_closed() == 1001
    assert not accepts_connections(port)
    assert not path.exists()
    assert not Path(f"{path}.2").exists()


def test_a_start_that_fails_leaves_no_file(make_server: MakeServer, path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Tantor(taken.getsockname()[1], [f"unix:{path}", "127.0.0.1"])
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:"):
            server.start_background()
    other = Path(f"{path}.2")
    other.write_text("no socket")
    server = Tantor(0, ["127.0.0.1", f"unix:{path}", f"unix:{other}"])
    with pytest.raises(OSError, match=re.escape(f"cannot listen on unix:{other}")):
        server.start_background()
    assert not path.exists()
    make_server(host=f"unix:{path}")


def test_what_has_taken_the_place_of_the_file_stays(make_server: MakeServer, path: Path) -> None:
    server = make_server(host=f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server.stop().result()
        assert listens(path)
    server.start_background()
    path.unlink()
    server.stop().result()
    assert not path.exists()


def test_a_port_that_no_host_uses_is_told(
    make_server: MakeServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(host=f"unix:{path}", port=9000)
    eventually(lambda: "port is 9000, which is not used" in caplog.text, lambda: caplog.text)
    assert server.port == 0
    with pytest.raises(ValueError, match=r"has no TCP port; create_test_client_html\(port=\.\.\.\)"):
        server.create_test_client_html()


def test_lost_clients_of_one_socket_make_room_before_those_of_an_address(make_server: MakeServer, path: Path) -> None:
    server = make_server(host=["127.0.0.1", f"unix:{path}"], max_away_clients=3)

    def lose(address: int | Path) -> str:
        with WebSocketClient(address).greet() as client:
            client.ask("ping")
        eventually(lambda: client.client_id not in server.connections, server.stats)
        return client.welcome["resume"]

    direct = lose(server.port)
    proxied = [lose(path) for _ in range(3)]
    with WebSocketClient(server.port, f"/?resume={direct}").greet() as client:
        assert client.welcome["resumed"] is True
    with WebSocketClient(path, f"/?resume={proxied[0]}").greet() as client:
        assert client.welcome["resumed"] is False
    with WebSocketClient(path, f"/?resume={proxied[2]}").greet() as client:
        assert client.welcome["resumed"] is True


# Ends of processes

SERVER = """
import time
from tantor import Tantor
tantor = Tantor(host="unix:PATH", drain_timeout=1).start_background()
print("listens", flush=True)
"""


def test_the_file_is_gone_when_the_process_has_exited(path: Path) -> None:
    done = run_python(SERVER.replace("PATH", str(path)) + "import os; assert os.path.exists(tantor.host[5:])")
    assert done.returncode == 0, done.stderr
    assert not path.exists()


def serve(path: Path, log: Path) -> Script:
    return Script([sys.executable, "-m", "tantor", "serve", "--host", f"unix:{path}"], log=log)


def test_tantor_serve_and_sigterm(path: Path, tmp_path: Path) -> None:
    with serve(path, tmp_path / "log") as process:
        eventually(lambda: path.exists() and listens(path), lambda: process.output, timeout=30)
        with WebSocketClient(path).greet() as client:
            process.process.terminate()
            client.receive_until(event="server_shutdown")
            assert client.wait_closed() == 1001
        assert process.wait() == 0, process.output
        assert f"listening on unix:{path} with" in process.output
    assert not path.exists()


def test_a_server_that_was_killed_is_replaced(path: Path, tmp_path: Path) -> None:
    with serve(path, tmp_path / "first") as process:
        eventually(lambda: path.exists() and listens(path), lambda: process.output, timeout=30)
        process.process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.is_socket()
    with serve(path, tmp_path / "second") as process:
        eventually(lambda: listens(path), lambda: process.output, timeout=30)
        process.process.terminate()
        assert process.wait() == 0, process.output
    assert not path.exists()


@pytest.mark.parametrize("is_stale", [False, True], ids=["fresh", "stale"])
def test_of_servers_that_start_together_one_has_the_path(path: Path, tmp_path: Path, is_stale: bool) -> None:
    if is_stale:
        leave_stale(path)
    source = f"""
        import threading
        from tantor import Tantor
        servers = [Tantor(host="unix:{path}", drain_timeout=1) for _ in range(8)]
        gate = threading.Barrier(len(servers))
        def start(server):
            gate.wait()
            try:
                server.start_background(30)
            except OSError as error:
                assert "a server listens on it" in str(error), error
        threads = [threading.Thread(target=start, args=(server,)) for server in servers]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("running", sum(server.is_running for server in servers), flush=True)
    """
    with script(source, tmp_path) as process:
        assert process.wait_for_line("running ") == "1"
        assert process.wait() == 0, process.output
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
def test_a_fork_leaves_the_file(path: Path) -> None:
    source = f"""
import os, socket
from tantor import Tantor
path = "{path}"
tantor = Tantor(host="unix:" + path, drain_timeout=1).start_background()
child = os.fork()
if child == 0:
    try:
        Tantor(host="unix:" + path).start_background()
    except OSError as error:
        assert "a server listens on it" in str(error), error
    else:
        raise SystemExit(3)
    raise SystemExit(0)  # atexit runs, and stops nothing of the parent's
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with socket.socket(socket.AF_UNIX) as probe:
    probe.connect(path)
tantor.stop().result()
assert not os.path.exists(path)
"""
    done = run_python(source, options=QUIET_FORK)
    assert done.returncode == 0, done.stderr
