"""The templates of the strength strip, of the ranking and of the rarity map run on the page, and nothing covers anything."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import IDLE, run
from tools.page import Comfy

# Nodes of which one covers another, and elements that leave their nodes, as pairs of names.
COVERED = """() => {
    const { ds, canvas } = app.canvas, page = canvas.getBoundingClientRect();
    const onPage = ([x, y, width, height]) => ({
        left: (x + ds.offset[0]) * ds.scale + page.left, top: (y + ds.offset[1]) * ds.scale + page.top,
        width: width * ds.scale, height: height * ds.scale,
    });
    const found = [];
    const boxes = app.graph.nodes.map((node) => [node, onPage(node.getBounding())]);
    for (const [node, box] of boxes) {
        for (const [other, second] of boxes) {
            if (node.id >= other.id) continue;
            const across = Math.min(box.left + box.width, second.left + second.width) - Math.max(box.left, second.left);
            const down = Math.min(box.top + box.height, second.top + second.height) - Math.max(box.top, second.top);
            if (across > 1 && down > 1) found.push([node.title, other.title]);
        }
        for (const { name, element } of node.widgets ?? []) {
            const part = element?.getBoundingClientRect();
            if (!part?.width) continue;
            const [right, bottom] = [box.left + box.width, box.top + box.height];
            const outside = part.left < box.left - 2 || part.right > right + 2 || part.bottom > bottom + 2;
            if (outside) found.push([node.title, name]);
        }
    }
    return found;
}"""
ALL = """() => {
    const boxes = app.graph.nodes.map((node) => node.getBounding());
    const [x, y] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])));
    const [right, bottom] = [0, 1].map((side) => Math.max(...boxes.map((box) => box[side] + box[2 + side])));
    const ds = app.canvas.ds;
    ds.scale = Math.min(1450 / (right - x), 950 / (bottom - y), 1);
    ds.offset = [-x + 80 / ds.scale, -y + 80 / ds.scale];
    app.canvas.setDirty(true, true);
}"""
SHOWN = "(id) => app.nodeOutputs[id]?.images?.length"
RENDERERS = pytest.mark.parametrize(
    "vue", [False, pytest.param(True, marks=pytest.mark.long)], ids=["classic", "vue"]
)


def opened(comfy, template: str, kind: str, encoder: str, vue: bool) -> Comfy:
    """A page with a template, its encoder small, and its reference of few images."""
    page: Comfy = comfy()
    page.open_template(template)
    page.wait("(kind) => app.graph.nodes.some((node) => node.comfyClass === kind)", kind, 180)
    page.change("Comfy.VueNodes.Enabled", vue)
    page.set("JEPAEncoderLoader", "encoder", encoder)
    page.set("JEPAEncoderLoader", "image_size", 28)
    page.set("JEPAPromptReference", "count", 3)
    page.set("JEPAPromptReference", "steps", 2)
    return page


def seen(page: Comfy, server, node: str | int, index: int = 0) -> np.ndarray:
    """A picture under a node, once it is there."""
    page.wait(SHOWN, node, 240)
    png = server.image(page.ask("([id, index]) => app.nodeOutputs[id].images[index]", [node, index]))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def written(page: Comfy, node: str | int) -> list[str]:
    """The texts under a node, once they are there."""
    page.wait("(id) => app.nodeOutputs[id]?.text", node, 240)
    texts: list[str] = page.ask("(id) => app.nodeOutputs[id].text", node)
    return texts


def tidy(page: Comfy, name: str) -> None:
    """Wait for the end of the run, take a picture of all nodes, and find nothing covered."""
    page.wait(IDLE, seconds=240)
    page.ask(ALL)
    page.page.wait_for_timeout(1500)
    page.picture(name)
    assert page.ask(COVERED) == []
    assert not page.errors


@RENDERERS
def test_a_strip_of_strengths_is_drawn_and_labelled(comfy, server, encoder_name, vue):
    page = opened(comfy, "05 How strong is right", "JEPAStrengthStrip", encoder_name, vue)
    try:
        page.set("EmptyLatentImage", "batch_size", 1)
        page.set("JEPAStrengthStrip", "strengths", "0, 2")
        page.set("JEPAStrengthStrip", "steps", 4)
        run(page)
        strip = page.node("JEPAStrengthStrip")
        picture = seen(page, server, strip)
        # two squares beside each other, above their labels
        height, width = picture.shape[:2]
        assert width > height > width / 2
        unguided, guided = picture[: width // 2, : width // 2], picture[: width // 2, -(width // 2) :]
        assert min(unguided.std(), guided.std()) > 10
        assert np.abs(unguided.astype(int) - guided).mean() > 1
        assert picture[width // 2 + 8 :].std() > 10  # the labels
        saved = page.node("SaveImage")
        assert seen(page, server, saved).shape == picture.shape
        shares = " ".join(written(page, page.node("PreviewAny"))).split()
        assert len(shares) == 2
        assert all(0 <= float(share) <= 100 for share in shares)
        tidy(page, f"strip_{'vue' if vue else 'classic'}")
    finally:
        page.change("Comfy.VueNodes.Enabled", False)


@RENDERERS
def test_a_ranking_and_a_rarity_map_are_drawn_and_listed(comfy, server, encoder_name, vue):
    page = opened(comfy, "13 Keep the rarest", "JEPARankImages", encoder_name, vue)
    try:
        page.set("EmptyLatentImage", "batch_size", 4)
        page.set("KSampler", "steps", 2)
        page.set("JEPARankImages", "columns", 1)
        page.set("JEPARankImages", "count", 3)
        page.set("JEPARarityMap", "threshold_kind", "percentile")
        page.set("JEPARarityMap", "threshold", 75)
        rank = page.node("JEPARankImages")
        table, mask = page.ask(
            """(rank) => {
                const map = app.graph.nodes.find((node) => node.comfyClass === "JEPARarityMap");
                const link = (kind, from, output, y) => {
                    const node = LiteGraph.createNode(kind);
                    node.pos = [3000, y];
                    app.graph.add(node);
                    from.connect(from.outputs.findIndex(({ name }) => name === output), node, 0);
                    return node.id;
                };
                const ranking = app.graph.getNodeById(rank);
                return [link("PreviewAny", ranking, "csv", 0), link("MaskPreview", map, "mask", 600)];
            }""",
            rank,
        )
        run(page)
        sheet = seen(page, server, rank)
        assert sheet.shape[0] > 3 * sheet.shape[1] / 2  # three rows in one column
        (text,) = written(page, table)
        header, *rows = csv.reader(io.StringIO(text))
        assert {"rank", "kept", "novelty"} <= set(header)
        assert len(rows) == 4
        novelties = [float(row[header.index("novelty")]) for row in rows]
        assert novelties[:3] == sorted(novelties, reverse=True)[:3]
        overlay = seen(page, server, page.node("JEPARarityMap"))
        assert overlay.std() > 10
        white = (seen(page, server, mask) > 127).mean()
        assert 0.15 < white < 0.35  # the rarest quarter
        tidy(page, f"rank_{'vue' if vue else 'classic'}")
    finally:
        page.change("Comfy.VueNodes.Enabled", False)
