"""Actions that look like misspelled known ones."""

import logging
from collections.abc import Callable

import pytest
from support import WebSocketClient, eventually
from tantor import Tantor

Connect = Callable[..., WebSocketClient]

MISSPELLED = [("brodcast", "broadcast"), ("joinchannel", "join_channel"), ("pign", "ping"), ("histroy", "history")]


@pytest.mark.parametrize(("action", "nearest"), MISSPELLED)
def test_with_a_ref_it_is_an_error_that_names_the_nearest(
    server: Tantor, connect: Connect, action: str, nearest: str
) -> None:
    client = connect(server)
    client.action(action, ref="r")
    error = client.receive_until(ref="r")
    assert (error["event"], error["code"]) == ("error", 103)
    assert f'"{action}"' in error["message"]
    assert f'"{nearest}"' in error["message"]


def test_without_a_ref_there_is_a_line_in_the_log(
    server: Tantor, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tantor.connections"):
        client = connect(server)
        client.settle(server)
        client.action("brodcast")
        assert client.settle(server) == []
        eventually(lambda: 'the nearest is "broadcast"' in caplog.text, lambda: caplog.text)


def test_an_application_that_handles_its_own_actions_gets_them_all(server: Tantor, connect: Connect) -> None:
    seen: list[str] = []
    server.on_event("message", lambda data: seen.append(data["action"]))
    client = connect(server)
    client.action("brodcast", ref="r")
    assert client.receive_until(ref="r")["ok"] is True
    eventually(lambda: seen == ["brodcast"], lambda: seen)


@pytest.mark.parametrize("action", ["chat", "find", "typing", "broadcast_all"])
def test_other_actions_are_the_applications(server: Tantor, connect: Connect, action: str) -> None:
    client = connect(server)
    client.action(action, ref="r")
    assert client.receive_until(ref="r")["ok"] is True
