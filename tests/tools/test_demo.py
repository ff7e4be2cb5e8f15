"""The demo: its workflow names exactly the inputs that the nodes declare, and its sheet says what was measured."""

from __future__ import annotations

from typing import Any

import folder_paths
import pytest
from jepa_guidance.nodes.demo import JEPADemoClass, JEPADemoLoader
from jepa_guidance.nodes.encoder_loader import JEPAEncoderLoader
from jepa_guidance.nodes.guidance_settings import JEPAGuidanceSettings
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from jepa_guidance.nodes.score_image import JEPAScoreImage
from PIL import Image

from research.judges.words import one_in
from research.world import labels
from tools.demo import SAMPLING, SETTINGS, shown_score, workflow
from tools.demo_sheet import caption, draw_sheet, said

OURS = (
    JEPADemoLoader,
    JEPADemoClass,
    JEPAEncoderLoader,
    JEPAGuidanceSettings,
    JEPAGuidedKSampler,
    JEPAScoreImage,
)


def defaults(node: str) -> dict[str, Any]:
    """The defaults of the pack's nodes; of other nodes nothing is known here."""
    inputs = [entry for kind in OURS if kind.__name__ == node for entry in kind.define_schema().inputs]
    options = {entry.id: getattr(entry, "default", None) for entry in inputs}
    return {name: value for name, value in options.items() if value is not None}


@pytest.mark.parametrize("node", OURS)
def test_workflow_fills_every_required_input(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([], {".safetensors"}))
    schema = node.define_schema()
    names = {entry.id for entry in schema.inputs}
    required = {entry.id for entry in schema.inputs if not entry.optional}
    parts = workflow(defaults, 0, "robot", "encoder", 1.0).values()
    uses = [part for part in parts if part["class_type"] == schema.node_id]
    assert uses
    for part in uses:
        assert required <= set(part["inputs"]) <= names


def test_workflow_differs_from_the_defaults_where_it_says_so_alone() -> None:
    for name, kind, expected in (
        ("sampler", "JEPAGuidedKSampler", {"strength"}),
        ("settings", "JEPAGuidanceSettings", set(SETTINGS)),
    ):
        part, stock = workflow(defaults, 0, "robot", "encoder", 1.0)[name], defaults(kind)
        changed = {
            name
            for name, value in part["inputs"].items()
            if not isinstance(value, list) and name not in ("seed", *SAMPLING) and value != stock[name]
        }
        assert changed == expected


def test_every_strength_starts_from_the_same_noise() -> None:
    stock, guided = (workflow(defaults, 3, "robot", "encoder", s)["sampler"]["inputs"] for s in (0.0, 1.0))
    assert stock == {name: guided[name] for name in stock}


def test_score_is_read_from_what_the_node_shows() -> None:
    text = "rarest first; top 9, small\n1. image 0: score -12.34"
    assert shown_score({"outputs": {"5": {"text": [text]}}}, "5") == -12.34
    with pytest.raises(ValueError, match="shows no score"):
        shown_score({"outputs": {"5": {"text": ["nothing"]}}}, "5")


def row(strength: float, score: float, top: str, recognised: bool = True) -> dict[str, Any]:
    """A robot with this top, otherwise as usual as can be."""
    first = labels.draw(7, 1)
    attributes = first.attributes.clamp(max=0)
    attributes[0, 0] = labels.COLUMNS[0][1].values.index(top)
    found = {"seed": 0, "class": "robot", "strength": strength, "score": score, "recognised": recognised}
    tail = labels.tail(first.classes, attributes).item()
    return found | {
        "attributes": attributes[0].tolist(),
        "tail": tail,
        "picture": Image.new("RGB", (128, 128)),
    }


def test_captions_say_what_changed_and_how_rare_it_is() -> None:
    usual, rare = row(0.0, -1.0, "antenna"), row(1.0, -9.0, "horns", recognised=False)
    assert caption(usual, None).splitlines() == ["typical", "JEPA score -1.0"]
    lines = caption(rare, usual).splitlines()
    assert lines[0] == "not recognised as robot"
    assert lines[-1] == f"top: antenna \N{RIGHTWARDS ARROW} horns ({one_in(0.1)})"
    assert caption(usual | {"strength": 1.0}, usual).splitlines()[-1] == "no named attribute changed"


def test_the_sheet_is_drawn_from_the_first_picture_on() -> None:
    rows = [row(0.0, -1.0, "antenna"), row(1.0, -9.0, "horns", recognised=False), row(2.0, 3.0, "antenna")]
    sizes = [draw_sheet(rows[:count], (0.0, 1.0, 2.0), [0, 1], "encoder").size for count in (1, 2, 3)]
    assert min(min(size) for size in sizes) > 300
    words = said(rows, (0.0, 1.0, 2.0))
    assert "lower in 1 of 1" in words[0]
    assert "rarer 1, more typical 0; recognised as what was asked for 0" in words[0]
    assert "lower in 0 of 1" in words[1]
    assert "rarer 0, more typical 0; recognised as what was asked for 1" in words[1]
