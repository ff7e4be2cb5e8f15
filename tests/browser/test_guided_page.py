"""The guiding nodes on the page: the dial under the mouse, the run before as a shadow, and graphs of their old form."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.test_page import COLOURS, NOVELTY, SEND, a_trace, open_demo
from tools.page import Comfy

# jepa_novelty as it was saved before JEPA Guidance Settings: one guided sampler, whose values are all on it
OLD = json.loads(Path(__file__).with_name("old_form.json").read_text(encoding="utf-8"))
ORDER = (
    *("strength", "start_percent", "end_percent", "interval", "rank", "oversampling", "power_iterations"),
    *("schedule", "normalisation", "gradient_path", "strength_rule", "fit", "antialias", "decoder"),
    *("denoiser_calls", "checkpointing", "range_finder", "preset", "criterion", "target", "apart", "smooth"),
    *("keep_appearance", "agree"),
)
CHANGED = {
    **{
        "strength": 1.5,
        "start_percent": 0.1,
        "end_percent": 0.9,
        "interval": 2,
        "rank": 5,
        "oversampling": 3,
    },
    **{"power_iterations": 1, "schedule": "variance", "normalisation": "rms", "strength_rule": "per_step"},
    **{
        "gradient_path": "denoiser constant",
        "fit": "crop",
        "antialias": False,
        "decoder": "encoder resolution",
    },
    **{"denoiser_calls": "one", "checkpointing": True, "range_finder": "cold", "preset": "custom"},
    **{"criterion": "both", "target": "1 in 5", "apart": True, "smooth": True, "keep_appearance": True},
    **{"agree": True},
}
FACE = ("strength", "preset", "start_percent", "end_percent", "target", "apart")
LOAD = """async (workflow) => {
    await app.loadGraphData(workflow);
    const { output } = await app.graphToPrompt();
    return output;
}"""
LABEL = "(id) => app.graph.getNodeById(id).jepaCanvas.ariaLabel"
STRENGTH = "(id) => app.graph.getNodeById(id).widgets.find(({ name }) => name === 'strength').value"
# a place on the canvas of a node, given in its own pixels, as a point of the page
POINT = """([id, x, y]) => {
    const canvas = app.graph.getNodeById(id).jepaCanvas, box = canvas.getBoundingClientRect();
    const scale = box.width / canvas.clientWidth;
    return [box.left + (x < 0 ? canvas.clientWidth + x : x) * scale, box.top + y * scale];
}"""


def old_graph(**changes: Any) -> dict[str, Any]:
    """OLD with other values of its guided sampler."""
    graph: dict[str, Any] = copy.deepcopy(OLD)
    (node,) = (one for one in graph["nodes"] if one["type"] == "JEPAGuidedKSampler")
    values = dict(zip(ORDER, node["widgets_values"][7:], strict=True)) | changes
    node["widgets_values"][7:] = [values[name] for name in ORDER]
    return graph


def guided_of(prompt: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The inputs of the guided sampler of a prompt, and those of its settings."""
    (guided,) = (one["inputs"] for one in prompt.values() if one["class_type"] == "JEPAGuidedKSampler")
    link = guided.get("settings")
    return guided, prompt[link[0]]["inputs"] if link else None


def demo(comfy: Callable[..., Comfy]) -> tuple[Comfy, Any]:
    """A page with the first template, and its guided sampler in view."""
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    page.wait("(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel", sampler)
    page.show(sampler)
    return page, sampler


@pytest.mark.long
def test_a_graph_of_the_old_form_opens_with_its_values_where_they_are_today(comfy):
    page = open_demo(comfy)
    # every value changed: all that is technical goes to a settings node
    guided, settings = guided_of(page.ask(LOAD, old_graph(**CHANGED)))
    page.picture("old_form")
    assert {name: guided[name] for name in FACE} == {name: CHANGED[name] for name in FACE}
    assert settings == {name: value for name, value in CHANGED.items() if name not in FACE}
    before = {"seed": [str(20), 0], "steps": 14, "cfg": 2, "sampler_name": "euler", "scheduler": "simple"}
    assert {name: guided[name] for name in before if name != "seed"} == {
        name: value for name, value in before.items() if name != "seed"
    }
    for name in ("model", "positive", "negative", "latent_image", "vae", "encoder", "reference", "seed"):
        assert isinstance(guided[name], list), name
    # what is at its default needs none, and presets have today's names
    for then, today in (("auto", "balanced"), ("balanced", "subtle")):
        guided, settings = guided_of(page.ask(LOAD, old_graph(preset=then, criterion="auto")))
        assert (guided["preset"], settings) == (today, None)
        assert guided["target"] == "1 in 20"
    guided, settings = guided_of(page.ask(LOAD, old_graph(preset="fast", criterion="auto")))
    assert (guided["preset"], settings["power_iterations"]) == ("custom", 1)
    # and today's graph is left alone
    saved = page.ask("() => app.graph.serialize()")
    assert guided_of(page.ask(LOAD, saved)) == (guided, settings)
    assert not page.errors


@pytest.mark.long
def test_a_node_of_the_old_form_that_is_inserted_keeps_what_is_on_its_face(comfy):
    page = open_demo(comfy)
    (old,) = (one for one in old_graph(**CHANGED)["nodes"] if one["type"] == "JEPAGuidedKSampler")
    script = """(saved) => {
        const node = LiteGraph.createNode("JEPAGuidedKSampler");
        app.graph.add(node);
        node.configure({ ...saved, id: node.id, inputs: [], outputs: [] });
        return Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]));
    }"""
    shown = page.ask(script, old)
    assert {name: shown[name] for name in FACE} == {name: CHANGED[name] for name in FACE}
    # as many values as today's node has, of which none is of the old form
    today = page.ask(script, old | {"widgets_values": [*old["widgets_values"][:7], 1.5, 0.2, 0.8, 1, 9, 2]})
    assert today["strength"] == 1.5
    assert not page.errors


@pytest.mark.long
def test_a_link_to_an_input_of_the_old_form_leads_to_the_settings(comfy):
    page = open_demo(comfy)
    graph = old_graph(criterion="auto", preset="auto")
    (node,) = (one for one in graph["nodes"] if one["type"] == "JEPAGuidedKSampler")
    number, link = graph["last_node_id"] + 1, graph["last_link_id"] + 1
    node["inputs"].append({"name": "interval", "type": "INT", "widget": {"name": "interval"}, "link": link})
    graph["links"].append([link, number, 0, node["id"], len(node["inputs"]) - 1, "INT"])
    output = {"name": "INT", "type": "INT", "links": [link]}
    graph["nodes"].append(
        {
            **{
                "id": number,
                "type": "PrimitiveInt",
                "pos": [0, 0],
                "size": [200, 80],
                "flags": {},
                "order": 0,
            },
            **{
                "mode": 0,
                "inputs": [],
                "outputs": [output],
                "properties": {},
                "widgets_values": [3, "fixed"],
            },
        }
    )
    graph |= {"last_node_id": number, "last_link_id": link}
    guided, settings = guided_of(page.ask(LOAD, graph))
    assert settings["interval"] == [str(number), 0]
    for name in ("model", "vae", "encoder", "reference"):
        assert isinstance(guided[name], list), name
    assert not page.errors


@pytest.mark.long
def test_dragging_on_the_scale_sets_the_strength(comfy):
    page, sampler = demo(comfy)
    mouse = page.page.mouse
    mouse.move(*page.ask(POINT, [sampler, 30, 24]))
    mouse.down()
    assert page.ask(STRENGTH, sampler) < -2
    mouse.move(*page.ask(POINT, [sampler, -10, 24]), steps=4)
    assert page.ask(STRENGTH, sampler) == 4
    mouse.move(*page.ask(POINT, [sampler, -80, 24]), steps=4)
    mouse.up()
    dragged = page.ask(STRENGTH, sampler)
    assert 0.5 < dragged < 4
    assert round(dragged / 0.05) * 0.05 == pytest.approx(dragged)
    # after the button is up nothing follows the mouse, and the node stayed where it was
    place = page.ask("(id) => [...app.graph.getNodeById(id).pos]", sampler)
    mouse.move(*page.ask(POINT, [sampler, 30, 24]), steps=4)
    assert page.ask(STRENGTH, sampler) == dragged
    assert page.ask("(id) => [...app.graph.getNodeById(id).pos]", sampler) == place
    page.picture("dragged")
    assert not page.errors


@pytest.mark.long
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_run_before_stays_as_a_shadow_and_a_step_tells_its_values(comfy, theme):
    page, sampler = demo(comfy)
    page.change("Comfy.ColorPalette", theme)
    try:
        page.page.wait_for_timeout(1000)
        page.ask(SEND, [sampler, a_trace(novelty=NOVELTY)])
        alone = sum(page.ask(COLOURS, sampler).values())
        # half of the next run, which is rarer: the shadow holds the scale still
        rarer = a_trace(novelty=[[value + 0.1 for value in row] for row in NOVELTY[:4]])
        page.ask(SEND, [sampler, rarer | {"steps": rarer["steps"][:7]}])
        assert page.ask("(id) => app.graph.getNodeById(id).jepaLast.steps.length", sampler) == 14
        assert sum(page.ask(COLOURS, sampler).values()) != alone
        before = page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.toDataURL()", sampler)
        page.page.mouse.move(*page.ask(POINT, [sampler, 130, 180]))
        page.page.wait_for_timeout(200)
        page.picture(f"shadow_{theme}")
        assert page.ask("(id) => app.graph.getNodeById(id).jepaHover", sampler) is not None
        assert page.ask("(id) => app.graph.getNodeById(id).jepaCanvas.toDataURL()", sampler) != before
    finally:
        page.change("Comfy.ColorPalette", "dark")
    assert not page.errors


@pytest.mark.long
def test_the_pace_of_a_run_and_what_is_left(comfy):
    page, sampler = demo(comfy)
    whole = a_trace(novelty=NOVELTY)
    for step in whole["steps"][:6]:
        page.ask(SEND, [sampler, whole | {"first": step["step"], "steps": [step]}])
        page.page.wait_for_timeout(1100 if step["step"] > 1 else 200)
    label = page.ask(LABEL, sampler)
    assert "s a guided step, about 0:" in label
    page.picture("pace")
    page.ask(SEND, [sampler, whole | {"first": 6, "steps": whole["steps"][6:]}])
    assert "s a guided step." in page.ask(LABEL, sampler)


@pytest.mark.long
def test_the_panel_knows_the_linked_settings(comfy):
    page, sampler = demo(comfy)
    page.ask(
        """(id) => {
            const node = app.graph.getNodeById(id), settings = LiteGraph.createNode("JEPAGuidanceSettings");
            settings.pos = [node.pos[0] - 500, node.pos[1] + 500];
            app.graph.add(settings);
            settings.connect(0, node, node.inputs.findIndex((input) => input.name === "settings"));
        }""",
        sampler,
    )
    page.show(page.node("JEPAGuidanceSettings"), scale=1)
    page.picture("settings_node")
    assert "Guides 9 of 14 steps" in page.ask(LABEL, sampler)
    page.set("JEPAGuidanceSettings", "interval", 4)
    assert "Guides 2 of 14 steps" in page.ask(LABEL, sampler)
    page.set("JEPAGuidedKSampler", "preset", "faithful")
    assert "Guides 9 of 14 steps" in page.ask(LABEL, sampler)
    page.set("JEPAGuidanceSettings", "criterion", "novelty")
    assert "Novelty has nothing to compare with" in page.ask(LABEL, sampler)
    assert not page.errors
