"""The ComfyUI page in a real browser driven by Playwright: clicking, reading, waiting."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import TimeoutError, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LOAD_MS = 120_000
FRAMES = 20  # a second; without a screen the page draws as many as the processor can
SHOW = """([id, scale]) => {
  const node = app.graph.getNodeById(id), ds = app.canvas.ds;
  ds.scale = scale;
  ds.offset = [-node.pos[0] + 400 / scale, -node.pos[1] + 120 / scale];
  app.canvas.setDirty(true, true);
}"""
# What the page says in its corner, and what the server does: the number of prompts that run and wait, the last results.
BUSY = """async () => {
  const read = async (path) => (await fetch(`/api/${path}`)).json();
  const [queue, history] = [await read("queue"), await read("history?max_items=2")];
  const said = [...document.querySelectorAll("[role=alert]")].map((one) => one.textContent);
  const ended = Object.values(history).map(({ status }) => JSON.stringify(status).slice(0, 2000));
  return { said, running: queue.queue_running.length, waiting: queue.queue_pending.length, ended };
}"""
ADD = """([kind, x, y]) => {
  const node = LiteGraph.createNode(kind);
  app.graph.clear();
  node.pos = [x, y];
  app.graph.add(node);
  return node.id;
}"""
# Once the start is over, a new user has the browser of templates and no node, others have the default graph.
STARTED = """() => window.app?.extensionManager?.workflow.activeWorkflow
  && (app.graph.nodes.length || document.querySelector("[role=dialog]"))"""
OPEN_TEMPLATE = """async (name) => {
  const answer = await fetch(`/api/workflow_templates/jepa-guidance/${encodeURIComponent(name)}.json`);
  await app.loadGraphData(await answer.json(), true, true, name);
}"""
# From graph coordinates to page coordinates: one transformation of the canvas.
TITLE = """(id) => {
  const node = app.graph.getNodeById(id), ds = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] - 15];
  return [(x + ds.offset[0]) * ds.scale + box.left, (y + ds.offset[1]) * ds.scale + box.top];
}"""


def installed_browser() -> str | None:
    """The program of the browser named by CHROMIUM, else of an installed one; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def running_browser(program: str) -> Iterator[Any]:
    """Playwright's browser, without a window, for the length of a `with` block."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield running
        running.close()


class Comfy:
    """An open page of ComfyUI.

    Attributes:
        page: Playwright's page.
        clicks: mouse clicks so far.
        errors: errors raised by scripts of the page.
    """

    def __init__(self, page: Any, url: str, screenshots: Path) -> None:
        self.page = page
        self.clicks = 0
        self.errors: list[str] = []
        self._screenshots = screenshots
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url, timeout=LOAD_MS)
        page.wait_for_function("window.app?.extensionManager && window.app?.graph", timeout=LOAD_MS)
        self.change("LiteGraph.Canvas.MaximumFps", FRAMES)

    def click(self, what: Any) -> None:
        """Click a locator, or a point (x, y)."""
        if isinstance(what, tuple):
            self.page.mouse.click(*what)
        else:
            what.click()
        self.clicks += 1

    def wait(self, script: str, argument: Any = None, seconds: float = 60) -> None:
        """Wait until a script, called with an argument, returns something truthy.

        Raises:
            TimeoutError: it does not in time; says what the page and its server were at, and leaves a screenshot.
        """
        end = time.monotonic() + seconds
        try:
            self.page.wait_for_function(script, arg=argument, timeout=1000 * seconds)
            # an async script gave it a promise, which is truthy whatever comes of it
            while not self.ask(script, argument):
                if time.monotonic() > end:
                    raise TimeoutError(f"Timeout {1000 * seconds:g}ms exceeded.")
                self.page.wait_for_timeout(100)
        except TimeoutError as error:
            self.picture("in_vain")
            raise TimeoutError(f"{error} {script} {self.ask(BUSY)} {self.errors}") from None

    def ask(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def node(self, kind: str, index: int = 0) -> str | int:
        """The id of a node of this type."""
        return self.ask(
            "([kind, index]) => app.graph.nodes.filter((node) => node.comfyClass === kind)[index].id",
            [kind, index],
        )

    def show(self, node: str | int, scale: float = 0.8) -> None:
        """Scroll a node to the upper left."""
        self.ask(SHOW, [node, scale])
        self.page.wait_for_timeout(700)

    def set(self, kind: str, widget: str, value: Any) -> None:
        """Set a widget of every node of a type."""
        self.ask(
            """([kind, name, value]) => {
            for (const node of app.graph.nodes.filter((one) => one.comfyClass === kind)) {
                const widget = node.widgets.find((one) => one.name === name);
                widget.value = value;
                widget.callback?.(value);
            }
        }""",
            [kind, widget, value],
        )

    def change(self, setting: str, value: Any) -> None:
        """Change a setting of the user."""
        self.ask("([name, value]) => app.extensionManager.setting.set(name, value)", [setting, value])

    def close_templates(self) -> None:
        """Close the template browser, which opens by itself for the first user of a server."""
        self.wait(STARTED, seconds=LOAD_MS / 1000)
        self.page.keyboard.press("Escape")

    def open_template(self, name: str) -> None:
        """Open a template of the pack on a page that has just been loaded.

        The page's own address for templates, /?template=NAME, does not take names with spaces.
        """
        self.close_templates()
        self.ask(OPEN_TEMPLATE, name)

    def only(self, kind: str) -> str | int:
        """Replace the graph by a single node; returns its id."""
        node: str | int = self.ask(ADD, [kind, 100, 100])
        self.show(node, scale=1)
        return node

    def help(self, node: str | int) -> Any:
        """Open the help of a node as a user does, by its title and the button above it; returns the locator of the panel."""
        x, y = self.ask(TITLE, node)
        self.click((x, y))
        self.click(self.page.get_by_test_id("info-button"))
        return self.page.locator(".node-help-content")

    def picture(self, name: str) -> bytes:
        """Take a screenshot, for people to look at."""
        self._screenshots.mkdir(parents=True, exist_ok=True)
        shot: bytes = self.page.screenshot(path=self._screenshots / f"{name}.png")
        return shot
