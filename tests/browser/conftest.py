"""The web page of a test server, in a real browser driven by Playwright."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import ROOT
from tools.page import Comfy, installed_browser, running_browser

SCREENSHOTS = ROOT / ".work" / "screenshots"  # git-ignored


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless browser: the installed one, or the one named by CHROMIUM."""
    program = installed_browser()
    if program is None:
        pytest.skip("no browser here: install chromium, or name one in CHROMIUM")
    with running_browser(program) as running:
        yield running


@pytest.fixture
def comfy(browser, server) -> Iterator[Callable[..., Comfy]]:
    """Opens the page of the server as a new user, in English."""
    contexts = []

    def open_page(path: str = "/") -> Comfy:
        context = browser.new_context(viewport={"width": 1600, "height": 1100})
        contexts.append(context)
        return Comfy(context.new_page(), f"{server.url}{path}", SCREENSHOTS)

    yield open_page
    for context in contexts:
        context.close()
