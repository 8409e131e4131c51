"""The test client page, in Chromium, opened as a file."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import WebSocketClient, eventually
from tantor import Tantor
from tantor.test_client import FILE_NAME, write_test_client

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

Connect = Callable[..., WebSocketClient]
OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(server: Tantor, browser: "Browser", tmp_path: Path) -> "Iterator[OpenPage]":
    """`open_page()`: the page for the server, with a failure for every error in its console."""
    path = write_test_client(server.port, tmp_path)
    errors: list[str] = []

    def open_one() -> "Page":
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(Path(path).as_uri())
        return page

    yield open_one
    assert errors == []


@pytest.fixture
def page(open_page: "OpenPage") -> "Page":
    return open_page()


@pytest.fixture
def connected(page: "Page") -> "Page":
    page.get_by_role("button", name="Connect", exact=True).click()
    page.get_by_text("Connected", exact=True).wait_for()
    entry(page, "welcome").wait_for()
    return page


def entry(page: "Page", event: str, text: str = "") -> "Locator":
    """The log's first entry of an event with this text."""
    pattern = re.compile(rf"{re.escape(event)}.*{re.escape(text)}", re.DOTALL)
    return page.get_by_role("log").get_by_role("listitem").filter(has_text=pattern).first


def client_id(page: "Page") -> str:
    return page.locator("#client-id").inner_text()


def hidden_below(page: "Page") -> float:
    """Pixels of the log that are below what is in view."""
    return float(page.locator("#log").evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight"))


# writing it


def test_it_is_written_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Tantor(9000).create_test_client_html(9001)
    assert path == FILE_NAME == "tantor-test-client.html"
    text = (tmp_path / path).read_text(encoding="utf-8")
    assert 'data-port="9001"' in text
    assert "8080" not in text.replace("ws://localhost:8080;", "").replace("such as ws://localhost:8080`", "")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text), "it depends on nothing"
    Tantor().create_test_client_html()
    assert 'data-port="8080"' in (tmp_path / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("port", [0, -1, 65_536, "8080", True, None])
def test_a_port_that_cannot_be_connected_to_is_refused(port: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"port is {port!r}; it takes a whole number from 1 to 65535")):
        write_test_client(port, tmp_path)
    assert not list(tmp_path.iterdir())


# using it


def test_connect_and_disconnect(page: "Page", server: Tantor) -> None:
    address = page.get_by_label("Address")
    assert address.input_value() == f"ws://localhost:{server.port}"
    disconnect = page.get_by_role("button", name="Disconnect")
    assert disconnect.is_disabled()
    address.press("Enter")  # by keyboard
    entry(page, "welcome", "Welcome to Tantor's jungle!").wait_for()
    assert client_id(page) in server.connections
    disconnect.click()
    entry(page, "Disconnected", "1000").wait_for()
    eventually(lambda: not server.connections, "the client being gone")
    page.get_by_role("button", name="Connect", exact=True).click()
    eventually(lambda: len(server.connections) == 1, "the client being back")


def test_another_address(page: "Page", make_server: Callable[..., Tantor]) -> None:
    other = make_server()
    page.get_by_label("Address").fill(f"ws://127.0.0.1:{other.port}/any/path")
    page.get_by_role("button", name="Connect", exact=True).click()
    entry(page, "welcome").wait_for()
    assert list(other.connections) == [client_id(page)]


def test_what_is_no_address_or_no_server_is_said(browser: "Browser", tmp_path: Path, free_port: int) -> None:
    page = browser.new_page()
    page.goto(Path(write_test_client(free_port, tmp_path)).as_uri())
    page.get_by_role("button", name="Connect", exact=True).click()
    entry(page, f"No connection to ws://localhost:{free_port} (1006); is the server running?").wait_for()
    page.get_by_label("Address").fill("nonsense://")
    page.get_by_label("Address").press("Enter")
    entry(page, "nonsense:// is not a WebSocket address").wait_for()
    assert page.get_by_role("button", name="Connect", exact=True).is_enabled()


def test_send_on_a_chosen_channel(connected: "Page", server: Tantor, connect: Connect) -> None:
    other = connect(server)
    other.action("join_channel", channel="treehouse")
    connected.get_by_role("radio", name="treehouse").check()
    connected.get_by_role("button", name="Join").click()
    entry(connected, "user_joined", "2 here").wait_for()
    connected.get_by_label("Message", exact=True).fill("hello up there")
    connected.get_by_label("Message", exact=True).press("Enter")
    message = other.receive_until(event="chat_message")
    assert (message["channel"], message["data"]) == ("treehouse", {"message": "hello up there"})
    assert message["from"] == client_id(connected)
    entry(connected, "chat_message", "hello up there (from you)").wait_for()
    assert connected.get_by_label("Message", exact=True).input_value() == ""


def test_join_leave_and_presence(connected: "Page", server: Tantor, connect: Connect) -> None:
    connected.get_by_role("radio", name="another").check()
    connected.get_by_placeholder("Name of the channel").fill("den")
    connected.get_by_role("button", name="Join").click()
    entry(connected, "user_joined", "1 here").wait_for()
    presence = connected.locator("#presence")
    assert presence.inner_text() == "1 in den"
    other = connect(server)
    other.action("join_channel", channel="den")
    connected.get_by_text("2 in den", exact=True).wait_for()
    assert set(connected.locator("#people li").all_inner_texts()) == {client_id(connected), other.client_id}
    other.say_goodbye()
    connected.get_by_text("1 in den", exact=True).wait_for()
    connected.get_by_role("button", name="Leave").click()
    eventually(lambda: server.get_presence("den")["online"] == 0, "the page having left")
    assert presence.inner_text() == "You are not in this channel."
    connected.get_by_role("radio", name="jungle").check()
    assert presence.inner_text() == "1 in jungle"


def test_those_who_were_there_before_are_counted(server: Tantor, connect: Connect, connected: "Page") -> None:
    server.subscribe("client_before", "treehouse")
    connected.get_by_role("radio", name="treehouse").check()
    connected.get_by_role("button", name="Join").click()
    connected.get_by_text("2 in treehouse, 1 of them here before you").wait_for()


def test_ping(connected: "Page") -> None:
    connected.get_by_role("button", name="Ping").click()
    entry(connected, "pong").wait_for()
    assert re.search(r"after \d+\.\d ms", entry(connected, "pong").inner_text())
    connected.get_by_label("Heartbeats").uncheck()
    assert entry(connected, "pong").is_hidden()


def test_an_emergency_has_a_banner(connected: "Page", server: Tantor) -> None:
    assert connected.get_by_role("alert").is_hidden()
    server.emergency("<b>fire</b>")
    banner = connected.get_by_role("alert")
    banner.wait_for()
    assert "<b>fire</b>" in banner.inner_text()
    banner.get_by_role("button", name="Dismiss").click()
    assert banner.is_hidden()
    entry(connected, "emergency_alert", "<b>fire</b>").wait_for()


def test_every_emergency_stays_with_its_time_until_it_is_dismissed(connected: "Page", server: Tantor) -> None:
    for alarm in ("fire", "flood"):
        server.emergency(alarm)
    banner = connected.get_by_role("alert")
    banner.get_by_text("Emergency flood", exact=True).wait_for()
    assert banner.locator("p").all_inner_texts() == ["Emergency flood", "Emergency fire"]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", text) for text in banner.locator("time").all_inner_texts())
    connected.set_viewport_size({"width": 390, "height": 700})
    connected.locator("#send").scroll_into_view_if_needed()
    box = banner.bounding_box()
    assert box is not None
    assert box["y"] == 0, "in view wherever the page is scrolled to"
    banner.get_by_role("button", name="Dismiss").first.click()
    assert banner.locator("p").all_inner_texts() == ["Emergency fire"]


def test_the_end_of_a_connection_leaves_who_types_alone(connected: "Page", server: Tantor) -> None:
    connected.get_by_label("Message", exact=True).press_sequentially("half a ")
    server.stop()
    entry(connected, "Disconnected", "1001").wait_for()
    connected.keyboard.type("sentence")
    assert connected.get_by_label("Message", exact=True).input_value() == "half a sentence"


def test_the_elephant_needs_no_font(connected: "Page") -> None:
    welcome = entry(connected, "welcome", "Welcome to Tantor's jungle!")
    assert welcome.get_by_role("img", name="elephant").is_visible()
    assert "🐘" not in welcome.locator("summary").inner_text()


def test_what_is_shown_is_text(connected: "Page", server: Tantor, connect: Connect) -> None:
    markup = "<img src=x onerror='document.title = 1'>"
    other = connect(server)
    other.action("join_channel", channel=markup)
    other.action("broadcast", channel="jungle", event=markup, data={"message": markup})
    server.send(client_id(connected), {"event": markup, markup: markup})
    entry(connected, markup, f'{{"{markup}"').wait_for()
    for summary in connected.locator("#log summary").all():
        summary.click()
    assert connected.locator("#log pre").count() > 2
    assert connected.locator("img").count() == 0
    assert connected.title() == "Tantor test client"


def test_an_error_and_the_end_of_the_server_are_said(connected: "Page", server: Tantor) -> None:
    connected.get_by_role("radio", name="emergency").check()
    connected.get_by_label("Message", exact=True).fill("fire")
    connected.get_by_role("button", name="Send").click()
    entry(connected, "error", "emergency").wait_for()
    server._begin_stop()
    entry(connected, "server_shutdown").wait_for()
    entry(connected, "Disconnected", "1001").wait_for()
    assert connected.get_by_role("button", name="Send").is_disabled()


def test_the_log_follows_its_end_and_is_bounded(connected: "Page", server: Tantor) -> None:
    for n in range(1100):
        server.broadcast("jungle", "count", {"message": f"number {n}"})
    entry(connected, "count", "number 1099").wait_for()
    assert connected.locator("#log > li").count() == 1000
    eventually(lambda: hidden_below(connected) < 2, "the last entry in view")
    server.emergency("the banner takes room")
    connected.get_by_role("alert").wait_for()
    entry(connected, "emergency_alert").wait_for()
    eventually(lambda: hidden_below(connected) < 2, "the last entry in view beside the banner")
    connected.get_by_role("button", name="Clear").click()
    assert connected.locator("#log > li").count() == 0


def test_it_can_be_used_by_keyboard_alone(page: "Page", server: Tantor) -> None:
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.value"))
        if reached[-1] == "connect":
            break
    page.keyboard.press("Enter")
    entry(page, "welcome").wait_for()
    assert page.evaluate("() => document.activeElement.id") == "message"
    page.keyboard.type("typed")
    page.keyboard.press("Enter")
    entry(page, "chat_message", "typed").wait_for()
