"""A value typed into a node that does not fit gets one error of the host, on its input, with the reason.

The host calls a node's validate_inputs once, and blames every input that it asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import execution
import folder_paths
import nodes as host_nodes
import pytest
from comfy_api.latest import io
from jepa_guidance.host.comfy.model_folders import register_folders
from jepa_guidance.nodes import JEPAExtension

from tests.conftest import ROOT
from tests.own_loop import finished

NODES = list(json.loads((ROOT / "tests" / "server" / "schema.json").read_text(encoding="utf-8")))
LINK = "source"  # a node that gives whatever an input is linked to


class AnyOutput:
    """A node with one output, of every type."""

    RETURN_TYPES = ("*",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack's nodes are the host's, with model folders of their own."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    register_folders()
    for one in finished(JEPAExtension().get_node_list()):
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, one.define_schema().node_id, one)
    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, LINK, AnyOutput)


def inputs_of(node: str) -> list[io.Input]:
    return host_nodes.NODE_CLASS_MAPPINGS[node].define_schema().inputs


def errors_of(node: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The host's errors for a node with its defaults, everything else linked, and these changes."""
    inputs: dict[str, Any] = {}
    for entry in inputs_of(node):
        default = getattr(entry, "default", None)
        inputs[entry.id] = [LINK, 0] if default is None else default
    prompt = {
        node: {"class_type": node, "inputs": inputs | changes},
        LINK: {"class_type": LINK, "inputs": {}},
    }
    _, errors, _ = finished(execution.validate_inputs("prompt", prompt, node, {}))
    return errors


def misfits(entry: io.Input) -> Iterator[Any]:
    """Values that do not fit an input, if any is refused before the run."""
    if isinstance(entry, io.Combo.Input):
        yield "no such choice"
    elif isinstance(entry, io.Int.Input | io.Float.Input) and not entry.force_input:
        yield from ("0,5", entry.min - 1, entry.max + 1)


@pytest.mark.parametrize("node", NODES)
def test_defaults_fit(node):
    assert errors_of(node, {}) == []


@pytest.mark.parametrize("node", NODES)
def test_a_value_that_does_not_fit_gets_one_error_on_its_input(node):
    for entry in inputs_of(node):
        for value in misfits(entry):
            (error,) = errors_of(node, {entry.id: value})
            assert error["extra_info"]["input_name"] == entry.id, value
            assert str(value) in error["message"] + error["details"], entry.id


def test_a_sampler_that_a_search_cannot_follow_gets_one_error_with_the_reason():
    (error,) = errors_of("JEPARareSearch", {"sampler_name": "dpm_adaptive"})
    assert error["extra_info"]["input_name"] == "sampler_name"
    assert "it chooses its steps as it goes" in error["details"]


def test_a_text_of_strengths_that_does_not_fit_gets_one_error_with_the_reason():
    (error,) = errors_of("JEPAStrengthStrip", {"strengths": "0, one"})
    assert error["extra_info"]["input_name"] == "strengths"
    assert "strengths must be numbers, such as -1, 0, 0.5, 1; got 'one'" in error["details"]
