"""The page beside packs that change it: JEPA_OTHER_PACKS names a folder with their clones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.browser.conftest import SCREENSHOTS
from tests.conftest import HOST, ROOT
from tools.page import Comfy
from tools.server import Server

EVERYWHERE = Path(os.environ.get("JEPA_OTHER_PACKS", "")) / "cg-use-everywhere"
TEMPLATE = "01 First try without a checkpoint"
LABEL = "(id) => app.rootGraph.getNodeById(id).jepaCanvas?.ariaLabel"
# Sends a reference to every input of that type, without a link.
BROADCAST = """(id) => {
    const node = app.rootGraph.getNodeById(id);
    const [reference, sender] = ["JEPALoadReference", "Anything Everywhere"].map((name) => LiteGraph.createNode(name));
    reference.pos = [node.pos[0] - 900, node.pos[1] + 700];
    sender.pos = [node.pos[0] - 500, node.pos[1] + 700];
    for (const one of [reference, sender]) app.rootGraph.add(one);
    reference.connect(0, sender, 0);
    return sender.id;
}"""
REMOVE = "(id) => app.rootGraph.remove(app.rootGraph.getNodeById(id))"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not EVERYWHERE.is_dir(), reason="JEPA_OTHER_PACKS has no clone of cg-use-everywhere"),
]


@pytest.fixture(scope="module")
def shared_server(encoder_dir: Path) -> Iterator[Server]:
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{encoder_dir.name}": encoder_dir}
    links |= {"custom_nodes/cg-use-everywhere": EVERYWHERE}
    with Server(HOST, links, cpu=not torch.cuda.is_available()) as running:
        yield running


def test_what_is_sent_everywhere_counts_as_linked(browser, shared_server):
    context = browser.new_context(viewport={"width": 1600, "height": 1100})
    try:
        page = Comfy(context.new_page(), shared_server.url, SCREENSHOTS)
        page.open_template(TEMPLATE)
        sampler = page.node("JEPAGuidedKSampler")
        page.show(sampler)
        page.set("JEPAGuidedKSampler", "target", "1 in 20")
        lacks = f"(id) => ({LABEL})(id).includes('reference')"
        page.wait(lacks, sampler)
        sender = page.ask(BROADCAST, sampler)
        page.page.mouse.click(120, 900)  # the page looks for changes after a click on the graph
        page.wait(f"(id) => ({LABEL})(id).includes('Guides 9 of 14 steps')", sampler)
        page.picture("use_everywhere")
        page.ask(REMOVE, sender)
        page.page.mouse.click(120, 900)
        page.wait(lacks, sampler)
        assert not page.errors
    finally:
        context.close()
