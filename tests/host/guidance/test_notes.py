"""What a node did is in every image of its result, and in none of another."""

from __future__ import annotations

import json
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from jepa_guidance.host.guidance import notes
from jepa_guidance.host.guidance.notes import METADATA_KEY, MOST_KEPT, add_kept, note_in_images, signature_of

PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"name": "a"}},
    "5:2": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "cfg": 2.0, "seed": 3}},
    "3": {"class_type": "Save", "inputs": {"images": ["5:2", 0], "name": "x"}},
}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(notes, "_kept", {})


def run(queued: dict, trace: int, node: str = "5:2", part: str = "") -> None:
    """The node runs in a queue item."""
    info = queued["extra_data"]["extra_pnginfo"]
    hidden = SimpleNamespace(unique_id=node, prompt=queued["prompt"], extra_pnginfo=info)
    note_in_images(hidden, {"seed": 3, "model": object()}, {"trace": trace}, part)


def queue(prompt: Any = PROMPT) -> dict:
    return add_kept({"prompt": deepcopy(prompt), "extra_data": {"extra_pnginfo": {"workflow": {}}}})


def noted(queued: dict) -> dict:
    """The notes as a save node writes them."""
    every = json.loads(json.dumps(queued["extra_data"]["extra_pnginfo"].get(METADATA_KEY, {})))
    return {name: note["trace"]["trace"] for name, note in every.items()}


def changed(node: str, name: str, value: Any) -> dict:
    prompt = deepcopy(PROMPT)
    prompt[node]["inputs"][name] = value
    return prompt


def test_a_result_from_the_cache_has_the_notes_of_its_run():
    first = queue()
    assert noted(first) == {}
    run(first, 1)
    assert noted(first) == {"5:2": 1}
    assert noted(queue()) == {"5:2": 1}
    assert noted(queue(changed("3", "name", "y"))) == {"5:2": 1}
    # the host converts 2 to 2.0
    assert noted(queue(changed("5:2", "cfg", 2))) == {"5:2": 1}


@pytest.mark.parametrize(
    "other",
    [
        changed("5:2", "seed", 4),
        changed("1", "name", "b"),
        changed("5:2", "model", ["1", 1]),
        {name: entry for name, entry in PROMPT.items() if name != "1"},
        {"5:3": PROMPT["5:2"], "1": PROMPT["1"]},
    ],
)
def test_another_result_has_none(other):
    run(queue(), 1)
    assert noted(queue(other)) == {}


def test_a_node_that_runs_again_replaces_what_was_kept():
    for part in ("search 1", "search 2"):
        run(queue(), 1, part=part)
    first = queue()
    run(first, 1, part="search 1")
    run(first, 2, part="search 2")
    again = queue()
    assert noted(again) == {"5:2, search 1": 1, "5:2, search 2": 2}
    run(again, 3)
    run(again, 4)
    assert noted(again) == {"5:2, run 1": 3, "5:2, run 2": 4}
    assert noted(queue()) == noted(again)


def test_the_oldest_notes_go():
    for seed in range(MOST_KEPT + 1):
        run(queue(changed("5:2", "seed", seed)), seed)
    assert noted(queue(changed("5:2", "seed", 0))) == {}
    assert noted(queue(changed("5:2", "seed", MOST_KEPT))) == {"5:2": MOST_KEPT}


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        {"5:2": None},
        {"5:2": {"inputs": []}},
        {"5:2": {"inputs": {"x": ["5:2", 0]}}},  # links to itself
        {"5:2": {"inputs": {"x": [["a"], 0], "y": ["nope", 0], "z": float("inf")}}},
    ],
)
def test_what_is_no_prompt_is_left_alone(prompt):
    run(queue(), 1)
    assert noted(queue(prompt)) == {}
    for more in ({}, {"extra_data": None}, {"extra_data": {"extra_pnginfo": []}}):
        assert add_kept({"prompt": PROMPT, **more}) == {"prompt": PROMPT, **more}
    assert signature_of(PROMPT, "nope") is None


def test_metadata_that_is_no_part_of_this_pack_is_replaced():
    queued = queue()
    queued["extra_data"]["extra_pnginfo"][METADATA_KEY] = "text"
    run(queued, 1)
    assert noted(queued) == {"5:2": 1}
