"""The demo's workflow names exactly the inputs that the nodes declare."""

from __future__ import annotations

from typing import Any

import folder_paths
import pytest
from jepa_guidance.nodes.demo import JEPADemoClass, JEPADemoLoader
from jepa_guidance.nodes.encoder_loader import JEPAEncoderLoader
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from jepa_guidance.nodes.score_image import JEPAScoreImage

from tools.demo import ARMS, comparison, shown_score

OURS = (JEPADemoLoader, JEPADemoClass, JEPAEncoderLoader, JEPAGuidedKSampler, JEPAScoreImage)


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
    uses = [
        part
        for part in comparison(defaults, 0, "face", "encoder", False).values()
        if part["class_type"] == schema.node_id
    ]
    assert uses
    for part in uses:
        assert required <= set(part["inputs"]) <= names


def test_workflow_differs_from_the_defaults_where_it_says_so_alone() -> None:
    part = comparison(defaults, 0, "face", "encoder", False)["guided"]
    sampling = ("seed", "steps", "cfg", "sampler_name", "scheduler")
    stock = defaults("JEPAGuidedKSampler")
    changed = [
        name
        for name, value in part["inputs"].items()
        if not isinstance(value, list) and name not in sampling and value != stock[name]
    ]
    assert set(changed) == {"power_iterations"}


def test_both_arms_start_from_the_same_noise() -> None:
    workflow = comparison(defaults, 3, "face", "encoder", True)
    stock, guided = (workflow[arm]["inputs"] for arm in ARMS)
    assert stock == {name: guided[name] for name in stock}


def test_score_is_read_from_what_the_node_shows() -> None:
    text = "JEPA score, rarest first\n1. image 0: -12.34\ntop 9, small"
    assert shown_score({"outputs": {"5": {"text": [text]}}}, "5") == -12.34
    with pytest.raises(ValueError, match="shows no score"):
        shown_score({"outputs": {"5": {"text": ["nothing"]}}}, "5")
