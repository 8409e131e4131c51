"""The page at / of a server, in Chromium."""

from typing import TYPE_CHECKING

import pytest
from support import http_request
from tantor import Tantor, __version__

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LINES_SHOWN = """code => {
  const range = document.createRange();
  range.selectNodeContents(code);
  return range.getBoundingClientRect().height / parseFloat(getComputedStyle(code).lineHeight);
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_it_shows_the_version_and_all_of_its_code(browser: "Browser", server: Tantor, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(f"http://127.0.0.1:{server.port}/")
    assert page.get_by_role("heading").inner_text().strip() == f"Tantor {__version__} is listening"
    assert page.locator("h1 img").evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for code in page.locator("pre").all():
        assert code.evaluate("code => code.scrollWidth <= code.clientWidth")
        assert round(code.evaluate(LINES_SHOWN)) == code.inner_text().strip().count("\n") + 1, "a line is broken"


def test_its_links_lead_somewhere(browser: "Browser", server: Tantor) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    paths = [link.get_attribute("href") for link in page.locator("a").all()]
    assert paths
    for path in paths:
        assert http_request(server.port, f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200, path
