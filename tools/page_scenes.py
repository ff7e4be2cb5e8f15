"""Pictures of ComfyUI's page: a template is opened and run, then its nodes and what they made are drawn into files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tools.page import Comfy
from tools.server import Server

TEMPLATES = Path(__file__).absolute().parents[1] / "workflows"
VIEWPORT = {"width": 2000, "height": 1800}
PLACE, ROOM = (
    150,
    1400,
)  # pixels of the page: where nodes are shown, clear of the page's menus, and the space there
MARGIN = 10  # around nodes, in units of the graph
PAPER, INK, TEXT, LINE = "#ffffff", "#1a1a1a", 20, 30  # of sheets; sizes in pixels
SETTLE_MS = 1500  # texts and pictures arrive on the nodes, and are drawn
JPEG_QUALITY = 85
COLOURS = 96  # of a PNG

Widgets = Mapping[tuple[int, str], Any]  # values by node id and widget
Box = tuple[int, int, int, int]
Made = list[dict[int, list[Image.Image]]]  # pictures by node, for each run

OPEN = """async ([graph, added, off]) => {
  await app.loadGraphData(graph);
  const at = (id) => app.graph.getNodeById(id);
  const input = (node, name) => node.inputs.findIndex((one) => one.name === name);
  for (const { id, kind, place, inputs, outputs } of added) {
    const node = LiteGraph.createNode(kind);
    Object.assign(node, { id, pos: place });
    app.graph.add(node);
    for (const [name, from, slot] of inputs) at(from).connect(slot, node, input(node, name));
    for (const [slot, to, name] of outputs) node.connect(slot, at(to), input(at(to), name));
  }
  for (const id of off) at(id).mode = LiteGraph.NEVER;
}"""
SET = """([id, name, value]) => {
  const widget = app.graph.getNodeById(id).widgets.find((one) => one.name === name);
  widget.value = value;
  widget.callback?.(value);
}"""
# Returns "" or why the run failed, and the previews [node, file in base64] that came in between.
RUN = """async (picks) => {
  const { api } = await import("/scripts/api.js");
  const previews = [];
  const keep = ({ detail: { nodeId, blob } }) => previews.push([Number(nodeId), blob]);
  api.addEventListener("b_preview_with_metadata", keep);
  // as a user clicks, once the panel shows the pictures
  const pick = ({ detail: { state, node, images } }) => {
    if (state !== "open") return;
    setTimeout(() => nodeOf(node).jepaPicker.onKeep(picks.map((place) => images[place].index)));
  };
  const nodeOf = (id) => app.graph.getNodeById(Number(id));
  api.addEventListener("jepa_guidance.pick", pick);
  const ended = new Promise((done) => {
    api.addEventListener("execution_success", () => done(""), { once: true });
    api.addEventListener("execution_error", ({ detail }) => done(detail.exception_message), { once: true });
  });
  const queued = await app.queuePrompt(0);
  const fault = queued ? await ended : "the server refused the graph";
  api.removeEventListener("b_preview_with_metadata", keep);
  api.removeEventListener("jepa_guidance.pick", pick);
  const encoded = (blob) => new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(",")[1]);
    reader.readAsDataURL(blob);
  });
  return [fault, await Promise.all(previews.map(async ([node, blob]) => [node, await encoded(blob)]))];
}"""
OUTPUTS = """() => Object.entries(app.nodeOutputs)
  .filter(([, output]) => output.images).map(([id, { images }]) => [Number(id), images])"""
# As high as what they show; a chart once drawn would keep its node as high as it was.
FIT = """(ids) => ids.forEach((id) => {
  const canvas = app.graph.getNodeById(id).jepaCanvas;
  if (canvas) Object.assign(canvas.style, { flex: "none", height: "270px" });
  document.querySelector(`[data-node-id="${id}"]`).style.setProperty("--node-height", "0px");
})"""
# Nodes alone are shown without links and groups, and under their own names.
SHOW = """([ids, place, room, alone]) => {
  const boxes = ids.map((id) => app.graph.getNodeById(id).getBounding());
  const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const spans = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])) - [left, top][axis]);
  const ds = app.canvas.ds;
  ds.scale = Math.min(1, room / Math.max(...spans));
  ds.offset = [place / ds.scale - left, place / ds.scale - top];
  app.canvas.links_render_mode = alone ? LiteGraph.HIDDEN_LINK : LiteGraph.SPLINE_LINK;
  if (alone) app.canvas.drawGroups = () => {};
  else delete app.canvas.drawGroups;
  for (const element of document.querySelectorAll("[data-node-id]"))
    element.style.visibility = alone && !ids.includes(Number(element.dataset.nodeId)) ? "hidden" : "";
  if (alone) for (const node of ids.map((id) => app.graph.getNodeById(id))) node.title = node.constructor.title;
  app.canvas.deselectAll();
  app.canvas.setDirty(true, true);
  return ds.scale;
}"""
# left, top, right, bottom of the nodes on the page
BOUNDS = """(ids) => ids.map((id) => document.querySelector(`[data-node-id="${id}"]`).getBoundingClientRect())
  .map(({ left, top, right, bottom }) => [left, top, right, bottom])"""


@dataclass(frozen=True)
class Shot:
    """A picture of nodes as the page shows them.

    Attributes:
        file: where it is kept, from the root of the repository.
        nodes: ids.
        width: of the picture in pixels.
        height: None for as much as the nodes need; else the view goes on to the right or downwards, or, from `first`
            on, is cut off.
        first: the widget that the picture begins with, of the first node; None for the whole node.
    """

    file: str
    nodes: tuple[int, ...]
    width: int
    height: int | None = None
    first: str | None = None


@dataclass(frozen=True)
class Tile:
    """A picture that a node made.

    Attributes:
        index: which of the node's pictures in that run; its previews come first.
        box: the part that is shown, in pixels; None for all.
    """

    node: int
    index: int = 0
    run: int = 0
    caption: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class Sheet:
    """A picture put together from pictures that nodes made, row by row; see Shot for file and width."""

    file: str
    tiles: tuple[Tile, ...]
    width: int
    columns: int
    gap: int = 8

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(tile.node for tile in self.tiles)


@dataclass(frozen=True)
class Added:
    """A node that the template does not have.

    Attributes:
        inputs: (input, node that it comes from, output). outputs: (output, node that it goes to, input).
    """

    id: int
    kind: str
    place: tuple[int, int]
    inputs: tuple[tuple[str, int, int], ...]
    outputs: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True)
class Scene:
    """A template on the page, and the pictures taken of it after it has run.

    Attributes:
        template: the name of a file in workflows/.
        runs: what is set before each run; the local encoder is set too. () if the graph is only shown.
        off: nodes that do not run. previews: whether samplers send them.
        picks: the places of the pictures that JEPA Pick Images keeps.
    """

    template: str
    pictures: tuple[Shot | Sheet, ...]
    runs: tuple[Widgets, ...] = ()
    added: tuple[Added, ...] = ()
    off: tuple[int, ...] = ()
    previews: bool = False
    picks: tuple[int, ...] = ()

    def graph(self) -> dict[str, Any]:
        """The template without its note, which would stand half in view."""
        content: dict[str, Any] = json.loads(
            (TEMPLATES / f"{self.template}.json").read_text(encoding="utf-8")
        )
        nodes = [node for node in content["nodes"] if node["type"] != "MarkdownNote"]
        return content | {"nodes": nodes}


@dataclass(frozen=True)
class Studio:
    """A page on which scenes are played.

    Attributes:
        encoder: an option of JEPAEncoderLoader that is on the machine.
    """

    comfy: Comfy
    server: Server
    encoder: str

    def play(self, scene: Scene, wanted: Sequence[Shot | Sheet]) -> dict[str, Image.Image]:
        """Open and run a scene; returns the wanted pictures by file. Raises RuntimeError if a run fails."""
        graph = scene.graph()
        self.comfy.ask(OPEN, [graph, [vars(one) for one in scene.added], scene.off])
        self.comfy.change("Comfy.Execution.PreviewMethod", "auto" if scene.previews else "none")
        loaders = [node["id"] for node in graph["nodes"] if node["type"] == "JEPAEncoderLoader"]
        local = {(node, "encoder"): self.encoder for node in loaders}
        made: Made = []
        for widgets in scene.runs:
            for (node, name), value in {**local, **widgets}.items():
                self.comfy.ask(SET, [node, name, value])
            made.append(self._run(scene))
            self.comfy.ask("() => app.refreshComboInNodes()")  # menus list files that the run saved
        self.comfy.page.wait_for_timeout(SETTLE_MS)
        return {
            one.file: self._shot(one) if isinstance(one, Shot) else put_together(one, made) for one in wanted
        }

    def _run(self, scene: Scene) -> dict[int, list[Image.Image]]:
        """Run the graph; returns the pictures that each node showed, previews first."""
        fault, previews = self.comfy.ask(RUN, scene.picks)
        if fault:
            raise RuntimeError(f"{scene.template}: {fault}")
        made: dict[int, list[Image.Image]] = {}
        for node, content in previews:
            made.setdefault(node, []).append(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
        for node, files in self.comfy.ask(OUTPUTS):
            pictures = [Image.open(io.BytesIO(self.server.image(file))).convert("RGB") for file in files]
            made.setdefault(node, []).extend(pictures)
        return made

    def _shot(self, shot: Shot) -> Image.Image:
        scale = self.comfy.ask(SHOW, [shot.nodes, PLACE, ROOM, shot.height is None])
        self.comfy.page.wait_for_timeout(SETTLE_MS)
        self.comfy.ask(FIT, shot.nodes)
        self.comfy.page.wait_for_timeout(SETTLE_MS)
        lefts, tops, rights, bottoms = zip(*self.comfy.ask(BOUNDS, shot.nodes), strict=True)
        margin = MARGIN * scale
        left, top = min(lefts) - margin, min(tops) - margin
        if shot.first:
            node = self.comfy.page.locator(f'[data-node-id="{shot.nodes[0]}"]')
            top = node.get_by_text(shot.first, exact=True).bounding_box()["y"] - margin / 2
        width, height = max(rights) + margin - left, max(bottoms) + margin - top
        if shot.height:
            if not shot.first:
                width = max(width, height * shot.width / shot.height)
            height = width * shot.height / shot.width
        clip = {"x": left, "y": top, "width": width, "height": height}
        picture = Image.open(io.BytesIO(self.comfy.page.screenshot(clip=clip))).convert("RGB")
        return scaled(picture, shot.width)


def put_together(sheet: Sheet, made: Made) -> Image.Image:
    """The sheet, of the pictures that the runs made."""
    side = (sheet.width - sheet.gap * (sheet.columns - 1)) // sheet.columns
    pictures = [scaled(made[tile.run][tile.node][tile.index].crop(tile.box), side) for tile in sheet.tiles]
    line = LINE if any(tile.caption for tile in sheet.tiles) else 0
    high = max(picture.height for picture in pictures) + line
    rows = -(-len(pictures) // sheet.columns)
    drawn = Image.new("RGB", (sheet.width, rows * (high + sheet.gap) - sheet.gap), PAPER)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(TEXT)
    for index, (tile, picture) in enumerate(zip(sheet.tiles, pictures, strict=True)):
        x, y = index % sheet.columns * (side + sheet.gap), index // sheet.columns * (high + sheet.gap)
        drawn.paste(picture, (x, y))
        draw.text((x + side // 2, y + high - line), tile.caption, fill=INK, font=font, anchor="ma")
    return drawn


def scaled(picture: Image.Image, width: int) -> Image.Image:
    """The picture at this width in pixels."""
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def save(picture: Image.Image, file: Path) -> None:
    """Write a JPEG, or a PNG of few colours, as the file's name says."""
    if file.suffix == ".jpg":
        picture.save(file, quality=JPEG_QUALITY, optimize=True, progressive=True)
    else:
        # keeps rare colours, such as those of a thin line
        few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
