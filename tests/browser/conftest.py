"""The web page of a test server, in a real browser driven by Playwright."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import ROOT
from tools.page import Comfy, installed_browser, running_browser
from tools.server import Server

IDLE = """async () => {
    const queue = await (await fetch("/queue")).json();
    return !queue.queue_running.length && !queue.queue_pending.length;
}"""
SCREENSHOTS = ROOT / ".work" / "screenshots"  # git-ignored


def run(page: Comfy) -> None:
    """Queue the graph, as a user does."""
    page.click(page.page.get_by_role("button", name="Run").first)


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


@pytest.fixture
def encoder_name(server: Server) -> str:
    """The name of the local encoder in the encoder loader's menu."""
    menu = server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (local,) = [name for name in menu if name.endswith(".safetensors")]
    return str(local)
