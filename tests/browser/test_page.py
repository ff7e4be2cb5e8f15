"""What a user sees and does on the page: from a fresh page to a guided image, with the mouse."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import IDLE, run
from tests.conftest import ROOT
from tools.page import STARTED, Comfy
from tools.server import Server

DEMO = "01 First try without a checkpoint"
TRACE = "(id) => app.graph.getNodeById(id).jepaTrace"
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def open_template(page: Comfy, name: str) -> None:
    """Open a template from the browser of templates, which opens by itself for a new user."""
    page.wait(STARTED)
    if not page.page.get_by_role("dialog").count():
        page.click(page.page.get_by_role("button", name="Templates"))
    page.click(page.page.get_by_text("jepa-guidance", exact=True))
    # the page writes the name a second time, as the description
    page.click(page.page.get_by_role("heading", name=name, exact=True))
    page.wait("app.graph.nodes.length > 3")


def assert_begins_in_view(page: Comfy, name: str) -> None:
    """A template of ours opens as it was saved, where the host would fit it to the window."""
    wanted = json.loads((ROOT / "workflows" / f"{name}.json").read_text())["extra"]["ds"]
    page.page.wait_for_timeout(500)  # the host may move the view again
    found = page.ask("() => ({ scale: app.canvas.ds.scale, offset: [...app.canvas.ds.offset] })")
    assert found["scale"] == pytest.approx(wanted["scale"])
    assert found["offset"] == pytest.approx(wanted["offset"])


def open_demo(comfy: Callable[..., Comfy]) -> Comfy:
    """A page with the first template."""
    page = comfy()
    page.open_template(DEMO)
    page.wait("app.graph.nodes.some((node) => node.comfyClass === 'JEPAGuidedKSampler')")
    return page


def make_small(page: Comfy, encoder: str) -> None:
    """Set the local encoder, at 56 pixels, a single image, and no scoring."""
    page.set("JEPAEncoderLoader", "encoder", encoder)
    page.set("JEPAEncoderLoader", "image_size", 56)
    page.set("EmptyLatentImage", "batch_size", 1)
    page.ask(
        "app.graph.nodes.filter((one) => one.comfyClass === 'JEPAScoreImage').forEach((one) => { one.mode = 4; })"
    )


def saved_image(page: Comfy, server: Server, index: int) -> bytes:
    """The first image of a SaveImage node, once it exists."""
    node = page.node("SaveImage", index)
    page.wait("(id) => app.nodeOutputs[id]?.images?.length", node, 120)
    return server.image(page.ask("(id) => app.nodeOutputs[id].images[0]", node))


def test_a_guided_image_from_a_fresh_page_in_six_clicks_with_the_score_seen_to_fall(
    comfy, server, encoder_name
):
    page = comfy()
    open_template(page, DEMO)
    assert_begins_in_view(page, DEMO)
    assert page.ask("app.graph.nodes.every((node) => !node.has_errors)")
    make_small(page, encoder_name)  # these are no clicks of a user
    sampler = page.node("JEPAGuidedKSampler")
    page.show(sampler)
    run(page)
    page.wait("(id) => app.graph.getNodeById(id).jepaTrace?.steps.some((step) => step.guided)", sampler)
    growing = page.ask(TRACE, sampler)
    page.picture("growing")
    page.wait("(id) => app.graph.getNodeById(id).jepaTrace.steps.length === 14", sampler, 120)
    image = np.asarray(Image.open(io.BytesIO(saved_image(page, server, 1))))
    page.picture("guided")
    whole = page.ask(TRACE, sampler)
    assert 2 < len(growing["steps"]) <= len(whole["steps"]) == whole["total"] == 14
    scores = [step["score"][0] for step in whole["steps"] if step["guided"]]
    assert len(scores) == 9
    assert scores[-1] < scores[0]
    assert image.std() > 10
    assert "score" in page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel", sampler)
    assert page.clicks <= 6
    assert not page.errors
    page.wait(IDLE, seconds=120)
    # another workflow of the page, and back
    page.ask("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait("app.graph.nodes.length === 0")
    page.ask("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait("(id) => app.graph.getNodeById(id)?.jepaTrace?.steps.length === 14", sampler)
    assert not page.errors


@pytest.mark.parametrize(
    ("widget", "value", "message"),
    [
        ("strength", 0, "Nothing will be guided: strength is 0"),
        ("end_percent", 0.2, "Nothing will be guided: start_percent equals end_percent"),
        ("end_percent", 0.1, "start_percent is larger than end_percent"),
        ("steps", 1, "Nothing will be guided: no step lies in the range"),
        ("sampler_name", "dpm_adaptive", "Sampler dpm_adaptive is not supported"),
        ("strength", -1, "can reinforce bias"),
        ("strength", 8, "Beyond strength 4 images break up"),
        ("target", "1 in 20", "target is in units of a reference"),
    ],
)
@pytest.mark.long
def test_the_node_says_what_settings_will_do_before_they_are_queued(comfy, widget, value, message):
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    page.wait("(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel", sampler)
    page.show(sampler)
    page.set("JEPAGuidedKSampler", widget, value)
    page.picture(f"message_{widget}_{value}")
    assert message in page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel", sampler)


@pytest.mark.long
def test_the_node_says_nothing_about_settings_that_are_linked(comfy):
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    label = "(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel"
    page.wait(label, sampler)
    page.show(sampler)
    assert "Guides 9 of 14 steps" in page.ask(label, sampler)
    connect = """(id) => {
        const node = app.graph.getNodeById(id), number = LiteGraph.createNode("PrimitiveInt");
        number.pos = [node.pos[0] - 300, node.pos[1]];
        app.graph.add(number);
        number.connect(0, node, node.inputs.findIndex((input) => input.name === "steps"));
    }"""
    page.ask(connect, sampler)
    page.picture("linked_steps")
    assert "Guides" not in page.ask(label, sampler)
    page.set("JEPAGuidedKSampler", "end_percent", 0.5)
    assert "Guides" not in page.ask(label, sampler)
    disconnect = """(id) => {
        const node = app.graph.getNodeById(id);
        node.disconnectInput(node.inputs.findIndex((input) => input.name === "steps"));
    }"""
    page.ask(disconnect, sampler)
    assert "Guides 4 of 14 steps" in page.ask(label, sampler)
    assert not page.errors


@pytest.mark.long
def test_a_linked_reference_or_apart_is_something_to_compare_with(comfy):
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    label = "(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel"
    page.wait(label, sampler)
    page.show(sampler)
    page.set("JEPAGuidedKSampler", "apart", True)
    assert "Guides 9 of 14 steps" in page.ask(label, sampler)
    page.set("JEPAGuidedKSampler", "target", "1 in 5")
    assert "units of a reference" in page.ask(label, sampler)
    page.set("JEPAGuidedKSampler", "apart", False)
    connect = """(id) => {
        const node = app.graph.getNodeById(id);
        const makes = (type) => type.nodeData?.output?.includes("JEPA_REFERENCE");
        const [kind] = Object.entries(LiteGraph.registered_node_types).find(([, type]) => makes(type));
        const reference = LiteGraph.createNode(kind);
        app.graph.add(reference);
        reference.connect(reference.outputs.findIndex((output) => output.type === "JEPA_REFERENCE"), node,
                          node.inputs.findIndex((input) => input.name === "reference"));
    }"""
    page.ask(connect, sampler)
    assert "Guides 9 of 14 steps" in page.ask(label, sampler)
    assert not page.errors


@pytest.mark.long
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_opens_complete_from_the_template_browser(comfy, name):
    page = comfy()
    open_template(page, name)
    page.page.wait_for_timeout(1500)
    assert_begins_in_view(page, name)
    wanted = json.loads((ROOT / "workflows" / f"{name}.json").read_text())["nodes"]
    found = page.ask("app.graph.nodes.map((node) => [String(node.id), node.type])")
    assert sorted(found) == sorted([str(node["id"]), node["type"]] for node in wanted)
    # no red border, except where a checkpoint is missing, which only users have
    red = page.ask("app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)")
    assert set(red) <= {"CheckpointLoaderSimple"}
    assert page.ask("app.graph.nodes.every((node) => node.type in LiteGraph.registered_node_types)")
    # the page's message about nodes that are not installed
    assert page.page.get_by_text("Missing Node", exact=False).count() == 0
    page.ask(
        """() => {
        const [x, y, right, bottom] = app.graph.nodes.map((node) => node.getBounding()).reduce(
            ([a, b, c, d], box) => [Math.min(a, box[0]), Math.min(b, box[1]), Math.max(c, box[0] + box[2]),
                                    Math.max(d, box[1] + box[3])], [1e9, 1e9, -1e9, -1e9]);
        const ds = app.canvas.ds;
        ds.scale = Math.min(1450 / (right - x), 950 / (bottom - y), 1);
        ds.offset = [-x + 80 / ds.scale, -y + 80 / ds.scale];
        app.canvas.setDirty(true, true);
    }"""
    )
    page.page.wait_for_timeout(700)
    page.picture(f"template_{name}")
    assert not page.errors


def a_trace(
    judge: str | None = None, places: Sequence[dict] = (), **values: Sequence[Sequence[float]]
) -> dict:
    """A trace as the page gets it, of 14 steps; those from the fourth on are guided, as long as there are values.

    Args:
        values: score, novelty, push, judged: for each guided step a list with one entry for each image.
    """
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    judged = [{judge: row.pop("judged")} if judge else {} for row in rows]
    images = len(next(iter(rows[0].values())))
    guided = [
        {"step": 3 + i, "guided": True, "score": [None] * images, **row, "judged": judged[i]}
        for i, row in enumerate(rows)
    ]
    free = [{"step": step, "guided": False} for step in (0, 1, 2, *range(3 + len(rows), 14))]
    steps = sorted(guided + free, key=lambda step: step["step"])
    judges = [judge] if judge else []
    return {"guides": ["g"], "judges": judges, "total": 14, "places": places, "first": 0, "steps": steps}


NOVELTY = [[0.241 + 0.02 * i, 0.252 + 0.01 * i] for i in range(9)]
SCORES = [[-22.1 - i * (9 - i / 2), -30.4 - 2.0 * i] for i in range(9)]
PUSH = [[min(1.0, max(0.0, 1.4 - 0.2 * i)), min(1.0, max(0.0, 1.6 - 0.2 * i))] for i in range(9)]
SHOWN = {
    "novelty": (
        a_trace("one (novelty)", novelty=NOVELTY, judged=[[3.0 + 0.1 * i] * 2 for i in range(9)]),
        ("novelty", "judge"),
        ["novelty, higher is rarer; 4: 0.25, 5: 0.26,", "judge's novelty; 4: 3.0"],
    ),
    "novelty_other_judge": (
        a_trace("one", novelty=NOVELTY, judged=SCORES),
        ("novelty", "judge"),
        ["novelty, higher is rarer; 4:", "judge's score, lower is rarer; 4: -26"],
    ),
    "score": (
        a_trace("one", score=SCORES, judged=SCORES),
        ("score", "judge"),
        ["score, lower is rarer; 4: -26", "judge's score, lower is rarer; 4:"],
    ),
    "both": (
        a_trace(
            "one", score=SCORES, novelty=NOVELTY, judged=SCORES, places=[{"score": 62.4, "novelty": 3.6}] * 2
        ),
        ("score", "novelty", "judge"),
        [
            "Score rarer than 38 %, 38 % of the reference. Novelty rarer than 96 %, 96 % of the reference.",
            "score, lower is rarer; 4: -26",
            "novelty, higher is rarer; 4: 0.25",
            "judge's score, lower is rarer; 4: -26",
        ],
    ),
    "stopped": (
        a_trace(novelty=NOVELTY, push=PUSH, places=[{"novelty": 4.0}, {"novelty": 0.0}]),
        ("novelty",),
        ["Stopped at the target. Rarer than 96 %, 100 % of the reference."],
    ),
    "stopped_once": (
        a_trace(novelty=NOVELTY[:8], push=PUSH[:8]),
        ("novelty",),
        ["1 of 2 images stopped at the target."],
    ),
    "near_the_target": (
        a_trace(score=SCORES[:5], push=PUSH[:5]),
        ("score",),
        ["Dots fade as the target comes near."],
    ),
    "many_images": (
        a_trace(novelty=[[1.0] * 8] * 9, places=[{"novelty": 8.0 * i} for i in range(8)]),
        ("novelty",),
        ["Rarer than 44\u2013100 % of the reference."],
    ),
}
SEND = """async ([node, trace]) => {
    const { api } = await import("/scripts/api.js");
    api.dispatchEvent(new CustomEvent("jepa_guidance.trace", { detail: { node: String(node), trace } }));
}"""
# the colours of the pixels of the chart that are nearly opaque, and how many have each
COLOURS = """(id) => {
    const canvas = app.graph.getNodeById(id).jepaCanvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const found = {};
    for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] < 250) continue;
        const colour = "#" + [...data.slice(i, i + 3)].map((part) => part.toString(16).padStart(2, "0")).join("");
        found[colour] = (found[colour] ?? 0) + 1;
    }
    return found;
}"""


@pytest.mark.long
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_chart_shows_what_was_guided_for(comfy, theme):
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    page.wait("(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel", sampler)
    page.change("Comfy.ColorPalette", theme)
    try:
        page.page.wait_for_timeout(1000)
        page.show(sampler)
        colours = page.ask(
            """async (id) => {
                const { palette } = await import("/extensions/jepa-guidance/js/chart.js");
                return palette(getComputedStyle(app.graph.getNodeById(id).jepaCanvas).backgroundColor);
            }""",
            sampler,
        )
        for name, (trace, kinds, texts) in SHOWN.items():
            page.ask(SEND, [sampler, trace])
            page.picture(f"chart_{name}_{theme}")
            label = page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel", sampler)
            for text in texts:
                assert text in label, name
            drawn = page.ask(COLOURS, sampler)
            for kind in ("score", "novelty", "judge"):
                # the scale of the strength has the colour of the score too
                assert (drawn.get(colours[kind].lower(), 0) > 300) == (kind in kinds or kind == "score"), (
                    name,
                    kind,
                )
    finally:
        page.change("Comfy.ColorPalette", "dark")
        page.page.wait_for_timeout(1000)
    assert not page.errors


@pytest.mark.long
def test_dots_are_hollow_where_the_target_is_reached(comfy):
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    page.wait("(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel", sampler)
    page.show(sampler)
    filled = []
    for push in (1.0, 0.5, 0.0):
        # the same text for both: only the dots differ
        trace = a_trace(novelty=NOVELTY, push=[[push, push]] * 9)
        page.ask(SEND, [sampler, trace | {"total": 14}])
        drawn = page.ask(COLOURS, sampler)
        filled.append(drawn.get("#3dcb9d", 0))
    assert filled[0] > filled[1]
    assert filled[0] > filled[2]


@pytest.mark.long
def test_a_batch_guided_apart_is_charted_by_its_novelty(comfy, server, encoder_name):
    page = open_demo(comfy)
    make_small(page, encoder_name)
    page.set("EmptyLatentImage", "batch_size", 2)
    page.set("JEPAGuidedKSampler", "apart", True)
    sampler = page.node("JEPAGuidedKSampler")
    page.show(sampler)
    run(page)
    page.wait("(id) => app.graph.getNodeById(id).jepaTrace?.steps.length === 14", sampler, 120)
    page.wait(IDLE, seconds=120)
    page.picture("apart")
    guided = [step for step in page.ask(TRACE, sampler)["steps"] if step["guided"]]
    assert len(guided) == 9
    assert all(step["score"] == [None, None] for step in guided)
    assert sum(guided[-1]["novelty"]) > sum(guided[0]["novelty"])
    label = page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel", sampler)
    assert "novelty, higher is rarer; 4:" in label
    assert "score" not in label
    assert not page.errors


@pytest.mark.long
@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_the_page_speaks_the_users_language(comfy, server, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))[
        "jepaGuidance"
    ]
    page = comfy()
    page.change("Comfy.Locale", language)
    try:
        page.page.wait_for_timeout(1000)
        page.page.goto(server.url)
        page.open_template(DEMO)
        sampler = page.node("JEPAGuidedKSampler")
        page.wait("(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel", sampler)
        page.show(sampler)
        page.picture(f"language_{language}")
        label = page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel", sampler)
        assert words["waiting"] in label
        for kind in ("JEPAGuidedKSampler", "JEPARarityMap"):
            title = page.ask("(kind) => LiteGraph.createNode(kind).title", kind)
            assert title == texts[kind]["display_name"]
        shown = page.ask(
            "(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'strength').label", sampler
        )
        assert shown == texts["JEPAGuidedKSampler"]["inputs"]["strength"]["name"]
    finally:
        page.change("Comfy.Locale", "en")
        page.page.wait_for_timeout(1000)


@pytest.mark.long
def test_a_saved_image_dragged_onto_the_page_gives_the_same_image_again(comfy, server, encoder_name):
    page = open_demo(comfy)
    make_small(page, encoder_name)
    run(page)
    first = saved_image(page, server, 1)
    page.wait(IDLE, seconds=120)
    metadata = Image.open(io.BytesIO(first)).text
    assert {"prompt", "workflow", "jepa_guidance"} <= set(metadata)

    other = comfy()
    other.page.keyboard.press("Escape")
    other.ask(
        """(encoded) => {
        const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "saved.png", {type: "image/png"}));
        const place = {bubbles: true, cancelable: true, clientX: 700, clientY: 500};
        const canvas = app.canvas.canvas;
        canvas.dispatchEvent(new DragEvent("dragover", {...place, dataTransfer: transfer}));
        canvas.dispatchEvent(new DragEvent("drop", {...place, dataTransfer: transfer}));
    }""",
        base64.b64encode(first).decode(),
    )
    other.wait("app.graph.nodes.some((node) => node.comfyClass === 'JEPAGuidedKSampler')")
    # another file name, so that no output of the old run is mistaken for the new one; the pixels do not depend on it
    other.set("SaveImage", "filename_prefix", "jepa/again")
    server.forget()
    run(other)
    again = saved_image(other, server, 1)
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(png))) for png in (first, again)))
    old, new = (json.loads(Image.open(io.BytesIO(png)).text["jepa_guidance"]) for png in (first, again))
    assert old == new
    other.wait(IDLE, seconds=120)


@pytest.mark.long
def test_a_guided_run_is_cancelled_at_once(comfy, server, encoder_name):
    page = open_demo(comfy)
    make_small(page, encoder_name)
    page.set("JEPAEncoderLoader", "image_size", 224)
    sampler = page.node("JEPAGuidedKSampler")
    page.show(sampler)
    run(page)
    page.wait("(id) => app.graph.getNodeById(id).jepaTrace?.steps.length >= 2", sampler, 120)
    # now within the first guided step, which takes longer than the time limit below
    page.page.wait_for_timeout(1500)
    before = time.monotonic()
    page.click(page.page.get_by_role("button", name="Cancel current run"))
    page.wait(IDLE, seconds=60)
    assert time.monotonic() - before < 8
    assert len(page.ask(TRACE, sampler)["steps"]) <= 3


@pytest.mark.long
def test_the_chart_is_shown_by_the_pages_other_node_renderer(comfy, server, encoder_name):
    page = open_demo(comfy)
    page.change("Comfy.VueNodes.Enabled", True)
    try:
        page.page.wait_for_timeout(3000)
        sampler = page.node("JEPAGuidedKSampler")
        page.show(sampler)
        make_small(page, encoder_name)
        page.set("JEPAGuidedKSampler", "strength", 0)
        page.picture("vue_off")
        assert "strength is 0" in page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel", sampler)
        page.set("JEPAGuidedKSampler", "strength", 1)
        run(page)
        page.wait("(id) => app.graph.getNodeById(id).jepaTrace?.steps.length === 14", sampler, 120)
        page.picture("vue_guided")
        width, height = page.ask(
            """(id) => {
                const box = app.graph.getNodeById(id).jepaCanvas.getBoundingClientRect();
                return [box.width, box.height];
            }""",
            sampler,
        )
        assert width > 150
        assert height > 120
        page.wait(IDLE, seconds=120)
    finally:
        page.change("Comfy.VueNodes.Enabled", False)
        page.page.wait_for_timeout(1000)
