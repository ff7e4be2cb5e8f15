"""How many clicks and seconds does a new user need to a guided picture, and to three of sixteen kept by eye?

    python dev.py run tools/first_minutes.py

A server is started anew for each task, and a new user's page is opened in a real browser: from there on everything is
clicked, nothing is set. An encoder lies in models/jepa where the templates look for theirs; a download would come on top.
Seconds are from the opening of the page, so they hold its start and the first load of every model.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from research.harness import program
from research.harness.pack import ROOT
from research.harness.program import Row, markdown
from tools.page import Comfy, installed_browser, running_browser
from tools.server import Server

FIGURES = program.FIGURES / "first_minutes.json"
PICTURE = """([kind, index]) => {
    const nodes = app.graph.nodes.filter((node) => node.comfyClass === kind);
    return app.nodeOutputs[nodes[index].id]?.images?.length;
}"""
SHOWN = "[...document.querySelectorAll('[role=option] img')].filter((one) => one.naturalWidth).length === 16"
KEPT = 3
DOWNLOADED = "dinov2-with-registers-small"  # the encoder of the templates, in whose place the given one lies
PATIENCE = 600  # seconds


class Task:
    """A new user at work. seconds: from the opening of the page to each thing seen."""

    def __init__(self, page: Comfy, began: float) -> None:
        self.page = page
        self.seconds: dict[str, float] = {}
        self._began = began

    def seen(self, what: str, script: str, argument: Any = None) -> None:
        self.page.wait(script, argument, PATIENCE)
        self.seconds[what] = round(time.monotonic() - self._began, 1)

    def begin(self, template: str) -> None:
        """Open a template from the browser of templates, which a new user finds open, and run it."""
        inside = self.page.page
        inside.set_default_timeout(1000 * PATIENCE)
        self.page.click(inside.get_by_text("jepa-guidance", exact=True))
        self.page.click(inside.get_by_role("heading", name=template, exact=True))
        self.seen("graph", "app.graph.nodes.length > 3")
        inside.wait_for_timeout(1000)  # a user looks
        self.page.click(inside.get_by_role("button", name="Run").first)


def guided(task: Task) -> None:
    task.begin("01 First try without a checkpoint")
    task.seen("first picture", PICTURE, ["SaveImage", 0])
    task.seen("guided picture", PICTURE, ["SaveImage", 1])


def kept_by_eye(task: Task) -> None:
    task.begin("14 Pick by eye")
    task.seen("sixteen to choose from", SHOWN)
    inside = task.page.page
    for place in (0, 3, 6):
        task.page.click(inside.get_by_role("option").nth(place))
    task.page.click(inside.get_by_role("button", name=f"Keep {KEPT}", exact=True))
    task.seen("three kept", PICTURE, ["SaveImage", 0])


TASKS = {"a guided picture": guided, "three of sixteen kept by eye": kept_by_eye}


def measure(browser: Any, encoder: Path, task: Any) -> Row:
    """Clicks, and seconds to what is seen on the way, with a server and a user that are new."""
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{DOWNLOADED}": encoder}
    with Server(Path(os.environ["JEPA_HOST"]), links, cpu=True) as server, TemporaryDirectory() as pictures:
        context = browser.new_context(viewport={"width": 1600, "height": 1100})
        began = time.monotonic()
        done = Task(Comfy(context.new_page(), server.url, Path(pictures)), began)
        task(done)
        if done.page.errors:
            raise RuntimeError("; ".join(done.page.errors))
        context.close()
        return {"clicks": done.page.clicks, "seconds": done.seconds}


def table(figures: Row) -> str:
    """A row for each task."""
    columns = {"from a fresh page to": "{name}", "clicks": "{clicks}", "seconds to": "{way}"}
    rows = [
        {**row, "way": ", ".join(f"{what} {seconds:.0f}" for what, seconds in row["seconds"].items())}
        for row in figures["rows"]
    ]
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, FIGURES)
    options = parser.parse_args(arguments)
    chosen = installed_browser()
    if chosen is None:
        raise SystemExit("no browser here: install chromium, or name one in CHROMIUM")
    rows = []
    with running_browser(chosen) as browser:
        for name, task in TASKS.items():
            rows.append({"name": name, **measure(browser, options.encoder, task)})
            print(rows[-1], flush=True)
    program.write(options.out, {"settings": program.settings(parser, options), "rows": rows}, table)


if __name__ == "__main__":
    main()
