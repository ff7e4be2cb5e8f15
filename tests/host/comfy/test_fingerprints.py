"""What nodes tell the host to compare goes into the prompt that it saves in images, which has to be JSON."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from comfy_api.latest import io
from jepa_guidance.nodes import JEPAExtension

NODES = [node for node in asyncio.run(JEPAExtension().get_node_list()) if "fingerprint_inputs" in vars(node)]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_what_is_not_known_yet_is_json_and_never_the_same(node, monkeypatch):
    monkeypatch.setattr(io.ComfyNode, "hidden", SimpleNamespace(unique_id="1"))
    found = [json.dumps(node.fingerprint_inputs(), allow_nan=False) for _ in range(2)]
    assert found[0] != found[1] or node.__name__ == "JEPAPickImages"  # which counts its unanswered runs


def test_every_such_node_is_tried():
    assert len(NODES) >= 4
