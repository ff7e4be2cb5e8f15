"""The report of a table, opened from its file in a real browser: 10 000 rows, keyboard, filters, hostile names."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_core.folders.collection import duplicates_of, folder_and_name, read_collection
from jepa_core.folders.report import write_report
from jepa_core.folders.table import write_table
from tests.browser.conftest import SCREENSHOTS
from tests.core.folders.synthetic import HOSTILE, SETTINGS, planted, synthetic_rows

COUNT = 10_000
LENGTH = 96  # of embeddings; of shorter ones some lie close by chance
REAL = 12  # pictures that are there
SECONDS = 3
ROWS = "#grid .body [role=row]"
# Opening ends when rows are painted.
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


def report_in(folder: Path, count: int) -> Path:
    """A report of so many pictures; a few of the rarest and the first duplicates lie in the folder."""
    pictures = folder / "pictures"
    pictures.mkdir()
    rows = []
    for place, row in enumerate(synthetic_rows(count, LENGTH)):
        if place in (18, 19, 38, 39) or place < REAL:
            file = pictures / f"{place} <b>&amp;.png"
            colours = np.random.default_rng(place).integers(0, 255, (4, 4, 3), np.uint8)
            Image.fromarray(colours).resize((320, 240), Image.Resampling.BICUBIC).save(file)
            row = row._replace(path=str(file), score=-900.0 - place)
        rows.append(row)
    table = folder / "table <i>.parquet"
    write_table(table, SETTINGS, LENGTH, rows)
    collection = read_collection(table)
    write_report(folder / "report.html", table.name, collection, duplicates_of(table, collection, 0.02), 0.02)
    return folder / "report.html"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_in(tmp_path_factory.mktemp("report"), COUNT)


def opened(browser: Any, file: Path, **context: Any) -> tuple[Any, list[str]]:
    """The report in a new window; and a list that grows with all that goes wrong or is asked of a network."""
    page = browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | context).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
    page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else wrong.append(one.url))
    page.goto(file.as_uri())
    page.wait_for_selector(ROWS)
    return page, wrong


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    page, wrong = opened(browser, file)
    yield page
    page.context.close()
    assert wrong == []


def numbers(page: Any, label: str) -> list[float]:
    """A column of the rows in sight."""
    cells = page.locator(f"{ROWS} [data-label={label}]").all_text_contents()
    return [float(text) for text in cells]


def counted(page: Any) -> str:
    return page.get_by_role("status").inner_text()


def test_it_shows_what_it_is_about(page):
    assert page.get_by_role("heading", level=1).inner_text() == "table <i>.parquet"
    assert page.title() == "table <i>.parquet"
    facts = page.locator("#facts").inner_text().split("\n")
    assert facts[facts.index("pictures") - 1 if facts[0] != "pictures" else 1] == "10,000"
    assert (
        page.locator("#rarest img").evaluate_all("(all) => all.filter((one) => one.naturalWidth > 0).length")
        == REAL + 4
    )
    assert page.locator("#rarest .frame", has_text="missing").count() == 24 - REAL - 4
    assert page.get_by_role("img", name="Score of").count() == 1
    assert page.get_by_role("img", name="Novelty of").count() == 1
    assert page.locator("#duplicates .groups > li").count() == 20
    assert page.locator("#duplicates .groups > li").first.locator("img").count() == 2
    page.get_by_role("button", name="Show more groups").click()
    assert page.locator("#duplicates .groups > li").count() == 40


def test_only_rows_in_sight_are_in_the_document_and_all_can_be_reached(page):
    grid = page.get_by_role("grid", name="All pictures")
    assert grid.get_attribute("aria-rowcount") == str(COUNT + 1)
    page.locator(ROWS).first.focus()
    seen = []
    for key in (
        "Home",
        "ArrowDown",
        "ArrowDown",
        "ArrowUp",
        "PageDown",
        "End",
        "ArrowDown",
        "PageUp",
        "Home",
    ):
        page.keyboard.press(key)
        focused = page.evaluate("() => +document.activeElement.getAttribute('aria-rowindex')")
        seen.append(focused)
        inside = page.evaluate("""() => {
            const [row, body] = [document.activeElement, document.querySelector(".body")]
                .map((one) => one.getBoundingClientRect());
            return row.top >= body.top - 1 && row.bottom <= body.bottom + 1;
        }""")
        assert inside, key
        assert page.locator(ROWS).count() < 60
    start, end = 2, COUNT + 1
    step = seen[4] - (start + 1)
    assert step > 3
    assert seen == [start, start + 1, start + 2, start + 1, start + 1 + step, end, end, end - step, start]


def test_enter_opens_a_picture_and_escape_leads_back(page):
    page.locator(ROWS).first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").inner_text().endswith("<b>&amp;.png")
    page.wait_for_function(
        "() => document.querySelector('#details img').naturalWidth === 320"
    )  # the file itself
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("() => document.activeElement.getAttribute('aria-rowindex')") == "3"


def test_a_picture_that_is_gone_is_said_to_be(browser, file):
    page, wrong = opened(browser, file)
    page.get_by_label("Path contains").fill("picture 0000200")
    page.locator(ROWS).first.click()
    page.get_by_text("The picture is not there any more.").wait_for()
    page.context.close()
    assert all("ERR_FILE_NOT_FOUND" in line for line in wrong)


def test_sorting_says_so_and_sorts(page):
    score = page.get_by_role("columnheader", name="Score")
    assert score.get_attribute("aria-sort") == "ascending"
    found = numbers(page, "Score")
    assert found == sorted(found)
    score.get_by_role("button").press("Enter")
    assert score.get_attribute("aria-sort") == "descending"
    found = numbers(page, "Score")
    assert found == sorted(found, reverse=True)
    page.get_by_role("columnheader", name="Novelty").get_by_role("button").click()
    assert score.get_attribute("aria-sort") == "none"
    found = numbers(page, "Novelty")
    assert found == sorted(found)
    page.get_by_role("columnheader", name="Picture").get_by_role("button").click()
    names = page.locator(f"{ROWS} .cell").evaluate_all("(all) => all.map((one) => one.title)")
    assert names == sorted(names)


def test_filters(page):
    rows = list(synthetic_rows(COUNT, LENGTH))
    untouched = [row for place, row in enumerate(rows) if place >= REAL and place not in (18, 19, 38, 39)]
    page.get_by_label("Folder").select_option(label="/pictures/folder 07")
    in_folder = [row for row in untouched if folder_and_name(row.path)[0] == "/pictures/folder 07"]
    assert counted(page) == f"{len(in_folder)} of 10,000 pictures"
    page.get_by_label("Score from").fill("-510")
    page.get_by_label("Score to").fill("-490")
    fitting = [row for row in in_folder if row.score is not None and -510 <= row.score <= -490]
    assert counted(page) == f"{len(fitting)} of 10,000 pictures"
    assert all(-510 <= score <= -490 for score in numbers(page, "Score"))
    page.get_by_role("button", name="Clear filters").click()
    page.wait_for_function("() => document.getElementById('count').textContent === '10,000 pictures'")
    page.get_by_label("Only not readable").check()
    assert counted(page) == "20 of 10,000 pictures"
    assert "not readable: no <b>picture</b>" in page.locator(ROWS).first.inner_text()
    page.get_by_label("Only not readable").uncheck()
    page.get_by_label("Only duplicates").check()
    assert counted(page) == f"{2 * len(planted(COUNT))} of 10,000 pictures"
    page.get_by_label("Path contains").fill("no such file")
    assert page.get_by_text("No picture fits the filters.").is_visible()


def test_the_galleries_follow_the_criterion(page):
    first = page.locator("#rarest button").first.inner_text()
    page.get_by_label("Novelty (higher is rarer)").check()
    assert page.locator("#rarest button").first.inner_text() != first
    values = [float(text) for text in page.locator("#rarest .value span:first-child").all_text_contents()]
    assert values == sorted(values, reverse=True)


def test_hostile_names_are_only_text(browser, file):
    page, wrong = opened(browser, file)
    for name in HOSTILE:
        page.get_by_label("Path contains").fill(name.split("/")[-1])
        assert page.locator(f"{ROWS} .cell").first.get_attribute("title").endswith(name)
        page.locator(ROWS).first.click()
        assert name.split("/")[-1] in page.locator("#details-title").inner_text()
        links = page.locator("#details a").evaluate_all("(all) => all.map((one) => one.href)")
        # a name that may stand for bytes that are no text has no address
        assert len(links) == ("\\udc80" not in name)
        assert all(link.startswith("file:///pictures/folder%20") for link in links)
        page.get_by_text("The picture is not there any more.").wait_for()
        page.keyboard.press("Escape")
    assert page.title() == "table <i>.parquet"
    assert page.locator("main script, main b, main i, dialog b, dialog img").count() == 0
    page.context.close()
    assert all("ERR_FILE_NOT_FOUND" in line for line in wrong)


def test_every_control_has_a_name_and_the_tree_is_that_of_a_grid(page):
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    seen = [node for node in tree if not node["ignored"]]
    nameless = [
        node["role"]["value"]
        for node in seen
        if node["role"]["value"]
        in (
            "button",
            "textbox",
            "searchbox",
            "spinbutton",
            "combobox",
            "checkbox",
            "radio",
            "row",
            "grid",
            "columnheader",
            "gridcell",
            "link",
            "image",
            "heading",
            "form",
            "region",
        )
        and not node.get("name", {}).get("value")
        and node["role"]["value"] not in ("gridcell", "row")
    ]
    assert nameless == []
    roles = [node["role"]["value"] for node in seen]
    assert roles.count("grid") == 1
    assert roles.count("row") == page.locator("[role=row]").count()
    assert roles.count("columnheader") == 6
    levels = [
        int(node["properties"][0]["value"]["value"]) for node in seen if node["role"]["value"] == "heading"
    ]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_everything_can_be_reached_by_tab_and_shows_the_focus(page):
    page.locator("#filters input").first.focus()
    visited = []
    for _ in range(20):
        visited.append(
            page.evaluate("""() => {
            const one = document.activeElement;
            return [one.id || one.textContent || one.ariaLabel || one.type, getComputedStyle(one).outlineStyle, one.role];
        }""")
        )
        page.keyboard.press("Tab")
        if visited[-1][2] == "row":
            break
    assert visited[-1][2] == "row"
    assert all(style == "solid" for _, style, _ in visited), visited


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_can_be_read_in_any_width_and_colour_scheme(browser, file, scheme, width):
    page, wrong = opened(browser, file, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    contrasts = page.evaluate(CONTRASTS)
    assert {what: ratio for what, ratio in contrasts.items() if ratio < 4.5} == {}
    cut = page.locator(f"{ROWS} .number:visible").evaluate_all(
        "(all) => all.filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent)"
    )
    assert cut == []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report_{scheme}_{width}.png", full_page=True)
    page.context.close()
    assert wrong == []


# The contrast of texts with the colour behind them, as WCAG counts it.
CONTRASTS = """() => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((value) => value / 255)
            .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (one) => {
        for (; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
        }
    };
    const found = {};
    for (const one of document.querySelectorAll("header *, main *")) {
        if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || !one.offsetParent) continue;
        const [a, b] = [getComputedStyle(one).color, behind(one)].map(light);
        const name = `${one.tagName}.${one.className} ${one.textContent.slice(0, 20)}`;
        found[name] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return found;
}"""


@pytest.mark.long
def test_a_hundred_thousand_rows_open_in_three_seconds(browser, tmp_path):
    file = report_in(tmp_path, 100_000)
    best = min(opening(browser, file) for _ in range(3))  # other programs may run beside it
    assert best <= SECONDS


def opening(browser: Any, file: Path) -> float:
    """Seconds until rows are painted and the last of 100 000 has been reached."""
    begin = time.monotonic()
    page, wrong = opened(browser, file)
    page.evaluate(PAINTED)
    seconds = time.monotonic() - begin
    page.locator(ROWS).first.focus()
    page.keyboard.press("End")
    assert page.evaluate("() => document.activeElement.getAttribute('aria-rowindex')") == "100001"
    page.context.close()
    assert wrong == []
    return seconds
