"""Several workflows on one page: a run is shown on its own nodes alone, apart from the run before; and the wheel."""

from __future__ import annotations

import pytest

from tests.browser.conftest import IDLE, run
from tests.browser.test_page import NOVELTY, SEND, a_trace, make_small, open_demo
from tools.page import Comfy

STEPS = "(id) => app.graph.getNodeById(id)?.jepaTrace?.steps.length ?? 0"
# Open a copy of the workflow in another tab of the page. Its nodes have the same ids.
COPY = """async () => {
    const copy = JSON.parse(JSON.stringify(app.graph.serialize()));
    copy.id = crypto.randomUUID();
    await app.loadGraphData(copy, true, true, "copy");
}"""
LISTEN = """() => {
    window.heard = 0;
    app.api.addEventListener("jepa_guidance.trace", () => { window.heard += 1; });
}"""
CANVAS = """(id) => {
    const { x, y, width, height } = app.graph.getNodeById(id).jepaCanvas.getBoundingClientRect();
    return [x + width / 2, y + height / 2];
}"""


def switch(page: Comfy, command: str) -> None:
    """Go to another workflow of the page, and wait until it is drawn."""
    page.ask("(command) => app.extensionManager.command.execute(command)", command)
    page.page.wait_for_timeout(1500)


def test_a_run_is_shown_on_the_nodes_of_its_own_workflow(comfy, encoder_name):
    page = open_demo(comfy)
    make_small(page, encoder_name)
    sampler = page.node("JEPAGuidedKSampler")
    own = page.ask("() => app.rootGraph.id")
    run(page)
    page.wait(STEPS, sampler, 120)
    page.ask(COPY)
    page.wait("(own) => app.rootGraph.id !== own", own)
    page.ask(LISTEN)
    page.wait("() => window.heard > 1", seconds=120)
    page.picture("copy_while_the_other_runs")
    assert page.ask(STEPS, sampler) == 0
    switch(page, "Workspace.PreviousOpenedWorkflow")
    page.wait(f"async (id) => ({STEPS})(id) === 14 && await ({IDLE})()", sampler, 200)
    assert not page.errors


def test_a_workflow_opened_again_while_it_runs_shows_no_steps_of_the_run_before(comfy):
    page = open_demo(comfy)
    sampler = page.node("JEPAGuidedKSampler")
    before, now = a_trace(novelty=NOVELTY), a_trace(novelty=NOVELTY[:4])
    page.ask("([id, trace]) => { app.nodeOutputs = { [id]: { jepa_trace: [trace] } }; }", [sampler, before])
    assert page.ask(STEPS, sampler) == 14
    page.ask(SEND, [sampler, now | {"first": 5, "steps": now["steps"][5:7]}])
    assert page.ask(STEPS, sampler) == 2
    assert page.ask("(id) => app.graph.getNodeById(id).jepaLast.steps.length", sampler) == 14


@pytest.mark.parametrize("vue", [False, pytest.param(True, marks=pytest.mark.long)], ids=["classic", "vue"])
def test_the_wheel_zooms_the_graph_over_a_panel_too(comfy, vue):
    page = open_demo(comfy)
    page.change("Comfy.VueNodes.Enabled", vue)
    try:
        page.page.wait_for_timeout(1500)
        sampler = page.node("JEPAGuidedKSampler")
        page.show(sampler)
        page.page.mouse.move(*page.ask(CANVAS, sampler))
        page.page.mouse.wheel(0, -200)
        page.wait("() => app.canvas.ds.scale > 0.81", seconds=10)
    finally:
        page.change("Comfy.VueNodes.Enabled", False)
