"""The JavaScript client in Chromium: networks that go, tabs that are hidden, frozen, reloaded and put away, faults."""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_page import PAGE, PATIENT, QUICK, SHOW, connects, freeze, hold_up, publish, reach, shows, start
from fault_proxy import BOTH, FIN, RESET, TO_CLIENT, TO_SERVER, FaultProxy
from fenced_blocks import read_blocks
from flask import Flask, render_template_string
from storms import DurableServer, Publisher, Storm
from support import TESTS, Site, WebSocketClient, eventually, missing
from tantor import Tantor
from tantor.flask import js_blueprint

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]
OpenPage = Callable[..., "Page"]

FAULT_SECONDS = float(os.environ.get("TANTOR_FAULT_SECONDS", "15"))
CLIENTS = 20


@pytest.fixture
def server(make_server: MakeServer) -> Tantor:
    return make_server(heartbeat_interval=0.5, heartbeat_timeout=5)


@pytest.fixture
def proxy(server: Tantor) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def site(server: Tantor) -> Iterator[str]:
    """The address of a page that imports the client from another port."""
    app = Flask(__name__)
    app.add_url_rule("/", "page", lambda: PAGE % server.port)
    app.add_url_rule("/elsewhere", "elsewhere", lambda: "<title>Elsewhere</title>")
    with Site(app) as running:
        yield f"http://127.0.0.1:{running.port}/"


@pytest.fixture
def open_page(browser: "Browser", site: str) -> Iterator[OpenPage]:
    """`open_page(context)`: the page, ready; an error of its scripts is a failure."""
    errors: list[str] = []

    def open_one(context: "BrowserContext | None" = None) -> "Page":
        page = (context or browser).new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(site)
        page.wait_for_function("window.ready")
        return page

    yield open_one
    assert errors == []


@pytest.fixture
def page(open_page: OpenPage) -> "Page":
    return open_page()


# basic exchange


def test_a_page_of_another_port_imports_it_and_talks(open_page: OpenPage, server: Tantor) -> None:
    ada, bob = open_page(), open_page()
    ada_id = start(ada, server.port)
    start(bob, server.port)
    reply = ada.evaluate("t.broadcast('den', 'n', 1)")
    assert reply["recipients"] == 2
    for page in (ada, bob):
        shows(page, 1)
    assert bob.evaluate("t.history('den').then(({publications}) => publications.map(({from}) => from))") == [ada_id]
    server.send(ada_id, {"text": "just you"}).result()
    eventually(lambda: ada.evaluate("told.mail.length") == 1, "the mail")
    bob.evaluate("t.close()")
    eventually(lambda: list(server.connections) == [ada_id], lambda: list(server.connections))


@pytest.mark.parametrize(("document", "heading"), [("README.md", "In the browser"), ("docs/clients.md", "JavaScript")])
def test_the_examples_of_the_documents_work_as_they_stand(
    browser: "Browser", server: Tantor, document: str, heading: str
) -> None:
    block = read_blocks((TESTS.parent / document).read_text(encoding="utf-8"))[heading]
    assert block.language == "html"
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.set_content(block.source.replace("8080", str(server.port)))

    def greeted() -> bool:
        server.broadcast("jungle", "greeting", {"text": "from Python"}).result()
        page.wait_for_timeout(50)  # the page's console is heard only while Playwright waits
        return any("from Python" in text for text in said)

    eventually(greeted, lambda: said)
    assert all(text.startswith(("greeting ", "user_joined ")) for text in said), said


def test_a_page_from_the_application_itself_waits_for_a_server_that_is_down(browser: "Browser", free_port: int) -> None:
    block = read_blocks((TESTS.parent / "README.md").read_text(encoding="utf-8"))["From the application itself"]
    app = Flask(__name__)
    app.register_blueprint(js_blueprint())
    app.add_url_rule(
        "/", "page", lambda: render_template_string(block.source.replace("localhost:8080", f"localhost:{free_port}"))
    )
    page = browser.new_page()
    said: list[str] = []
    with Site(app) as site:
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{site.port}/")
        eventually(
            lambda: page.wait_for_timeout(50) or any("ERR_CONNECTION_REFUSED" in text for text in said), lambda: said
        )
        with Tantor(free_port, "127.0.0.1", drain_timeout=1) as server:

            def greeted() -> bool:
                server.broadcast("jungle", "greeting", {"text": "from Python"}).result()
                page.wait_for_timeout(50)
                return any(text.startswith("greeting ") for text in said)

            eventually(greeted, lambda: said, 30)


@pytest.mark.parametrize(
    "fault",
    [
        lambda proxy: proxy.cut(RESET),
        lambda proxy: proxy.cut(FIN),
        lambda proxy: proxy.half_close(TO_CLIENT),
        lambda proxy: proxy.half_close(TO_SERVER),
        lambda proxy: proxy.drop(TO_CLIENT),
        lambda proxy: proxy.drop(TO_SERVER),
        lambda proxy: proxy.stall(BOTH),
    ],
    ids=["reset", "fin", "half-closed-to-client", "half-closed-to-server", "deaf", "dumb", "stalled"],
)
def test_a_connection_that_is_harmed_is_replaced_and_nothing_is_missing(
    page: "Page", server: Tantor, proxy: FaultProxy, fault: Callable[[FaultProxy], object]
) -> None:
    client_id = start(page, proxy.port)
    publish(server, 1, 3)
    shows(page, 3)
    fault(proxy)
    publish(server, 4, 6)
    server.send(client_id, "while away").result()
    shows(page, 6)
    eventually(lambda: page.evaluate("told.mail.length") == 1, "the mail")
    publish(server, 7, 8)
    shows(page, 8)
    eventually(lambda: connects(page) == 2, lambda: page.evaluate("told.state"), 30)
    publish(server, 9, 9)
    shows(page, 9)
    assert page.evaluate("t.clientId") == client_id


def test_a_page_that_does_not_read_is_closed_as_slow_and_gets_all_the_same(
    page: "Page", make_server: MakeServer
) -> None:
    server = make_server(max_pending_bytes=20_000, history_size=100_000, history_bytes=1 << 28)
    with FaultProxy(server.port) as proxy:
        start(page, proxy.port)
        proxy.stall(TO_CLIENT)
        sent = 0

        def is_closed_as_slow() -> bool:
            nonlocal sent
            publish(server, sent + 1, sent + 20)
            sent += 20
            server.broadcast("den", "fill", "x" * 15_000).result()
            return bool(server.stats()["disconnects"].get("slow_consumer"))

        # a step at a time: the shard is to keep up, and the system's buffers to be what fills
        eventually(is_closed_as_slow, lambda: server.stats(), 60)
        proxy.resume()
        shows(page, sent)
        eventually(lambda: page.evaluate("told.welcome.at(-1).resumed"), lambda: page.evaluate("told.welcome"))


def test_a_page_that_was_held_up_keeps_its_connection_and_misses_nothing(page: "Page", server: Tantor) -> None:
    start(page, server.port)
    # longer than the client waits for a silent server
    hold_up(page, 3, "window.idle = true")
    publish(server, 1, 50)
    page.wait_for_function("window.idle", timeout=20_000)
    shows(page, 50)
    assert connects(page) == 1, "its own silence is not the server's"


# networks


def test_without_a_network_it_waits_and_with_one_it_is_back_at_once(
    open_page: OpenPage, browser: "Browser", server: Tantor, proxy: FaultProxy
) -> None:
    context = browser.new_context()
    page = open_page(context)
    start(page, proxy.port, maxDelay=600_000)
    context.set_offline(True)
    proxy.cut()
    reach(page, "offline")
    assert page.evaluate("told.state.at(-1).delay") == 600_000
    publish(server, 1, 2)
    context.set_offline(False)
    shows(page, 2)
    reach(page, "connected")
    context.close()


def test_one_that_waits_when_the_network_goes_waits_for_the_network(
    open_page: OpenPage, browser: "Browser", server: Tantor, proxy: FaultProxy
) -> None:
    context = browser.new_context()
    page = open_page(context)
    start(page, proxy.port, **PATIENT)
    proxy.cut()
    reach(page, "waiting")
    context.set_offline(True)
    reach(page, "offline")
    context.set_offline(False)
    publish(server, 1, 1)
    shows(page, 1)
    context.close()


def test_what_the_browser_says_of_the_network_is_not_taken_for_the_end_of_a_connection(
    page: "Page", server: Tantor, proxy: FaultProxy
) -> None:
    start(page, proxy.port)
    for name in ("offline", "online"):
        page.evaluate("name => window.dispatchEvent(new Event(name))", name)
    publish(server, 1, 1)
    shows(page, 1)
    assert connects(page) == 1
    proxy.drop()
    page.evaluate("window.dispatchEvent(new Event('online'))")  # another network: the old connection is dead
    publish(server, 2, 2)
    shows(page, 2)


# tabs


def test_a_tab_that_is_shown_again_connects_at_once(page: "Page", server: Tantor, proxy: FaultProxy) -> None:
    start(page, proxy.port, **PATIENT)
    page.evaluate(SHOW, "hidden")
    proxy.cut()
    reach(page, "waiting")
    publish(server, 1, 2)
    page.evaluate(SHOW, "visible")
    shows(page, 2)


def test_a_tab_that_is_shown_again_notices_a_dead_connection_at_once(
    page: "Page", server: Tantor, proxy: FaultProxy
) -> None:
    start(page, proxy.port, heartbeatSlack=600_000, probeTimeout=200)
    page.evaluate(SHOW, "hidden")
    proxy.drop()
    publish(server, 1, 2)
    page.evaluate(SHOW, "visible")
    shows(page, 2)


def test_a_frozen_tab_keeps_its_connection_and_misses_nothing(page: "Page", server: Tantor) -> None:
    start(page, server.port)
    thaw = freeze(page)
    asleep = time.monotonic()
    publish(server, 1, 5)
    # longer than the client waits for a silent server
    eventually(lambda: time.monotonic() > asleep + 3, "3 s")
    thaw()
    publish(server, 6, 6)
    shows(page, 6)
    assert connects(page) == 1


def test_a_tab_that_lost_its_connection_while_frozen_is_back_at_once(
    page: "Page", server: Tantor, proxy: FaultProxy
) -> None:
    start(page, proxy.port, **PATIENT)
    thaw = freeze(page)
    proxy.cut()
    publish(server, 1, 5)
    thaw()
    shows(page, 5)


def test_a_connection_that_ends_before_it_has_answered_a_woken_tab_is_replaced_at_once(
    page: "Page", server: Tantor, proxy: FaultProxy
) -> None:
    # longer than between two heartbeats, which come all the time: the page does not find the server silent
    start(page, proxy.port, **PATIENT | {"probeTimeout": 1500})
    proxy.drop(TO_SERVER)
    page.evaluate("document.dispatchEvent(new Event('resume'))")
    # a message is no proof of a live server: it may have waited in the frozen tab
    publish(server, 1, 1)
    shows(page, 1)
    page.evaluate("new Promise(resolve => setTimeout(resolve, 1600))")
    proxy.cut()
    publish(server, 2, 2)
    shows(page, 2)


def test_timers_that_come_late_say_nothing_about_the_server(page: "Page", server: Tantor, proxy: FaultProxy) -> None:
    page.clock.install()
    start(page, server.port, heartbeatSlack=10_000)
    for _ in range(5):
        page.clock.fast_forward(120_000)  # as if the machine had slept
        eventually(lambda: page.evaluate("t.ping().then(() => true)"), "an answer")
    publish(server, 1, 1)
    shows(page, 1)
    assert connects(page) == 1


def test_a_page_that_is_loaded_again_goes_on_as_the_same_client(page: "Page", server: Tantor, connect: Connect) -> None:
    watcher = connect(server)
    watcher.action("join_channel", channel="den")
    watcher.receive_until(event="user_joined", channel="den")
    client_id = start(page, server.port, storage=True)
    publish(server, 1, 3)
    shows(page, 3)
    for number in range(4, 7):
        page.evaluate("() => { window.ready = false; }")
        page.reload(wait_until="commit")
        publish(server, number, number)
        page.wait_for_function("window.ready")
        assert page.evaluate("sessionStorage.length") == 1
        assert start(page, server.port, storage=True) == client_id
        shows(page, number, first=number)
        assert page.evaluate("told.welcome[0].resumed") is True
        assert page.evaluate("sessionStorage.length") == 0, "taken, for no tab that is opened from this one"
    events = [message.get("event") for message in watcher.settle(server)]
    assert "user_left" not in events
    assert events.count("user_joined") == 2, "in den and in the default channel"


def test_a_page_without_storage_that_goes_has_left(page: "Page", server: Tantor, connect: Connect) -> None:
    watcher = connect(server)
    client_id = start(page, server.port)
    page.goto(page.url + "elsewhere")
    left = watcher.receive_until(event="user_left", channel="jungle")
    assert left["data"]["client_id"] == client_id
    assert client_id not in server.connections


@pytest.fixture
def kept_page(site: str) -> Iterator["Page"]:
    """The page, ready, in a Chromium that keeps pages for going back: Playwright's arguments turn that off."""
    import shutil

    from conftest import CHROMIUM_ARGUMENTS
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[*CHROMIUM_ARGUMENTS, "--enable-features=BackForwardCache"],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        page = browser.new_page()
        page.goto(site)
        page.wait_for_function("window.ready")
        yield page
        browser.close()


def go_back(page: "Page") -> None:
    """Back to the page that has set `mark`, as it was left."""
    page.go_back(wait_until="commit")
    if page.evaluate("window.mark") != 1:
        missing("a Chromium that keeps pages for going back")


def test_a_page_that_one_goes_back_to_is_the_same_client_again(kept_page: "Page", server: Tantor) -> None:
    page = kept_page
    client_id = start(page, server.port)
    page.evaluate("window.mark = 1; addEventListener('pagehide', event => { window.persisted = event.persisted; });")
    publish(server, 1, 1)
    shows(page, 1)
    page.goto(page.url + "elsewhere")
    publish(server, 2, 3)
    go_back(page)
    shows(page, 3)
    assert page.evaluate("[t.clientId, persisted]") == [client_id, True]


def test_a_page_that_one_goes_back_to_is_the_client_that_a_later_page_was(kept_page: "Page", server: Tantor) -> None:
    page = kept_page
    client_id = start(page, server.port, storage=True)
    page.evaluate("window.mark = 1")
    publish(server, 1, 1)
    shows(page, 1)
    page.goto(page.url + "?later")
    page.wait_for_function("window.ready")
    assert start(page, server.port, storage=True) == client_id
    publish(server, 2, 2)
    eventually(lambda: page.evaluate("numbers") == [2], lambda: page.evaluate("numbers"))
    go_back(page)
    publish(server, 3, 3)
    shows(page, 3)
    assert page.evaluate("[t.clientId, told.gap]") == [client_id, []]


# storms


def crowd(page: "Page", port: int) -> None:
    """Many clients in one page, each as `clients[n]`."""
    script = "([port, options, count]) => Promise.all(Array.from({length: count}, () => start(port, {...options})))"
    page.evaluate(script, [port, QUICK, CLIENTS])


def all_show(page: "Page", last: int) -> None:
    """Wait until each client has shown all numbers up to this one since its first, in order, each once, and no gap."""
    tops = "clients.map(({numbers}) => numbers.at(-1))"
    eventually(lambda: set(page.evaluate(tops)) == {last}, lambda: [last, page.evaluate(tops)], 60)
    for numbers in page.evaluate("clients.map(({numbers}) => numbers)"):
        assert numbers == list(range(numbers[0], last + 1))
    told = page.evaluate("clients.flatMap(({told}) => [...told.gap, ...told.error].map(JSON.stringify))")
    assert told == []


@pytest.mark.timeout(FAULT_SECONDS + 180)
def test_many_clients_in_one_page_through_a_storm(page: "Page", make_server: MakeServer) -> None:
    server = make_server(heartbeat_interval=0.5, heartbeat_timeout=2.5, history_size=100_000, history_bytes=1 << 28)
    seed = random.randrange(1 << 31)
    with FaultProxy(server.port) as proxy:
        crowd(page, proxy.port)
        publisher = Publisher(server, "den", 50)
        storm = Storm(proxy, FAULT_SECONDS, seed)
        storm.join(FAULT_SECONDS + 60)
        last = publisher.end()
        print(f"seed {seed}: {last} messages, faults {storm.counts}")
        all_show(page, last)
    assert page.evaluate("clients.reduce((sum, {told}) => sum + told.welcome.length, 0)") > 2 * CLIENTS


@pytest.mark.timeout(FAULT_SECONDS + 180)
def test_many_clients_in_one_page_while_the_server_is_killed(page: "Page", tmp_path: Path) -> None:
    with DurableServer(tmp_path / "tantor.db", "den", 50) as durable:
        crowd(page, durable.port)
        end = time.monotonic() + FAULT_SECONDS
        saved = kills = 0
        while time.monotonic() < end:
            time.sleep(random.uniform(1, 3))  # of steady publishing
            saved = max(saved, durable.kill())
            kills += 1
            durable.start()
        tops = "Math.min(...clients.map(({numbers}) => numbers.at(-1)))"
        eventually(lambda: page.evaluate(tops) > saved, lambda: f"{page.evaluate(tops)} of {saved}", 60)
        durable.kill()
        assert kills >= 2
        for numbers in page.evaluate("clients.map(({numbers}) => numbers)"):
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
        # A kill loses a session that is not yet committed. Its client is told so, and misses no number all the same.
        gaps = page.evaluate("clients.flatMap(({told}) => told.gap)")
        assert [gap for gap in gaps if gap["reason"] != "new_client"] == []
