"""The panel of JEPA Rare Search: what it will do, and its candidates while it runs and afterwards."""

from __future__ import annotations

import base64
import io
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from jepa_guidance.host.search.selection import plan_looks
from PIL import Image

from tests.browser.conftest import IDLE, run
from tests.conftest import ROOT
from tools.page import Comfy

# A search of the demo generator: {kind of node: id}
BUILD = """(encoder) => {
    const kinds = ["JEPADemoLoader", "JEPADemoClass", "JEPAEncoderLoader", "EmptyLatentImage", "JEPARareSearch", "VAEDecode",
                   "PreviewImage"];
    app.graph.clear();
    const make = (kind, pos) => {
        const node = LiteGraph.createNode(kind);
        node.pos = pos;
        app.graph.add(node);
        return node;
    };
    const nodes = Object.fromEntries(kinds.map((kind, place) =>
        [kind, make(kind, place < 4 ? [0, 200 * place] : [300 + 450 * (place - 4), 0])]));
    const any = make("JEPADemoClass", [0, 800]);
    const put = (node, values) => {
        for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
    };
    put(nodes.EmptyLatentImage, { width: 128, height: 128 });
    put(nodes.JEPADemoClass, { class_name: "robot" });
    put(any, { class_name: "any" });
    put(nodes.JEPAEncoderLoader, { encoder, image_size: 56 });
    put(nodes.JEPARareSearch, { candidates: 6, count: 2, steps: 6, cfg: 2, control_after_generate: "fixed" });
    const place = (slots, key, value) => slots.findIndex((one) => one[key] === value);
    const link = (from, type, to, input) =>
        nodes[from].connect(place(nodes[from].outputs, "type", type), to, place(to.inputs, "name", input));
    const search = nodes.JEPARareSearch;
    link("JEPADemoLoader", "MODEL", search, "model");
    link("JEPADemoLoader", "VAE", search, "vae");
    link("JEPADemoLoader", "VAE", nodes.VAEDecode, "vae");
    link("JEPADemoClass", "CONDITIONING", search, "positive");
    any.connect(0, search, place(search.inputs, "name", "negative"));
    link("JEPAEncoderLoader", "JEPA_ENCODER", search, "encoder");
    link("EmptyLatentImage", "LATENT", search, "latent_image");
    link("JEPARareSearch", "LATENT", nodes.VAEDecode, "samples");
    link("VAEDecode", "IMAGE", nodes.PreviewImage, "images");
    return search.id;
}"""
# What the panel shows: the lines above and below, and each picture.
PANEL = """(id) => {
    const { element } = app.graph.getNodeById(id).jepaStrip;
    const figures = [...element.querySelectorAll("[role=list] > [role=listitem]")];
    return {
        outlook: element.querySelector("[role=status]").textContent,
        note: element.querySelector(".note").textContent,
        figures: figures.map((figure) => {
            const image = figure.querySelector("img");
            return { alt: image.alt, seen: image.src.startsWith("data:image/jpeg"), title: figure.title,
                     kind: figure.className, rank: figure.querySelector(".rank").textContent,
                     caption: figure.querySelector("figcaption").innerText };
        }),
    };
}"""
SEARCHES = "app.graph.getNodeById(id).jepaSearches"
# Keep what the panel shows when the first candidates are dropped: a fast machine has ended before a test could ask.
KEEP_GROWING = f"""(id) => app.api.addEventListener("jepa_guidance.search", () => {{
    if (!window.growing && {SEARCHES}[0].candidates.some((one) => one.dropped)) window.growing = ({PANEL})(id);
}})"""
ENDED = f"(id) => {SEARCHES}[0]?.kept.length"
VALUE = "([id, name]) => app.graph.getNodeById(id).widgets.find((one) => one.name === name).value"
LINK = """([id, kind, name]) => {
    const node = app.graph.getNodeById(id), other = LiteGraph.createNode(kind);
    app.graph.add(other);
    const input = node.inputs.findIndex((one) => one.name === name);
    other.connect(other.outputs.findIndex((one) => one.type === node.inputs[input].type), node, input);
}"""


@pytest.fixture
def open_search(comfy: Callable[..., Comfy], encoder_name: str) -> Callable[[int], tuple[Comfy, int]]:
    """Opens a page with a search that has this seed; returns the page and the node's id."""

    def open_page(seed: int) -> tuple[Comfy, int]:
        page = comfy()
        page.close_templates()
        search = page.ask(BUILD, encoder_name)
        page.wait("(id) => app.graph.getNodeById(id).jepaStrip.element.textContent", search)
        page.set("JEPARareSearch", "seed", seed)  # results that the server knows are not sent again
        page.show(search, scale=0.9)
        return page, search

    return open_page


@pytest.fixture(scope="module")
def settings_page(browser: Any, server: Any) -> Any:
    """One page for all settings, since opening one takes long; and the node's id."""
    context = browser.new_context(viewport={"width": 1600, "height": 1100})
    page = Comfy(context.new_page(), server.url, ROOT / ".work" / "screenshots")
    page.close_templates()
    search = page.ask(BUILD, "")
    page.wait("(id) => app.graph.getNodeById(id).jepaStrip.element.textContent", search)
    yield page, search
    context.close()


def picture_of(index: int) -> str:
    """A small picture of one colour as a data address."""
    file = io.BytesIO()
    Image.new("RGB", (96, 96), (index * 37 % 256, index * 91 % 256, index * 53 % 256)).save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def a_record(
    values: Sequence[float | None],
    *,
    dropped: dict[int, str] | None = None,
    kept: Sequence[int] = (),
    qualities: Sequence[float] = (),
    by: str = "score",
) -> dict[str, Any]:
    """A finished search of 20 steps as the page gets it. dropped: the reasons by the candidates' places."""
    return {
        "by": by,
        "keep": "rarest",
        "message": "",
        "steps": 20,
        "done": 20,
        "looks": [7, 13],
        "rows": 10 * len(values),
        "calls": 20,
        "floor": 0.3 if qualities else None,
        "kept": list(kept),
        "candidates": [
            {
                "index": index,
                "value": value,
                "quality": qualities[index] if qualities else None,
                "step": None if value is None else 20 if index in kept else 7,
                "dropped": (dropped or {}).get(index, ""),
                **({} if value is None else {"picture": picture_of(index)}),
            }
            for index, value in enumerate(values)
        ],
    }


def give(page: Comfy, search: int, *records: dict[str, Any]) -> dict[str, Any]:
    """Have the page get the result of a run; returns what the panel then shows."""
    page.ask(
        "([id, records]) => app.graph.getNodeById(id).onExecuted({ jepa_search: records })",
        [search, list(records)],
    )
    panel: dict[str, Any] = page.ask(PANEL, search)
    return panel


def test_a_search_shows_its_candidates_and_marks_the_kept_ones(open_search):
    page, search = open_search(1)
    before = page.ask(PANEL, search)
    assert before["outlook"].startswith("6 candidates, 3 left after step 2, 2 after step 4 of 6: 61 % of")
    assert before["note"] == "The candidates appear here while the node runs."
    assert before["figures"] == []
    page.ask(KEEP_GROWING, search)
    run(page)
    page.wait("window.growing", seconds=120)
    page.picture("search_growing")
    growing = page.ask("window.growing")
    page.wait(ENDED, search, 120)
    page.wait(IDLE, seconds=60)
    page.picture("search_done")
    done, (record,) = page.ask(PANEL, search), page.ask(f"(id) => {SEARCHES}", search)
    # while it runs, in the order of the batch; in the end, best first
    assert [one["alt"].split(",")[0] for one in growing["figures"]] == [f"image {i}" for i in range(6)]
    assert len([one for one in growing["figures"] if one["kind"] == "dropped"]) >= 3
    first, second, *rest = done["figures"]
    best, next_best = record["kept"]
    score = record["candidates"][best]["value"]
    assert score < record["candidates"][next_best]["value"]
    assert first["alt"] == f"image {best}, score {score:.2f}, kept, rank 1"
    assert (first["kind"], first["rank"], first["caption"]) == ("kept", "\u26051", f"{score:.2f}")
    assert second["alt"].startswith(f"image {next_best}, score")
    assert second["alt"].endswith("kept, rank 2")
    assert all(one["kind"] == "dropped" and one["rank"] == "" for one in rest)
    assert all(one["title"].endswith("dropped: less wanted than the others") for one in rest)
    assert all(one["seen"] for one in done["figures"])
    assert done["note"] == "Kept 2 of 6: 61 % of the denoiser's work."
    # no preview of the sheet beside the strip
    assert not page.ask("(id) => app.nodeOutputs[id].images", search)
    assert not page.errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"candidates": 16, "count": 4, "steps": 20},
            "16 candidates, 8 left after step 8, 4 after step 14 of 20: 62 %",
        ),
        ({"looks": "0.5"}, "6 candidates, 2 left after step 3 of 6: 67 %"),
        (
            {"looks": "0.5, 0.99"},
            "6 candidates, 3 left after step 3 of 6: 75 % of the denoiser's work. 2 are kept at",
        ),
        ({"looks": ""}, "All 6 candidates are finished, 2 are kept: 100 %"),
        ({"steps": 20, "end_at_step": 10}, "6 candidates, 3 left after step 4, 2 after step 7 of 10"),
        ({"steps": 20, "variety": "boosted start (Boost-and-Skip)"}, "after step 13 of 19"),
        ({"candidates": 1, "count": 1}, "Nothing to choose from"),
        ({"count": 7}, "\u26a0 count 7 is larger than candidates, 6"),
        ({"looks": "0,4"}, "\u26a0 looks must be numbers with commas"),
        ({"looks": "0.4, 0.7x"}, "\u26a0 looks must be numbers with commas"),
        ({"looks": "0.7, 0.4"}, "\u26a0 looks must grow"),
        ({"looks": "40, 70"}, "\u26a0 looks must lie between 0 and 1"),
        ({"floor_kind": "percentile"}, "\u26a0 The floor has nothing to measure"),
        ({"by": "novelty"}, "\u26a0 Novelty has nothing to compare with"),
        ({"start_at_step": 6}, "\u26a0 No step is left"),
        ({"sampler_name": "dpm_adaptive"}, "\u26a0 Sampler dpm_adaptive is not supported"),
    ],
)
@pytest.mark.long
def test_the_node_says_what_settings_will_do_before_they_are_queued(settings_page, settings, message):
    page, search = settings_page
    old = {name: page.ask(VALUE, [search, name]) for name in settings}
    for name, value in settings.items():
        page.set("JEPARareSearch", name, value)
    said = page.ask(PANEL, search)["outlook"]
    for name, value in old.items():
        page.set("JEPARareSearch", name, value)
    assert message in said
    assert not page.errors


@pytest.mark.long
def test_links_answer_what_the_node_would_refuse(open_search):
    page, search = open_search(2)
    page.set("JEPARareSearch", "floor_kind", "percentile")
    assert "nothing to measure" in page.ask(PANEL, search)["outlook"]
    page.ask(LINK, [search, "JEPAPromptFit", "prompt_fit"])
    assert page.ask(PANEL, search)["outlook"].startswith("6 candidates")
    page.set("JEPARareSearch", "floor", 101)
    assert "not a percentile" in page.ask(PANEL, search)["outlook"]
    page.ask(LINK, [search, "PrimitiveFloat", "quality"])
    assert "two measures" in page.ask(PANEL, search)["outlook"]
    page.ask(LINK, [search, "PrimitiveInt", "steps"])
    page.ask("(id) => app.graph.getNodeById(id).disconnectInput('quality')", search)
    page.set("JEPARareSearch", "floor", 50)
    # the number of steps is not known
    assert page.ask(PANEL, search)["outlook"] == ""
    assert not page.errors


@pytest.mark.long
def test_the_page_plans_the_looks_as_the_search_does(settings_page):
    page, _ = settings_page
    looks = [(), (0.4, 0.7), (0.5,), (0.05, 0.1, 0.125), (0.2, 0.4, 0.5, 0.9), (0.25, 0.5, 0.75, 0.99)]
    cases = list(itertools.product(looks, (1, 4, 6, 9, 20, 50), (1, 2, 6, 15, 16, 64), (1, 3, 4)))
    cases = [case for case in cases if case[2] >= case[3]]
    found = page.ask(
        """async (cases) => {
            const { planLooks } = await import("/extensions/jepa-guidance/js/search_plan.js");
            return cases.map(([looks, steps, candidates, count]) => planLooks({ looks, steps, candidates, count }));
        }""",
        cases,
    )
    assert found == [[list(look) for look in plan_looks(*case)] for case in cases]


@pytest.mark.long
def test_every_fate_of_a_candidate_is_written(open_search):
    page, search = open_search(3)
    dropped = {1: "not finite", 2: "quality 0.12 is below the floor 0.3", 3: "less wanted than the others"}
    record = a_record(
        [-52.123, None, -40, 3.5], dropped=dropped, kept=[0], qualities=[0.4567, 0.9, 0.12, 0.5]
    )
    panel = give(page, search, record)
    alts = [one["alt"] for one in panel["figures"]]
    assert alts == [
        "image 0, score -52.12, quality 0.457, kept, rank 1",
        "image 2, score -40.00, quality 0.120, dropped: quality 0.120 is below the floor 0.300",
        "image 3, score 3.50, quality 0.500, dropped: less wanted than the others",
        "image 1, not seen yet, quality 0.900, dropped: not finite",
    ]
    assert [one["title"] for one in panel["figures"]] == alts
    assert [one["caption"] for one in panel["figures"]][::3] == ["-52.12\nq 0.457", "-\nq 0.900"]
    assert [one["seen"] for one in panel["figures"]] == [True, True, True, False]
    novel = give(page, search, a_record([0.25, 0.75], dropped={0: dropped[3]}, kept=[1], by="novelty"))
    assert novel["figures"][0]["alt"] == "image 1, novelty 0.75, kept, rank 1"
    assert not page.errors


@pytest.mark.long
def test_the_strip_is_usable_with_the_keyboard(open_search):
    page, search = open_search(4)
    give(page, search, a_record([-50.0 + i for i in range(16)], kept=[3, 0]))
    images = page.page.get_by_role("listitem").get_by_role("img")
    assert images.count() == 16
    stops = page.ask(
        "(id) => app.graph.getNodeById(id).jepaStrip.images.filter((one) => one.tabIndex === 0).length",
        search,
    )
    assert stops == 1
    images.first.focus()
    columns = page.ask(
        """(id) => {
            const tops = app.graph.getNodeById(id).jepaStrip.images.map((one) => one.getBoundingClientRect().top);
            return tops.filter((top) => Math.abs(top - tops[0]) < 1).length;
        }""",
        search,
    )
    place = 0
    moves = {
        "ArrowRight": 1,
        "ArrowDown": columns,
        "ArrowLeft": -1,
        "ArrowUp": -columns,
        "End": 15,
        "Home": -15,
    }
    assert 2 < columns < 16
    for key, move in moves.items():
        page.page.keyboard.press(key)
        place += move
        alt = page.ask("document.activeElement.alt")
        assert alt == images.nth(place).get_attribute("alt")
        assert page.ask(PANEL, search)["note"] == alt
    page.page.keyboard.press("ArrowLeft")  # there is none before the first
    assert page.ask("document.activeElement.alt") == images.first.get_attribute("alt")
    # the focus stays with its picture when the order changes
    page.page.keyboard.press("End")
    focused = page.ask("document.activeElement.alt.split(',')[0]")
    give(page, search, a_record([-50.0 + i for i in range(16)], kept=[15, 3]))
    assert page.ask("document.activeElement.alt.split(',')[0]") == focused
    assert not page.errors


@pytest.mark.long
@pytest.mark.parametrize("vue", [False, True])
def test_one_to_64_candidates_fit_or_scroll_in_both_renderers(open_search, vue):
    page, search = open_search(5)
    page.change("Comfy.VueNodes.Enabled", vue)
    try:
        page.page.wait_for_timeout(3000)
        page.show(search, scale=0.9)
        heights = []
        for count in (1, 4, 16, 64):
            kept = list(range(min(count, 4)))
            give(page, search, a_record([-50.0 + i for i in range(count)], kept=kept))
            page.page.wait_for_timeout(500)
            page.picture(f"search_{count}_{'vue' if vue else 'classic'}")
            side, scrolls, width, now = page.ask(
                """(id) => {
                    const { element, lists, images } = app.graph.getNodeById(id).jepaStrip;
                    const box = element.getBoundingClientRect();
                    return [images[0].offsetWidth, lists.scrollHeight > lists.clientHeight, box.width, box.height];
                }""",
                search,
            )
            assert 44 <= side <= 96
            assert scrolls == (count == 64)
            assert width > 250
            heights.append(now)
        assert min(heights) > 250
        assert max(heights) - min(heights) < 1
    finally:
        page.change("Comfy.VueNodes.Enabled", False)
        page.page.wait_for_timeout(1000)
    assert not page.errors


@pytest.mark.long
def test_several_searches_of_a_list_are_shown_one_after_another(open_search):
    page, search = open_search(6)
    give(page, search, a_record([-5.0, -4.0], kept=[0]), a_record([-9.0, -8.0, -7.0], kept=[2]))
    page.picture("search_list")
    lists = page.page.get_by_role("list", name="candidates")
    assert [lists.nth(place).get_attribute("aria-label") for place in range(2)] == [
        "candidates 1 / 2",
        "candidates 2 / 2",
    ]
    assert [lists.nth(place).get_by_role("listitem").count() for place in range(2)] == [2, 3]
    assert len(give(page, search, a_record([-1.0], kept=[0]))["figures"]) == 1


@pytest.mark.long
def test_a_cancelled_search_leaves_what_was_seen_and_the_next_run_clears_it(open_search):
    page, search = open_search(7)
    page.set("JEPARareSearch", "candidates", 24)
    page.set("JEPARareSearch", "steps", 40)
    page.set("JEPARareSearch", "looks", "0.1, 0.9")
    run(page)
    page.wait(f"(id) => {SEARCHES}[0]?.candidates.some((one) => one.dropped)", search, 120)
    before = time.monotonic()
    page.click(page.page.get_by_role("button", name="Cancel current run"))
    page.wait(IDLE, seconds=60)
    assert time.monotonic() - before < 10
    page.picture("search_cancelled")
    cancelled = page.ask(PANEL, search)
    assert len(cancelled["figures"]) == 24
    assert not [one for one in cancelled["figures"] if one["kind"] == "kept"]
    assert cancelled["note"].startswith("Step ")
    page.set("JEPARareSearch", "candidates", 6)
    page.set("JEPARareSearch", "steps", 6)
    page.set("JEPARareSearch", "looks", "0.4, 0.7")
    run(page)
    page.wait(ENDED, search, 120)
    assert len(page.ask(PANEL, search)["figures"]) == 6
    assert not page.errors


@pytest.mark.long
def test_a_result_is_shown_again_after_another_tab_and_a_reload(open_search, comfy, server, encoder_name):
    page, search = open_search(8)
    other, twin = open_search(8)
    run(page)
    page.wait(ENDED, search, 120)
    page.wait(IDLE, seconds=60)
    done = page.ask(PANEL, search)
    # another page shows nothing of it
    assert other.ask(PANEL, twin)["figures"] == []
    assert not other.errors
    # another workflow of the same page, and back
    page.ask("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait("app.graph.nodes.length === 0")
    page.ask("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait("(id) => app.graph.getNodeById(id)?.jepaStrip.images.length", search)
    assert page.ask(PANEL, search) == done
    # an item of the history, which the page opens with all outputs
    (item,) = json.loads(server.get("/history?max_items=1")).values()
    other.ask("(outputs) => { app.nodeOutputs = outputs; }", item["outputs"])
    assert other.ask(PANEL, twin) == done
    # a reload
    page.page.wait_for_timeout(3000)  # until the page has stored the graph
    page.page.reload()
    page.wait("(id) => window.app?.graph?.getNodeById(id)?.jepaStrip?.element.textContent", search)
    assert page.ask(PANEL, search)["outlook"] == done["outlook"]
    page.set("JEPARareSearch", "seed", 9)
    run(page)
    page.wait(ENDED, search, 120)
    again = page.ask(PANEL, search)["figures"]
    assert [one["kind"] for one in again] == [one["kind"] for one in done["figures"]]
    assert all(one["seen"] for one in again)
    assert not page.errors


@pytest.mark.long
@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_the_panel_speaks_the_users_language(open_search, server, language):
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))[
        "jepaGuidance"
    ]
    page, _ = open_search(10)
    page.change("Comfy.Locale", language)
    try:
        page.page.wait_for_timeout(1000)
        page.page.goto(server.url)
        page.wait("window.app?.extensionManager && window.app?.graph", None, 120)
        page.close_templates()
        search = page.ask(BUILD, "")
        page.wait("(id) => app.graph.getNodeById(id).jepaStrip.element.textContent", search)
        page.show(search, scale=0.9)
        assert page.ask(PANEL, search)["note"] == words["searchWaiting"]
        reasons = {1: "less wanted than the others", 2: "not finite"}
        record = a_record([-3.0, -2.0, -1.0], dropped=reasons, kept=[0])
        figures = give(page, search, record)["figures"]
        page.picture(f"search_{language}")
        assert [
            one["alt"].count(words[name])
            for one, name in zip(figures[1:], ["droppedLess", "droppedNotFinite"], strict=True)
        ] == [1, 1]
        assert "{" not in json.dumps([one["alt"] for one in figures])
    finally:
        page.change("Comfy.Locale", "en")
        page.page.wait_for_timeout(1000)
    assert not page.errors
