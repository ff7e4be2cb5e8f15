"""Each node has a help page in web/docs: complete, with a picture, and without dead links."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.quoted import is_said
from tools.help_pages import PLACES, SEEN

DOCS = ROOT / "web" / "docs"
SCHEMA = json.loads((ROOT / "tests" / "server" / "schema.json").read_text(encoding="utf-8"))
TEMPLATES = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "workflows").glob("*.json"))
}
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
MAX_BYTES = 100_000
MAX_WIDTH = 640  # the panel is narrow


def page(node: str) -> str:
    return (DOCS / f"{node}.md").read_text(encoding="utf-8")


def section(node: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    _, _, rest = page(node).partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def first_cells(table: str) -> list[str]:
    """The first column of a table, without its header."""
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_pages_are_those_of_the_nodes():
    assert sorted(file.stem for file in DOCS.glob("*.md")) == sorted(SCHEMA)


def test_every_picture_is_shown_somewhere():
    shown = {target for node in SCHEMA for _, target in PICTURE.findall(page(node))}
    assert shown == {f"images/{file.name}" for file in (DOCS / "images").iterdir()}


@pytest.mark.parametrize("node", SCHEMA)
def test_a_page_has_a_small_picture_with_alternative_text(node):
    pictures = PICTURE.findall(page(node))
    assert pictures
    for text, target in pictures:
        assert len(text) > 10, target
        file = DOCS / target
        assert file.stat().st_size < MAX_BYTES, target
        with Image.open(file) as picture:
            assert picture.width <= MAX_WIDTH, target


@pytest.mark.parametrize("node", SCHEMA)
def test_a_page_names_every_input_and_output(node):
    inputs = [name for name, *_ in SCHEMA[node]["inputs"]]
    outputs = [name for name, *_ in SCHEMA[node]["outputs"]]
    assert first_cells(section(node, "Outputs")) == outputs
    # in the order of the widgets on the node
    assert first_cells(section(node, "Inputs")) == inputs


@pytest.mark.parametrize("node", SCHEMA)
def test_a_page_has_no_dead_links(node):
    text = page(node)
    for _, target in PICTURE.findall(text):
        assert (DOCS / target).resolve().is_relative_to(DOCS)
        assert (DOCS / target).is_file(), target
    # the web page resolves only the addresses of pictures, so a link to another help page would be dead
    assert all(target.startswith("https://") for target in LINK.findall(text))


@pytest.mark.parametrize("node", SCHEMA)
def test_a_page_is_plain_text(node):
    text = page(node)
    assert text.isascii()
    assert "<" not in text
    assert not text.startswith("#"), "the panel shows the node's name above it"


@pytest.mark.parametrize("node", SCHEMA)
def test_a_page_names_the_templates_that_use_the_node(node):
    using = {name for name, graph in TEMPLATES.items() if any(one["type"] == node for one in graph["nodes"])}
    assert set(re.findall(r"\*(\d\d [^*]+)\*", section(node, "Where it fits"))) == using


# What a page quotes beside the pack's own messages.
OF_THE_HOST = {
    "VAE Decode fails with 'NoneType'",
    "Required input is missing: encoder_2",
    "shapes cannot be multiplied",
}


def quotations(node: str) -> list[str]:
    """The messages in a page's table, without notes of where they appear."""
    return [PLACES.sub("", cell) for cell in first_cells(section(node, "Messages and what to do"))]


@pytest.mark.parametrize("node", SCHEMA)
def test_a_message_that_a_page_quotes_is_said_by_the_pack(node):
    known = OF_THE_HOST | SEEN
    assert [text for text in quotations(node) if text not in known and not is_said(text)] == []


def test_what_is_listed_as_not_of_the_pack_is_quoted_somewhere():
    every = {text for node in SCHEMA for text in quotations(node)}
    assert every >= OF_THE_HOST | SEEN
    assert not any(map(is_said, OF_THE_HOST | SEEN))


@pytest.mark.parametrize(
    "stale",
    [
        "steps ... is more than the ... tokens; set it to ... or less",
        "sampler_name ... is not one of the host's samplers today",
        "images holds too many pictures",
        "start_percent ... is smaller than end_percent",
    ],
)
def test_a_message_that_the_pack_no_longer_says_is_found(stale):
    assert not is_said(stale)
