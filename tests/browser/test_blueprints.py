"""Subgraph blueprints and the app view of the first template, on the page."""

from __future__ import annotations

import json

import pytest

from tests.browser.conftest import run
from tests.browser.test_page import DEMO, make_small, open_demo
from tests.conftest import ROOT

# Puts the new node into the place of the guided sampler of the template.
REPLACE = """([id, old]) => {
    const made = app.graph.getNodeById(id), guided = app.graph.getNodeById(old);
    const slot = (node, name) => node.inputs.findIndex((input) => input.name === name);
    for (const name of ["model", "positive", "negative", "latent_image", "vae"]) {
        const link = guided.getInputLink(slot(guided, name));
        app.graph.getNodeById(link.origin_id).connect(link.origin_slot, made, slot(made, name));
    }
    for (const node of guided.getOutputNodes(0)) made.connect(0, node, slot(node, "samples"));
    app.graph.remove(guided);
    made.widgets.find(({ name }) => name === "steps").value = 4;
}"""
INSIDE = """([id, encoder]) => {
    const loader = app.graph.getNodeById(id).subgraph.nodes.find((node) => node.comfyClass === "JEPAEncoderLoader");
    app.graph.getNodeById(id).widgets.find(({ name }) => name === "encoder").value = encoder;
    loader.widgets.find(({ name }) => name === "image_size").value = 56;
}"""

REVERSE = """(id) => {
    const sampler = app.graph.getNodeById(id).subgraph.nodes.find((node) => node.comfyClass === "JEPAGuidedKSampler");
    sampler.widgets.find(({ name }) => name === "start_percent").value = 0.9;
}"""
# What is said in red on nodes that can be seen.
COMPLAINTS = """[...document.querySelectorAll(".jepa-callout.error")].filter((one) => one.checkVisibility())
    .map((one) => one.querySelector(".text").firstChild.textContent)"""


@pytest.mark.long
def test_a_blueprint_is_found_by_search_and_guides(comfy, server, encoder_name):
    page = open_demo(comfy)
    make_small(page, encoder_name)
    sampler = page.node("JEPAGuidedKSampler")
    page.show(sampler, scale=0.3)
    page.page.mouse.dblclick(1300, 950)
    page.wait("document.activeElement?.tagName === 'INPUT'")
    page.page.keyboard.type("rarer ksampler", delay=30)
    page.page.get_by_text("Subgraph Blueprints / JEPA").first.wait_for()
    page.page.keyboard.press("Enter")
    page.page.wait_for_timeout(2000)
    page.click((1300, 900))
    found = "app.graph.nodes.find((node) => node.title === 'Rarer KSampler')"
    page.wait(found)
    made = page.ask(f"{found}.id")
    widgets = page.ask(f"{found}.widgets.map(({{ name, value }}) => [name, value])")
    named = [["strength", 0.5], ["seed", 42], ["steps", 20], ["encoder", "dinov2-with-registers-small"]]
    assert widgets == named
    page.ask(REPLACE, [made, sampler])
    page.ask(INSIDE, [made, encoder_name])
    page.show(made)
    page.picture("blueprint")
    prompt = page.ask("async () => (await app.graphToPrompt()).output")
    (inner,) = [node for node in prompt.values() if node["class_type"] == "JEPAGuidedKSampler"]
    assert [inner["inputs"][name] for name in ("strength", "seed", "steps")] == [0.5, 42, 4]
    outputs = server.wait(server.queue(prompt), timeout=600)["outputs"]
    pictures = [file for node in outputs.values() for file in node.get("images", ())]
    assert len(pictures) == 2
    assert server.image(pictures[0]) != server.image(pictures[1])
    # an error inside is said on the blueprint too
    page.ask(REVERSE, made)
    run(page)
    page.wait(f"{COMPLAINTS}.length")
    (sentence,) = page.ask(COMPLAINTS)
    page.picture("blueprint_error")
    assert sentence.startswith(
        "\u26a0 JEPA Guided KSampler: start_percent 0.9 is larger than end_percent 0.8"
    )
    assert not page.errors


@pytest.mark.long
def test_the_first_template_has_an_app_view(comfy):
    graph = json.loads((ROOT / "workflows" / f"{DEMO}.json").read_text(encoding="utf-8"))
    wanted = graph["extra"]["linearData"]
    page = open_demo(comfy)
    page.ask("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    page.page.wait_for_timeout(5000)
    page.picture("app_view")
    kept = page.ask("app.rootGraph.extra.linearData")
    assert len(kept["inputs"]) == len(wanted["inputs"])
    assert len(kept["outputs"]) == len(wanted["outputs"])
    shown = page.ask("document.body.innerText").splitlines()
    assert [line for line in shown if line in ("class_name", "value", "strength", "Run")][-4:] == [
        *("class_name", "value", "strength"),
        "Run",
    ]
    assert not page.errors
