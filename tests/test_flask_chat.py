"""The example chat, as `make demo` runs it, in Chromium."""

import importlib.util
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from processes import Script
from support import Site, WebSocketClient, accepts_connections, eventually, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

APP = Path(__file__).parents[1] / "examples" / "flask_chat" / "app.py"
OpenTab = Callable[..., "Page"]


class Chat:
    """The example, running; started again with `start` after `stop`."""

    def __init__(self, folder: Path) -> None:
        self.port, self.tantor_port = free_port(), free_port()
        self._folder = folder
        self._started = 0

    def start(self, *arguments: str) -> None:
        self._started += 1
        self.script = Script(
            [sys.executable, str(APP), "--port", str(self.port), *arguments],
            environment={
                "TANTOR_PORT": str(self.tantor_port),
                "TANTOR_DATABASE": f"sqlite:///{self._folder}/chat.db",
            },
            log=self._folder / f"log-{self._started}",
        )
        self.said = self.script.wait_for_line("Chat at")
        eventually(lambda: accepts_connections(self.port), lambda: self.script.output)

    def stop(self) -> None:
        self.script.process.send_signal(signal.SIGINT)
        self.script.wait()


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    chat = Chat(tmp_path)
    chat.start()
    yield chat
    with chat.script:
        pass


@pytest.fixture
def open_tab(chat: Chat, browser: "Browser") -> "OpenTab":
    """`open_tab(nick)`: the page in a tab of its own, connected."""

    def open_one(nick: str) -> "Page":
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{chat.port}/")
        page.get_by_text("Connected", exact=True).wait_for()
        page.get_by_label("Your nick").fill(nick)
        page.get_by_label("Your nick").press("Enter")
        online(page, nick).wait_for()
        return page

    return open_one


def online(page: "Page", nick: str) -> "Locator":
    return page.locator("#people .name").get_by_text(nick, exact=True)


def say(page: "Page", text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def said(page: "Page", text: str) -> "Locator":
    return page.get_by_role("log").locator(".text").get_by_text(text, exact=True)


def channel(page: "Page", name: str) -> "Locator":
    return page.get_by_role("navigation").get_by_role("button").filter(has_text=re.compile(rf"^{name}"))


def join(page: "Page", name: str) -> None:
    page.get_by_label("Join another channel").fill(name)
    page.get_by_label("Join another channel").press("Enter")


def test_it_prints_its_address_and_ends_on_ctrl_c(chat: Chat) -> None:
    assert chat.said.startswith(f"http://127.0.0.1:{chat.port} ")
    assert str(chat.tantor_port) in chat.said
    chat.stop()
    assert "Traceback" not in chat.script.output
    assert not accepts_connections(chat.tantor_port)


def test_two_tabs_see_each_other_and_their_messages(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    bob = open_tab("Bob")
    online(ada, "Bob").wait_for()
    online(bob, "Ada").wait_for()  # who was there first
    say(ada, "hello <i>everybody</i>")
    for tab in (ada, bob):
        said(tab, "hello <i>everybody</i>").wait_for()
        assert tab.get_by_role("log").locator("i").count() == 0
        assert tab.locator(".who strong").last.inner_text() == "Ada"
    say(bob, "hello Ada")
    said(ada, "hello Ada").wait_for()
    bob.get_by_label("Your nick").fill("Robert")
    bob.get_by_label("Your nick").press("Enter")
    ada.get_by_text("Bob is Robert now").wait_for()
    bob.close()
    ada.get_by_text("Robert left").wait_for()
    eventually(lambda: online(ada, "Robert").count() == 0, "Robert being gone")


def test_channels_are_joined_counted_and_left(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    bob = open_tab("Bob")
    for tab in (ada, bob):
        join(tab, "river")
    online(ada, "Bob").wait_for()
    channel(ada, "jungle").click()
    say(bob, "the water rises")
    channel(ada, "river").get_by_text("1", exact=True).wait_for()
    assert said(ada, "the water rises").count() == 0
    channel(ada, "river").click()
    said(ada, "the water rises").wait_for()
    assert channel(ada, "river").inner_text() == "river"
    bob.get_by_role("button", name="Leave").click()
    ada.get_by_text("Bob left").wait_for()
    assert channel(bob, "river").count() == 0
    say(bob, "back in the jungle")
    channel(ada, "jungle").click()
    said(ada, "back in the jungle").wait_for()


def test_who_comes_later_sees_what_was_said(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    for text in ("one", "two", "three"):
        say(ada, text)
    said(ada, "three").wait_for()
    bob = open_tab("Bob")
    said(bob, "three").wait_for()
    assert bob.get_by_role("log").locator(".text").all_inner_texts() == ["one", "two", "three"]
    assert bob.locator(".who strong").first.inner_text() == "Ada"
    say(bob, "four")
    for tab in (ada, bob):
        said(tab, "four").wait_for()
        assert tab.get_by_role("log").locator(".text").count() == 4, "none is there twice"


def test_a_tab_that_is_loaded_again_is_the_same_person(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    bob = open_tab("Bob")
    say(bob, "before")
    said(ada, "before").wait_for()
    bob.reload()
    bob.get_by_text("Connected", exact=True).wait_for()
    said(bob, "before").wait_for()
    assert bob.locator(".who .you").count() == 1, "it is still one's own"
    say(bob, "after")
    said(ada, "after").wait_for()
    online(bob, "Ada").wait_for()
    assert online(ada, "Bob").count() == 1
    assert ada.get_by_text("Bob left").count() == 0


def test_a_server_that_has_lost_its_database_is_told_as_a_gap(chat: Chat, open_tab: OpenTab, tmp_path: Path) -> None:
    ada = open_tab("Ada")
    say(ada, "hello")
    said(ada, "hello").wait_for()
    chat.stop()
    for file in tmp_path.glob("chat.db*"):
        file.unlink()
    ada.get_by_text("Reconnecting…", exact=True).wait_for()
    chat.start()
    ada.get_by_text("Connected", exact=True).wait_for(timeout=30_000)
    ada.get_by_text("Messages may be missing here").wait_for()
    said(ada, "hello").wait_for()
    online(ada, "Ada").wait_for()
    say(ada, "again")
    said(ada, "again").wait_for()


def test_the_alarm_reaches_every_tab(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    bob = open_tab("Bob")
    channel(bob, "treehouse").click()
    ada.get_by_role("button", name="Sound the alarm").click()
    ada.get_by_label("What is the emergency?").fill("piranhas")
    ada.get_by_role("button", name="Sound it").click()
    for tab in (ada, bob):
        banner = tab.locator("#alarm")
        banner.get_by_text("piranhas", exact=True).wait_for()
        banner.get_by_role("button", name="Dismiss").click()
        banner.wait_for(state="hidden")


def test_every_alarm_stays_with_who_and_when_until_it_is_dismissed(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    bob = open_tab("Bob")
    for tab, alarm in ((ada, "piranhas"), (bob, "a flood")):
        tab.get_by_role("button", name="Sound the alarm").click()
        tab.get_by_label("What is the emergency?").fill(alarm)
        tab.get_by_role("button", name="Sound it").click()
        tab.locator("#alarm").get_by_text(alarm, exact=True).wait_for()
    ada.locator("#alarm").get_by_text("a flood", exact=True).wait_for()
    assert ada.locator(".alarm-text").all_inner_texts() == ["a flood", "piranhas"]
    who = ada.locator(".alarm-from").all_inner_texts()
    assert [text.split(", ")[0] for text in who] == ["Bob", "Ada"]
    assert all(re.search(r"\d\d[:.]\d\d", text) for text in who), who
    ada.get_by_role("button", name="Dismiss").first.click()
    assert ada.locator(".alarm-text").all_inner_texts() == ["piranhas"]


def test_an_alarm_that_cannot_be_sounded_says_so(chat: Chat, open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    ada.get_by_role("button", name="Sound the alarm").click()
    ada.get_by_label("What is the emergency?").fill("piranhas")
    chat.stop()
    ada.get_by_role("button", name="Sound it").click()
    ada.get_by_text("The alarm was not sounded: the server cannot be reached", exact=True).wait_for()
    assert ada.get_by_label("What is the emergency?").input_value() == "piranhas"


def test_a_connection_that_breaks_leaves_who_types_alone(chat: Chat, open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    field = ada.get_by_label("Message", exact=True)
    field.press_sequentially("half a ")
    chat.stop()
    ada.get_by_text("Reconnecting…", exact=True).wait_for()
    ada.keyboard.type("sentence")
    ada.keyboard.press("Enter")
    assert field.input_value() == "half a sentence", "it waits to be sent"
    chat.start()
    ada.get_by_text("Connected", exact=True).wait_for(timeout=30_000)
    ada.keyboard.press("Enter")
    said(ada, "half a sentence").wait_for()
    assert field.input_value() == ""


def test_a_channel_that_is_refused_has_no_composer(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    join(ada, "system")
    ada.get_by_text("This channel cannot be joined: ").wait_for()
    assert ada.get_by_label("Message", exact=True).is_disabled()
    assert ada.get_by_role("button", name="Send").is_disabled()
    ada.get_by_role("button", name="Leave").click()
    assert channel(ada, "system").count() == 0
    say(ada, "in the jungle")
    said(ada, "in the jungle").wait_for()
    join(ada, "system")
    ada.get_by_text("This channel cannot be joined: ").wait_for()
    ada.reload()
    ada.get_by_text("Connected", exact=True).wait_for()
    assert channel(ada, "system").count() == 0, "what was refused is not joined again"


def test_the_channels_of_a_tab_outlive_a_reload(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    channel(ada, "treehouse").click()
    ada.get_by_role("button", name="Leave").click()
    join(ada, "river")
    say(ada, "the water rises")
    said(ada, "the water rises").wait_for()
    ada.reload()
    said(ada, "the water rises").wait_for()
    assert ada.locator("#channel-name").inner_text() == "# river"
    assert ada.locator("#channels .name").all_inner_texts() == ["jungle", "river"]


def test_a_colour_belongs_to_a_nick(open_tab: OpenTab) -> None:
    def hue(tab: "Page") -> str:
        avatar = tab.get_by_role("log").locator(".avatar").last
        return str(avatar.evaluate("avatar => avatar.style.getPropertyValue('--hue')"))

    ada = open_tab("Ada")
    say(ada, "one")
    said(ada, "one").wait_for()
    other = open_tab("Bob")
    other.get_by_label("Your nick").fill("Ada")
    other.get_by_label("Your nick").press("Enter")
    say(other, "two")
    said(ada, "two").wait_for()
    assert ada.get_by_role("log").locator(".avatar").count() == 2
    assert (
        hue(ada)
        == hue(other)
        == ada.get_by_role("log").locator(".avatar").first.evaluate("avatar => avatar.style.getPropertyValue('--hue')")
    )


def test_it_fits_a_phone(open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    ada.set_viewport_size({"width": 390, "height": 780})
    names = ["the-upper-river", "the-lower-river", "the-far-side-of-the-mountain"]
    for name in names:
        join(ada, name)
    heading = ada.locator("#channel-name")
    for name in ("jungle", *names):
        channel(ada, name).click()
        assert heading.inner_text() == f"# {name}"
        assert heading.evaluate("heading => heading.scrollWidth <= heading.clientWidth"), f"{name} is cut"
        left, right = channel(ada, name).evaluate(
            "button => { const box = button.getBoundingClientRect(); return [box.left, box.right]; }"
        )
        assert (left >= 0, right <= 390) == (True, True), f"{name} is out of view"
    assert ada.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out"
    assert ada.get_by_text("Your nick", exact=True).bounding_box() is not None
    label = ada.get_by_text("Your nick", exact=True).evaluate("label => getComputedStyle(label).clipPath")
    assert label == "none", "the label is in view"


def test_a_page_that_is_loaded_before_tantor_runs_connects_later(
    browser: "Browser", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANTOR_PORT", str(free_port()))
    spec = importlib.util.spec_from_file_location("chat_app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chat_app", module)  # where Flask looks for the folder of templates
    spec.loader.exec_module(module)
    app = module.create_app()
    page = browser.new_page()
    with Site(app) as site:
        page.goto(f"http://127.0.0.1:{site.port}/")
        page.get_by_text("Tantor cannot be reached…", exact=True).wait_for()
        with app.extensions["tantor"]:
            page.get_by_text("Connected", exact=True).wait_for(timeout=30_000)
            say(page, "at last")
            said(page, "at last").wait_for()


def test_a_tab_comes_back_after_the_server_was_away(chat: Chat, open_tab: OpenTab) -> None:
    ada = open_tab("Ada")
    bob = open_tab("Bob")
    channel(ada, "treehouse").click()
    chat.stop()
    for tab in (ada, bob):
        tab.get_by_text("Reconnecting…", exact=True).wait_for()
        assert tab.get_by_role("button", name="Send").is_disabled()
    chat.start()
    for tab in (ada, bob):
        tab.get_by_text("Connected", exact=True).wait_for(timeout=30_000)
        channel(tab, "treehouse").click()
    online(ada, "Bob").wait_for()
    online(bob, "Ada").wait_for()
    say(ada, "still here")
    said(bob, "still here").wait_for()


def test_a_taken_port_is_said_plainly(chat: Chat, tmp_path: Path) -> None:
    command = [sys.executable, str(APP), "--port", str(free_port())]
    environment = {"TANTOR_PORT": str(chat.tantor_port), "TANTOR_DATABASE": f"sqlite:///{tmp_path}/second.db"}
    with Script(command, environment=environment, log=tmp_path / "second") as second:
        assert second.wait() == 1
    assert "Tantor cannot listen: " in second.output
    assert str(chat.tantor_port) in second.output
    assert "TANTOR_PORT=" in second.output
    assert "Traceback" not in second.output


def test_with_the_reloader_one_process_serves(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.start("--debug")
    family = [chat.script.process.pid]
    try:
        process = psutil.Process(chat.script.process.pid)
        family += [child.pid for child in process.children(recursive=True)]
        with urllib.request.urlopen(f"http://127.0.0.1:{chat.port}/", timeout=10) as response:
            assert f'data-tantor-port="{chat.tantor_port}"' in response.read().decode()
        assert accepts_connections(chat.tantor_port)
        assert chat.script.output.count("Chat at") == 1
        process.terminate()
        chat.script.wait()
        eventually(lambda: not accepts_connections(chat.tantor_port), "the port being free")
    finally:
        for pid in family:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()


def test_a_taken_port_of_the_page_is_said_plainly(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, str(APP), "--port", str(taken.getsockname()[1])]
        environment = {"TANTOR_PORT": str(free_port()), "TANTOR_DATABASE": f"sqlite:///{tmp_path}/chat.db"}
        with Script(command, environment=environment, log=tmp_path / "log") as script:
            assert script.wait() == 1
    assert "in use" in script.output
    assert "--port" in script.output
    assert "Traceback" not in script.output


def test_what_was_said_is_there_after_a_restart(chat: Chat) -> None:
    with WebSocketClient(chat.tantor_port).greet() as client:
        client.ask("broadcast", channel="jungle", event="chat_message", data={"message": "before"})
    chat.script.process.terminate()
    assert chat.script.wait() in (0, 143)
    chat.start()
    with WebSocketClient(chat.tantor_port).greet() as client:
        kept = client.ask("history", channel="jungle")["publications"]
    assert [one["data"] for one in kept if one["event"] == "chat_message"] == [{"message": "before"}]


def test_a_second_example_with_the_same_file_is_told_so(chat: Chat, tmp_path: Path) -> None:
    command = [sys.executable, str(APP), "--port", str(free_port()), "--database", f"sqlite:///{tmp_path}/chat.db"]
    with Script(command, environment={"TANTOR_PORT": str(free_port())}, log=tmp_path / "second") as second:
        assert second.wait() == 1
    assert "The messages cannot be kept: " in second.output
    assert "--database" in second.output
    assert "Traceback" not in second.output
