"""The blueprints in subgraphs/ are as the page would save them, and the host serves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_workflows import check_value, declared, is_widget, widgets
from tools.server import Server

FOLDER = Path(__file__).absolute().parents[2] / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def blueprint(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The node on the graph, and the subgraph behind it."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    (node,), (subgraph,) = content["nodes"], content["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    assert node["title"] == subgraph["name"] == name
    return node, subgraph


def test_the_host_serves_the_blueprints_of_the_pack(server: Server):
    listed = json.loads(server.get("/global_subgraphs"))
    ours = {
        key: one for key, one in listed.items() if one["info"]["node_pack"] == "custom_nodes.jepa-guidance"
    }
    assert sorted(one["name"] for one in ours.values()) == NAMES
    for key, one in ours.items():
        text = (FOLDER / f"{one['name']}.json").read_text(encoding="utf-8")
        assert json.loads(server.get(f"/global_subgraphs/{key}"))["data"] == text


@pytest.mark.parametrize("name", NAMES)
def test_its_nodes_are_those_of_today(server: Server, name: str):
    """Inputs, outputs and widgets inside, and links between sockets of one type."""
    infos = server.object_info()
    node, subgraph = blueprint(name)
    inner = {one["id"]: one for one in subgraph["nodes"]}
    for one in inner.values():
        info = infos[one["type"]]
        named = widgets(one, info)
        kinds = {entry: kind for entry, kind, _ in declared(info)}
        for entry, kind, options in declared(info):
            if is_widget(kind, options):
                check_value(entry, named[entry], kind, options)
        assert all(kinds[slot["name"]] == slot["type"] for slot in one["inputs"])
        assert [slot["type"] for slot in one["outputs"]] == info["output"]
    outside = {-10: {"outputs": subgraph["inputs"]}, -20: {"inputs": subgraph["outputs"]}}
    ends = inner | outside
    for link in subgraph["links"]:
        sender = ends[link["origin_id"]]["outputs"][link["origin_slot"]]
        receiver = ends[link["target_id"]]["inputs"][link["target_slot"]]
        assert sender["type"] == receiver["type"] == link["type"]
    # each input inside is required and linked, or has a widget
    for one in inner.values():
        required = infos[one["type"]]["input_order"]["required"]
        assert all(
            slot["link"] is not None or slot["name"] not in required
            for slot in one["inputs"]
            if not slot.get("widget")
        )
    assert [slot["name"] for slot in node["inputs"]] == [slot["name"] for slot in subgraph["inputs"]]
