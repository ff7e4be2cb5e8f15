"""The tables of inputs and presets in docs/ are those of the nodes."""

from __future__ import annotations

import json

import pytest
from jepa_guidance.nodes import guidance_presets

from tests.conftest import ROOT
from tools import input_tables

SCHEMA = json.loads((ROOT / "tests" / "server" / "schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {path.name: text for path, text in input_tables.pages().items()}


def rows_of(page: str, name: str) -> list[list[str]]:
    """The rows of the table with a marker's name, without its head."""
    _, _, rest = page.partition(f"<!-- begin {name} -->\n")
    lines = rest.partition(f"<!-- end {name} -->\n")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return rows[2:]


@pytest.mark.parametrize("page", input_tables.PAGES)
def test_a_page_is_what_the_tool_writes(pages, page):
    written = (input_tables.DOCS / page).read_text(encoding="utf-8")
    assert written == pages[page], "run: python dev.py run tools/input_tables.py"


def test_every_node_with_inputs_has_one_table():
    shown = [node for nodes in input_tables.PAGES.values() for node in nodes]
    assert sorted(shown) == sorted(name for name, node in SCHEMA.items() if node["inputs"])


@pytest.mark.parametrize("page", input_tables.PAGES)
def test_every_input_is_a_row_or_said_to_be_as_above(pages, page):
    for node in input_tables.PAGES[page]:
        name = f"inputs of {node}"
        rows = rows_of(pages[page], name)
        assert all(len(row) == 4 and row[3] for row in rows)
        _, _, rest = pages[page].partition(f"<!-- begin {name} -->\n")
        text = rest.partition(f"<!-- end {name} -->\n")[0]
        above = [
            word
            for line in text.splitlines()
            if ": as in " in line and not line.startswith("|")
            for word in line.partition(":")[0].split(", ")
        ]
        inputs = [name for name, *_ in SCHEMA[node]["inputs"]]
        assert sorted([row[0] for row in rows] + above) == sorted(inputs)
        assert [row[0] for row in rows] == [one for one in inputs if one not in above]


@pytest.mark.parametrize(
    ("page", "node", "row"),
    [
        ("guidance.md", "JEPAGuidance", ["model", "", "MODEL"]),
        ("guidance.md", "JEPAGuidance", ["strength", "0.5", "-10 to 10"]),
        ("guidance.md", "JEPAGuidanceSettings", ["antialias", "on", "on, off"]),
        ("guidance.md", "JEPAGuidanceSettings", ["normalisation", "max", "max, rms, none"]),
        ("guidance.md", "JEPAGuidance", ["judge", "none", "JEPA_ENCODER"]),
        ("guidance.md", "JEPAGuidedKSampler", ["sampler_name", "euler", "as in KSampler"]),
        ("djepa.md", "DJEPASampler", ["class_name", "any", "text"]),
        ("scoring.md", "JEPARankImages", ["seeds", "none", "0 to 18446744073709551615"]),
    ],
)
def test_a_row_says_default_and_values(pages, page, node, row):
    assert row in [one[:3] for one in rows_of(pages[page], f"inputs of {node}")]


def test_the_presets_are_those_of_the_nodes(pages):
    first, *rows = rows_of(pages["guidance.md"], "presets")
    for index, (preset, values) in enumerate(guidance_presets.PRESETS.items(), 1):
        assert first[index] == f"{guidance_presets.TIMES.get(preset, 1):g} times"
        assert {row[0]: row[index] for row in rows if row[index]} == {
            name: {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
            for name, value in values.items()
        }
