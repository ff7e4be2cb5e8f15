"""The web page of a test server, in a real browser driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.browser.page import Comfy
from tests.conftest import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SCREENSHOTS = ROOT / ".work" / "screenshots"  # git-ignored


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless browser: the installed one, or the one named by CHROMIUM."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser here: install chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield running
        running.close()


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
