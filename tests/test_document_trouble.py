"""The blocks of the user's document on troubleshooting and security, as they stand, against a real server."""

import ast
import asyncio
import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil
import pytest
import websockets
from document_blocks import backlog, block, covers, execute, output_of, welcomed
from processes import run_python
from tantor import Tantor

if TYPE_CHECKING:
    pass


# Troubleshooting


@covers("WebSocket Connection Failed")
def test_websocket_connection_failed(tantor: Tantor) -> None:
    check_server = execute(block("WebSocket Connection Failed"))["check_server"]
    assert check_server("127.0.0.1", tantor.port) is True
    asyncio.run(tantor.stop())
    assert check_server("127.0.0.1", tantor.port) is False


@covers("High Memory Usage")
def test_high_memory_usage() -> None:
    with output_of() as output:
        execute(block("High Memory Usage"))["monitor_memory"]()
    used = re.fullmatch(r"Memory usage: (\d+\.\d\d) MB\n", output.getvalue())
    assert used, output.getvalue()
    assert float(used[1]) == pytest.approx(psutil.Process().memory_info().rss / 1024 / 1024, rel=0.5)


@covers("Connection Drops")
def test_connection_drops(make_server: Callable[..., Tantor]) -> None:
    tantor = make_server()
    source = block("Connection Drops", tantor.port)
    names = execute(source, asyncio=asyncio, websockets=websockets)

    async def reconnecting() -> None:
        task = asyncio.create_task(names["reconnect_client"]())
        while tantor.stats()["connections_total"] < 3:
            await asyncio.wait({task}, timeout=0.01)
        await tantor.stop()
        while "Connection lost: " not in output.getvalue():
            await asyncio.wait({task}, timeout=0.01)
        task.cancel()
        await asyncio.wait({task})

    with output_of() as output:
        asyncio.run(asyncio.wait_for(reconnecting(), 30))


@covers("Message Queue Backlog")
def test_message_queue_backlog(make_server: Callable[..., Tantor]) -> None:
    source = block("Message Queue Backlog")
    with output_of() as output:
        execute(source, tantor=make_server())["check_queue_health"]()
        assert output.getvalue() == ""
        with backlog(make_server) as tantor:
            execute(source, tantor=tantor)["check_queue_health"]()
    assert output.getvalue() == "Queue backlog detected\n"


@covers("Debug Mode")
def test_debug_mode() -> None:
    # in a process of its own, because it sets up logging for the whole process
    prelude = """if True:
        import asyncio, json
        from websockets.sync.client import connect
        from tantor import Tantor
        tantor = Tantor(port=0, host="127.0.0.1")
    """
    ending = """if True:
        with tantor, connect(f"ws://127.0.0.1:{tantor.port}", proxy=None) as client:
            client_id = json.loads(client.recv())["client_id"]
            asyncio.run(debug_connection(client_id))
            print(client_id)
    """
    done = run_python(f"{textwrap.dedent(prelude)}\n{block('Debug Mode')}\n{ending}")
    assert done.returncode == 0, done.stderr
    info, stats, client_id = done.stdout.splitlines()
    assert ast.literal_eval(info.removeprefix("Client info: "))["client_id"] == client_id
    assert ast.literal_eval(stats.removeprefix("Server stats: "))["total_connections"] == 1
    assert "tantor" in done.stderr, f"nothing was logged: {done.stderr!r}"


# Security Considerations


@covers("Authentication")
def test_authentication(tantor: Tantor) -> None:
    names = execute(block("Authentication"), tantor=tantor, verify_token=lambda token: token == "good")
    with welcomed(tantor.port) as (_, client_id):
        assert asyncio.run(names["authenticate_client"](client_id, "bad")) is False
        assert tantor.get_client_info(client_id)["user_data"] == {}
        assert asyncio.run(names["authenticate_client"](client_id, "good")) is True
        assert tantor.get_client_info(client_id)["user_data"] == {"authenticated": True}


@covers("Rate Limiting")
def test_rate_limiting() -> None:
    check = execute(block("Rate Limiting"))["check_rate_limit"]
    assert [check("client_123") for _ in range(11)] == [True] * 10 + [False]
    assert check("client_456") is True


@covers("Message Validation")
def test_message_validation() -> None:
    validate = execute(block("Message Validation"))["validate_message"]
    assert validate("hello") is True
    assert validate("<SCRIPT>alert(1)</SCRIPT>") is False
    assert validate("x" * (1024 * 1024 + 1)) is False
