"""What is logged, where, at which level; nothing is printed."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator

import pytest
from processes import run_python
from support import WebSocketClient, eventually
from tantor import Tantor

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, "tantor"):
        yield


def records(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    """Our records of at least this level."""
    ours = (record for record in caplog.records if record.name.split(".")[0] == "tantor")
    return [record for record in ours if record.levelno >= level]


def test_a_start_is_one_line_that_says_where_and_how(make_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = make_server(shards=2)
    eventually(lambda: records(caplog, logging.INFO), lambda: caplog.text)
    lines = [record for record in records(caplog, logging.INFO) if record.levelno == logging.INFO]
    assert len(lines) == 1, caplog.text
    assert lines[0].name == "tantor.server"
    message = lines[0].getMessage()
    assert f"127.0.0.1:{server.port}" in message
    assert re.search(r"\b2 shards\b", message), message


def test_nothing_is_printed(make_server: MakeServer, connect: Connect, capfd: pytest.CaptureFixture[str]) -> None:
    server = make_server()
    client = connect(server)
    client.send_text("no JSON")
    client.settle(server)
    server.emergency("fire")
    client.close()
    asyncio.run(server.stop())
    assert capfd.readouterr() == ("", "")


def test_clients_that_come_and_go_say_nothing_above_debug(
    make_server: MakeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server()
    eventually(lambda: records(caplog, logging.INFO), lambda: caplog.text)
    before = len(records(caplog, logging.INFO))
    for ending in (WebSocketClient.close, WebSocketClient.reset, WebSocketClient.say_goodbye):
        client = connect(server)
        client.send_text("no JSON")
        client.settle(server)
        ending(client)
    client = connect(server)
    client.send_raw(b"\x81\x00")
    assert client.wait_closed() == 1002
    eventually(lambda: len(server.connections) == 0, lambda: list(server.connections))
    connect(server).settle(server)
    assert records(caplog, logging.INFO)[before:] == [], caplog.text


def test_a_quiet_application_hears_only_warnings() -> None:
    done = run_python(
        """if True:
        import asyncio
        from tantor import Tantor
        tantor = Tantor(port=0, host="127.0.0.1")

        @tantor.on("server_shutdown")
        def bad(data):
            raise LookupError("no banana")

        with tantor:
            tantor.broadcast("jungle", "news")
    """,
        environment={"WITH_WARNINGS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "no banana" in done.stderr, "a handler's error is heard without any setting up of logging"
    assert "listening" not in done.stderr.lower(), done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("no authorisation is configured"), done.stderr
    assert lines[1].startswith("the handler "), done.stderr


CONFIGURE = """
logging.config.dictConfig({"version": 1, "root": {"level": "INFO", "handlers": ["out"]},
    "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}})
"""


def test_logging_that_is_configured_after_the_import_hears_of_handlers_that_fail() -> None:
    done = run_python(
        f"""
import logging, logging.config
from tantor import Tantor
import tantor.client, tantor.flask
{CONFIGURE}
tantor = Tantor(port=0, host="127.0.0.1")
@tantor.on("server_shutdown")
def bad(data):
    raise LookupError("no banana")
with tantor:
    pass
""",
        environment={"WITH_WARNINGS": "1"},
    )
    assert "no banana" in done.stdout, done
    assert "listening on" in done.stdout, done


def test_a_level_that_changes_while_it_runs_is_noticed(
    make_server: MakeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tantor")
    server = make_server()

    def is_logged() -> bool:
        connect(server).settle(server)
        return any("connected" in record.getMessage() for record in records(caplog, logging.DEBUG))

    assert not is_logged()
    caplog.set_level(logging.DEBUG, "tantor")
    eventually(is_logged, lambda: caplog.text)


def test_a_level_above_debug_costs_no_records(
    make_server: MakeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "tantor")
    server = make_server()
    connect(server).settle(server)
    asyncio.run(server.stop())
    assert records(caplog, logging.DEBUG) == []
