"""`tantor.client.send`, for scripts; and what is said where the client's needs are not met."""

import asyncio
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from fenced_blocks import read_blocks
from processes import run_python
from support import WebSocketClient, eventually
from tantor import DataError, SettingError, Tantor
from tantor.client import CommandError, CommandLostError, ConnectError, DisconnectedError, send
from tantor.client import connect as connect_client
from websockets.asyncio.server import ServerConnection, serve

Connect = Callable[..., WebSocketClient]


def test_a_script_publishes_in_one_call(server: Tantor) -> None:
    url = f"ws://127.0.0.1:{server.port}"
    reply = send(url, "news", "number", 7)
    assert (reply["recipients"], reply["offset"]) == (0, 1)
    assert send(url, "news", "hello")["offset"] == 2
    kept = server.history("news").result().publications
    assert [(one["event"], one["data"]) for one in kept] == [("number", 7), ("hello", {})]


def test_a_script_that_tries_again_as_the_same_client_publishes_once(server: Tantor, connect: Connect) -> None:
    first = connect(server)
    token = first.welcome["resume"]
    offset = first.ask("broadcast", channel="news", event="number", data=7, idempotency_key="once")["offset"]
    first.reset()
    eventually(lambda: server.stats()["away"] == 1, "the first attempt is lost")
    again = send(f"ws://127.0.0.1:{server.port}/?path=1", "news", "number", 7, idempotency_key="once", resume=token)
    assert (again["offset"], again["duplicate"]) == (offset, True)
    assert send(f"ws://127.0.0.1:{server.port}", "news", "number", 8, idempotency_key="once")["offset"] == offset + 1


def test_the_error_of_an_attempt_without_an_answer_has_the_token_for_the_next() -> None:
    async def main() -> None:
        async def lose(connection: ServerConnection) -> None:
            await connection.send('{"event": "welcome", "channel": "system", "client_id": "c", "resume": "token"}')
            await connection.recv()
            connection.transport.abort()

        async with serve(lose, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            with pytest.raises(CommandLostError) as lost:
                await asyncio.to_thread(send, f"ws://127.0.0.1:{port}", "news", "number", 7)
            assert lost.value.resume == "token"

    asyncio.run(main())


def test_a_script_whose_client_is_forgotten_is_told_that_the_outcome_is_uncertain(server: Tantor) -> None:
    url = f"ws://127.0.0.1:{server.port}"
    with pytest.raises(CommandLostError, match="uncertain: the server took this client for a new one"):
        send(url, "news", "number", 7, idempotency_key="once", resume="client_1.unknown")
    assert server.history("news").result().publications == []


def test_a_script_leaves_as_it_came(server: Tantor) -> None:
    send(f"ws://127.0.0.1:{server.port}", "news", "number", 7)
    stats = server.stats()
    assert (stats["total_connections"], stats["away"]) == (0, 0)
    assert stats["disconnects"] == {"closed": 1}


def test_a_scripts_errors_say_what_was_wrong(server: Tantor, free_port: int) -> None:
    url = f"ws://127.0.0.1:{server.port}"
    with pytest.raises(CommandError, match=r"\(code 108\)"):
        send(url, "news", "welcome")
    with pytest.raises(DataError, match="broadcast: "):
        send(url, "news", "number", {1})
    with pytest.raises(SettingError, match="url is 'http://localhost'; it takes ws://host:port"):
        send("http://localhost", "news", "number")
    with pytest.raises(ConnectError, match=rf"ws://127\.0\.0\.1:{free_port}: .*(refused|Connect call failed)"):
        send(f"ws://127.0.0.1:{free_port}", "news", "number")


def test_without_websockets_the_import_says_what_to_install() -> None:
    source = """
import sys
sys.modules["websockets"] = None
import tantor
try:
    import tantor.client
except ImportError as error:
    print(error)
"""
    done = run_python(source)
    assert "needs the package websockets, from 13 on" in done.stdout
    assert "pip install 'tantor[client]'" in done.stdout


def test_the_package_itself_needs_no_websockets() -> None:
    done = run_python("import sys, tantor; print('websockets' in sys.modules)")
    assert done.stdout == "False\n"


def test_a_loop_that_ends_with_an_open_client_ends(server: Tantor) -> None:
    source = """
import asyncio, sys, warnings
from tantor.client import connect

warnings.simplefilter("error")

async def main():
    t = connect(f"ws://127.0.0.1:{sys.argv[1]}")
    await t.open()
    await t.join("news")
    asyncio.create_task(t.ping())

asyncio.run(main())
print("ended")
"""
    done = run_python(source, server.port)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_the_examples_of_the_pages_work_as_they_stand(server: Tantor) -> None:
    pages = Path(__file__).parent.parent
    source = read_blocks((pages / "docs" / "clients.md").read_text())["Python"].source
    done = run_python(source.replace("8080", str(server.port)))
    assert "'event': 'hello', 'data': {'to': 'all'}" in done.stdout, done
    assert done.stderr == ""
    readme = read_blocks((pages / "README.md").read_text())["In Python"].source
    body = readme.replace("8080", str(server.port)).replace("print(message)", "print(message); break")
    script = f"import asyncio\nasync def main():\n{textwrap.indent(body, '    ')}\nasyncio.run(main())"
    done = run_python(script)
    assert "'channel': 'jungle'" in done.stdout, done


def test_a_script_may_publish_where_a_loop_runs(server: Tantor) -> None:
    async def main() -> None:
        url = f"ws://127.0.0.1:{server.port}"
        assert send(url, "news", "number", 7)["offset"] == 1
        with pytest.raises(CommandError, match=r"\(code 108\)"):
            send(url, "news", "welcome")

    asyncio.run(main())


def test_a_server_that_is_no_tantor_is_named() -> None:
    async def main() -> None:
        async def hello(connection: ServerConnection) -> None:
            await connection.send("hello")
            await connection.wait_closed()

        async with serve(hello, "127.0.0.1", 0) as other:
            port = next(iter(other.sockets)).getsockname()[1]
            with pytest.raises(DisconnectedError, match=r"does not speak as a Tantor does: a frame was no JSON"):
                await connect_client(f"ws://127.0.0.1:{port}").open()

    asyncio.run(main())
