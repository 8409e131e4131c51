"""A page that uses the JavaScript client, and the actions of tests on the page."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from support import WebSocketClient, eventually
from tantor import Tantor

if TYPE_CHECKING:
    from playwright.sync_api import Page

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]
OpenPage = Callable[..., "Page"]

# QUICK makes a client notice a loss and return quickly. PATIENT makes it wait, for tests of what makes it return.
QUICK = {"heartbeatSlack": 500, "probeTimeout": 1000, "connectTimeout": 2000, "minDelay": 20, "maxDelay": 500}
PATIENT = {"minDelay": 600_000, "maxDelay": 600_000}

# `start(port, options)` connects; `numbers` are the numbers that were shown, in order, `told` all other events.
PAGE = """<!doctype html><title>A page of another port</title><script type="module">
  import { connect } from "http://127.0.0.1:%d/tantor.js";
  window.start = async (port, options = {}, channel = "den") => {
    if (options.storage) options.storage = sessionStorage;
    const told = { state: [], gap: [], mail: [], error: [], welcome: [] };
    const numbers = [];
    const t = connect(`ws://127.0.0.1:${port}/`, options);
    for (const name in told) t.on(name, value => void told[name].push(value));
    Object.assign(window, { t, told, numbers });
    (window.clients ??= []).push({ t, told, numbers });
    await t.join(channel, ({ event, data }) => event === "n" && void numbers.push(data));
    return t.clientId;
  };
  window.ready = true;
</script>"""

# Makes the page believe that it is hidden or shown, because a page that is really hidden stops its timers.
SHOW = """state => {
  Object.defineProperty(document, "visibilityState", { configurable: true, get: () => state });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def start(page: "Page", port: int, **options: Any) -> str:
    """Connect and join `den`; the client id."""
    client_id = page.evaluate("([port, options]) => start(port, options)", [port, {**QUICK, **options}])
    assert isinstance(client_id, str)
    return client_id


def publish(server: Tantor, first: int, last: int) -> None:
    for number in range(first, last + 1):
        server.broadcast("den", "n", number).result()


def shows(page: "Page", last: int, first: int = 1) -> None:
    """Wait until the page has shown exactly these numbers, in order, and no gap."""
    expected = list(range(first, last + 1))
    eventually(lambda: page.evaluate("numbers.at(-1)") == last, lambda: page.evaluate("[numbers, told]"), 30)
    assert page.evaluate("numbers") == expected
    assert page.evaluate("told.gap") == []


def reach(page: "Page", state: str) -> None:
    eventually(lambda: page.evaluate("t.state") == state, lambda: page.evaluate("told.state"), 30)


def connects(page: "Page") -> int:
    count = page.evaluate("told.welcome.length")
    assert isinstance(count, int)
    return count


def hold_up(page: "Page", seconds: float, then: str = "") -> None:
    """Block the scripts of the page for a while, and run one script then."""
    script = (
        "([ms, then]) => void setTimeout(() => { for (const end = Date.now() + ms; Date.now() < end; ); eval(then); })"
    )
    page.evaluate(script, [seconds * 1000, then])


def freeze(page: "Page") -> Callable[[], None]:
    """Stop the page's scripts at their next step, timers and all; what is returned thaws them.

    By the debugger: Chromium without a window freezes nothing when told `Page.setWebLifecycleState`, and says nothing.
    """
    session = page.context.new_cdp_session(page)
    paused: list[object] = []
    session.on("Debugger.paused", lambda event: paused.append(event))
    session.send("Debugger.enable")
    session.send("Debugger.pause")

    def is_paused() -> bool:
        session.send("Debugger.setSkipAllPauses", {"skip": False})  # events are heard only while Playwright waits
        return bool(paused)

    eventually(is_paused, "a step of the page's scripts")

    def thaw() -> None:
        session.detach()
        page.evaluate("document.dispatchEvent(new Event('resume'))")

    return thaw
