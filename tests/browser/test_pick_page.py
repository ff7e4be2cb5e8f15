"""JEPA Pick Images on the page: sorted images, a click or a key to keep, a reload, two tabs, cancel, and time."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.conftest import IDLE, SCREENSHOTS, run
from tests.browser.test_page import open_template
from tests.conftest import ROOT
from tools.page import Comfy
from tools.server import Server

# The server keeps the images, and asks again because this differs: seconds for the answer.
TIMEOUTS = itertools.count(599, -1)
TEMPLATE = "14 Pick by eye"
OURS = "window.app?.graph?.nodes.some((node) => node.comfyClass === 'JEPAPickImages')"
# What the panel shows.
PANEL = """(id) => {
    const { element, options } = app.graph.getNodeById(id).jepaPicker;
    const text = (name) => element.querySelector(name).textContent;
    const button = element.querySelector(".bar button");
    return {
        head: text(".head"), legend: text(".legend"), note: text(".note"), button: button.hidden ? null : button.textContent,
        time: text(".time"), open: element.classList.contains("open"),
        options: options.map((one) => ({
            label: one.ariaLabel, title: one.title, selected: one.ariaSelected === "true",
            rank: one.querySelector(".rank").textContent, caption: one.querySelector("figcaption").textContent,
            seen: one.querySelector("img").naturalWidth > 0,
        })),
    };
}"""
# The place of the image that is shown large: it takes most of the panel, and no other is seen.
ALONE = """(id) => {
    const { scroll, options } = app.graph.getNodeById(id).jepaPicker;
    const seen = options.filter((one) => one.checkVisibility());
    const [box, within] = [seen[0].querySelector("img").getBoundingClientRect(), scroll.getBoundingClientRect()];
    const large = Math.max(box.width / within.width, box.height / within.height) > 0.9 && box.bottom <= within.bottom;
    return seen.length === 1 && large ? options.indexOf(seen[0]) : null;
}"""
WIDTH = "(id) => app.graph.getNodeById(id).jepaPicker.element.offsetWidth"
OPEN = "(id) => app.graph.getNodeById(id)?.jepaPicker?.isOpen"
SEEN = """(id) => {
    const options = app.graph.getNodeById(id)?.jepaPicker?.options ?? [];
    return options.length && options.every((one) => one.querySelector("img").naturalWidth);
}"""
HEAD = "([id, text]) => app.graph.getNodeById(id).jepaPicker.head.textContent.includes(text)"
KEPT_SAID = "Kept {} of 16. To pick again, set ask to at every run."
KEPT = "(id) => app.nodeOutputs[id]?.jepa_pick?.[0]?.kept"


def prepare(page: Comfy, encoder: str) -> None:
    """Set the local encoder, small images for it, few steps, and another time for the answer."""
    page.set("JEPAEncoderLoader", "encoder", encoder)
    page.set("JEPAEncoderLoader", "image_size", 28)
    page.set("KSampler", "steps", 2)
    page.set("JEPAPickImages", "timeout", next(TIMEOUTS))


class PickPage:
    """A page with the template, small enough to keep the test short.

    Attributes:
        page: the page. pick: the id of the node.
    """

    def __init__(self, page: Comfy, encoder: str) -> None:
        self.page = page
        page.wait(OURS, seconds=180)
        prepare(page, encoder)
        self.pick = page.node("JEPAPickImages")
        page.wait("(id) => app.graph.getNodeById(id).jepaPicker.element.textContent", self.pick)
        page.show(self.pick, scale=0.8)

    def panel(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.ask(PANEL, self.pick)
        return found

    def asked(self) -> PickPage:
        """Wait until the images are shown."""
        self.page.wait(OPEN, self.pick, 400)
        self.page.wait(SEEN, self.pick, 30)
        return self

    def says(self, text: str, seconds: float = 60) -> None:
        """Wait until the line above the images has this text."""
        self.page.wait(HEAD, [self.pick, text], seconds)

    def option(self, place: int) -> Any:
        return self.page.page.get_by_role("option").nth(place)

    def alone(self) -> int | None:
        """Which image is shown large; None for all of them."""
        return self.page.ask(ALONE, self.pick)

    def go_on(self, text: str) -> None:
        self.page.click(self.page.page.get_by_role("button", name=text, exact=True))


@pytest.fixture
def open_pick(
    comfy: Callable[..., Comfy], server: Server, encoder_name: str
) -> Iterator[Callable[[], PickPage]]:
    """Opens a page with the template."""

    def open_page() -> PickPage:
        page = comfy()
        page.page.set_default_timeout(120_000)  # on a busy machine
        page.open_template(TEMPLATE)
        return PickPage(page, encoder_name)

    yield open_page
    server.interrupt()  # after a failure a pick may still wait, and the next page would show it


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["classic", "vue"])
def renderer(request: pytest.FixtureRequest) -> Iterator[Callable[[PickPage], str]]:
    """Switches a page to one of the two ways in which ComfyUI draws nodes; returns its name."""
    changed = []

    def switch(one: PickPage) -> str:
        changed.append(one.page)
        one.page.change("Comfy.VueNodes.Enabled", request.param)
        one.page.page.wait_for_timeout(3000)
        one.page.show(one.pick, scale=0.8)
        return "vue" if request.param else "classic"

    yield switch
    for page in changed:
        page.change("Comfy.VueNodes.Enabled", False)
        page.change("Comfy.RightSidePanel.IsOpen", False)


@pytest.mark.long  # the next one picks too; here clicks and seconds of a fresh page are counted
def test_three_of_sixteen_from_a_fresh_page(comfy, encoder_name):
    page = comfy()
    began = time.monotonic()
    open_template(page, TEMPLATE)
    opened = time.monotonic()
    page.page.wait_for_timeout(1000)
    pick = page.node("JEPAPickImages")
    prepare(page, encoder_name)  # these are no clicks of a user
    run(page)
    page.wait(SEEN, pick, 400)
    shown = time.monotonic()
    page.picture("pick_fresh")
    labels = [one["label"] for one in page.ask(PANEL, pick)["options"]]
    for place in (0, 3, 6):
        page.click(page.page.get_by_role("option").nth(place))
    page.picture("pick_fresh_picked")
    page.click(page.page.get_by_role("button", name="Keep 3", exact=True))
    page.wait(KEPT, pick)
    kept = page.ask(KEPT, pick)
    answered = time.monotonic()
    page.wait(IDLE, seconds=120)
    page.wait("(id) => app.nodeOutputs[id]?.images?.length === 3", page.node("SaveImage"), 60)
    page.picture("pick_fresh_done")
    assert [f"image {index}," for index in kept] == [
        labels[place].split(" novelty")[0] for place in (0, 3, 6)
    ]
    assert page.clicks <= 9
    assert not page.errors
    # for people: clicks, and seconds to open, to draw and score, and to pick
    seconds = {"open": opened - began, "draw": shown - opened, "pick": answered - shown}
    SCREENSHOTS.joinpath("pick_seconds.json").write_text(json.dumps({"clicks": page.clicks, **seconds}))


def test_the_mouse_picks_in_both_renderers(open_pick, renderer):
    one = open_pick()
    name = renderer(one)
    assert one.panel()["head"].startswith("The images appear here")
    one.page.picture(f"pick_before_{name}")
    run(one.page)
    one.asked()
    one.page.picture(f"pick_open_{name}")
    panel = one.panel()
    assert panel["head"] == "The run waits: click the images to keep, in your order."
    assert panel["legend"].startswith("Rarest first. Bold: rarer than this share")
    assert "left, then the first 3 are kept." in panel["note"]
    assert panel["button"] == "Keep the first 3"
    assert panel["time"].startswith(("9:", "10:"))
    # the page's panel, which shows what a selected node holds, does not take the pictures
    width = one.page.ask(WIDTH, one.pick)
    one.page.change("Comfy.RightSidePanel.IsOpen", True)
    one.page.ask("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", one.pick)
    one.page.page.get_by_text("on_timeout").first.wait_for()
    one.page.page.wait_for_timeout(1000)
    one.page.picture(f"pick_beside_the_panel_{name}")
    assert one.page.ask(WIDTH, one.pick) == width
    one.page.change("Comfy.RightSidePanel.IsOpen", False)
    one.page.page.wait_for_timeout(1000)
    shares = [int(option["caption"].split(" %")[0]) for option in panel["options"]]
    assert shares == sorted(shares, reverse=True)
    for place in (5, 1, 9):
        one.page.click(one.option(place))
    one.page.click(one.option(1))  # taken back
    one.page.click(one.option(2))
    assert [option["rank"] for option in one.panel()["options"]][:10] == [
        "",
        "",
        "3",
        "",
        "",
        "1",
        "",
        "",
        "",
        "2",
    ]
    labels = [option["label"] for option in one.panel()["options"]]
    assert labels[2].endswith("picked as number 3")
    # a closer look, where a click picks too
    one.option(6).hover()
    one.page.click(one.option(6).locator(".look"))
    assert one.alone() == 6
    one.page.picture(f"pick_closer_{name}")
    one.page.click(one.page.page.get_by_role("button", name="The next image (arrow right)"))
    assert one.alone() == 7
    for rank in ("4", ""):
        one.page.click(one.option(0))  # the only one to be seen
        assert one.panel()["options"][7]["rank"] == rank
    one.page.click(one.page.page.get_by_role("button", name="All images (Z)"))
    assert one.alone() is None
    one.page.picture(f"pick_picked_{name}")
    one.go_on("Keep 3")
    one.says(KEPT_SAID.format(3))
    one.page.wait(IDLE, seconds=60)
    one.page.picture(f"pick_done_{name}")
    done = one.panel()
    assert done["button"] is None
    assert [place for place, option in enumerate(done["options"]) if option["selected"]] == [2, 5, 9]
    assert one.page.ask(KEPT, one.pick) == [
        int(labels[place].split(",")[0].split()[1]) for place in (5, 9, 2)
    ]
    one.page.click(one.option(0))  # it is over
    assert one.panel()["options"] == done["options"]
    # unchanged, it is not asked again, and what was kept is shown
    run(one.page)
    one.page.wait(IDLE, seconds=60)
    one.says(KEPT_SAID.format(3))
    assert not one.page.errors


def test_the_keyboard_picks_in_both_renderers(open_pick, renderer):
    one = open_pick()
    name = renderer(one)
    run(one.page)
    one.asked()
    keyboard = one.page.page.keyboard
    stops = one.page.ask(
        "(id) => app.graph.getNodeById(id).jepaPicker.options.filter((one) => one.tabIndex === 0).length",
        one.pick,
    )
    assert stops == 1
    one.option(0).focus()
    for key in (
        "Enter",
        "Space",
        "ArrowRight",
        "ArrowRight",
        "Space",
        "End",
        "Space",
        "ArrowLeft",
        "Home",
        "Space",
        "Space",
    ):
        keyboard.press(key)
    keyboard.press("Delete")  # it would remove the node
    panel = one.panel()
    ranks = [option["rank"] for option in panel["options"]]
    assert [place for place, rank in enumerate(ranks) if rank] == [0, 2, 15]
    assert [ranks[place] for place in (0, 2, 15)] == ["3", "1", "2"]
    # what has the focus is told
    assert panel["note"] == panel["options"][0]["label"]
    for key, seen in (
        ("z", 0),
        ("ArrowLeft", 0),
        ("ArrowRight", 1),
        ("End", 15),
        ("ArrowUp", 14),
        ("Home", 0),
    ):
        keyboard.press(key)
        assert one.alone() == seen
    keyboard.press("Escape")
    assert one.alone() is None
    keyboard.press("ArrowDown")
    rows = one.page.ask(
        "(id) => app.graph.getNodeById(id).jepaPicker.options.indexOf(document.activeElement)", one.pick
    )
    assert rows == 4
    one.page.picture(f"pick_keyboard_{name}")
    keyboard.press("Enter")
    one.says(KEPT_SAID.format(3))
    assert not one.page.errors


def test_a_reload_in_the_middle_shows_the_pick_again(open_pick):
    one = open_pick()
    run(one.page)
    one.asked()
    one.page.click(one.option(9))
    one.page.click(one.option(4))
    before = one.panel()
    one.page.page.wait_for_timeout(3000)  # until the page has stored the graph
    one.page.page.reload()
    one.page.wait(OURS, None, 180)
    one.asked()
    one.page.show(one.pick, scale=0.8)
    after = one.panel()
    one.page.picture("pick_reloaded")
    assert after["options"] == before["options"]
    assert [option["rank"] for option in after["options"] if option["selected"]] == ["2", "1"]
    # another workflow of the page, and back
    one.page.click(one.option(9))
    one.page.ask("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    one.page.wait("app.graph.nodes.length === 0")
    one.page.ask("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    one.page.wait(OURS)
    one.asked()
    assert [place for place, option in enumerate(one.panel()["options"]) if option["selected"]] == [4]
    one.go_on("Keep 1")
    one.says(KEPT_SAID.format(1))
    one.page.wait(IDLE, seconds=60)
    assert not one.page.errors


def test_of_two_tabs_the_first_answer_counts_and_the_other_is_told(open_pick):
    one, other = open_pick(), open_pick()
    run(one.page)
    one.asked()
    other.asked()
    assert one.panel()["options"] == other.panel()["options"]
    one.page.click(one.option(0))
    other.page.click(other.option(7))
    other.page.click(other.option(8))
    other.go_on("Keep 2")
    other.says(KEPT_SAID.format(2))
    one.says("Answered in another tab: kept 2 of 16.")
    one.page.wait(IDLE, seconds=60)
    one.page.picture("pick_answered_elsewhere")
    for tab in (one, other):
        chosen = [place for place, option in enumerate(tab.panel()["options"]) if option["selected"]]
        assert chosen == [7, 8]
        assert tab.panel()["button"] is None
        assert not tab.page.errors


def test_cancel_ends_the_wait_and_the_panel_says_so(open_pick):
    one = open_pick()
    run(one.page)
    one.asked()
    before = time.monotonic()
    one.page.click(one.page.page.get_by_role("button", name="Cancel current run"))
    one.says("Cancelled: nothing was kept.", 10)
    one.page.wait(IDLE, seconds=10)
    assert time.monotonic() - before < 10
    one.page.picture("pick_cancelled")
    assert one.panel()["button"] is None
    run(one.page)
    one.asked()
    one.go_on("Keep the first 3")  # one click instead of four
    one.says(KEPT_SAID.format(3))
    assert [place for place, option in enumerate(one.panel()["options"]) if option["selected"]] == [0, 1, 2]
    assert not one.page.errors


@pytest.mark.long
def test_when_nobody_picks_the_panel_says_what_was_kept(open_pick):
    one = open_pick()
    one.page.set("JEPAPickImages", "timeout", 5)
    run(one.page)
    one.asked()
    first = one.panel()["time"]
    one.says("Nobody picked in 5 s: kept the first 3 of 16.", 30)
    assert first.startswith("0:0")
    assert [place for place, option in enumerate(one.panel()["options"]) if option["selected"]] == [0, 1, 2]
    one.page.wait(IDLE, seconds=60)
    one.page.picture("pick_late")
    one.page.set("JEPAPickImages", "on_timeout", "stop")
    run(one.page)
    one.asked()
    assert "then the run stops" in one.panel()["note"]
    one.says("Nobody picked in 5 s: the run stopped.", 30)
    one.page.picture("pick_stopped")
    assert not one.page.errors


@pytest.mark.long
def test_a_pick_out_of_view_is_announced(open_pick):
    one = open_pick()
    one.page.ask("app.canvas.ds.offset = [9000, 9000]")
    run(one.page)
    one.asked()
    one.page.page.get_by_text("A run waits: pick images on JEPA Pick Images.").wait_for(timeout=5000)
    one.page.picture("pick_out_of_view")
    one.page.show(one.pick)
    one.go_on("Keep the first 3")
    one.page.wait(IDLE, seconds=60)


@pytest.mark.long
@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_the_panel_speaks_the_users_language(open_pick, comfy, encoder_name, language):
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))[
        "jepaGuidance"
    ]
    first = open_pick()
    first.page.change("Comfy.Locale", language)
    try:
        first.page.page.wait_for_timeout(1000)
        one = open_pick()
        run_button = one.page.page.get_by_test_id("queue-button")
        one.page.ask("app.queuePrompt(0)") if not run_button.count() else run_button.first.click()
        one.asked()
        one.page.click(one.option(2))
        panel = one.panel()
        one.page.picture(f"pick_{language}")
        assert panel["head"] == words["pickAsk"]
        texts = [panel[name] for name in ("head", "legend", "note", "button")]
        texts += [option["label"] for option in panel["options"]]
        assert not [text for text in texts if "{" in text]
        one.go_on(words["pickKeep"].format(count=1))
        one.says(words["pickKept"].format(count=1, total=16))
    finally:
        first.page.change("Comfy.Locale", "en")
        first.page.page.wait_for_timeout(1000)
