"""The help of every node, in the help panel of the page."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.conftest import ROOT

NODES = json.loads((ROOT / "tests" / "server" / "schema.json").read_text(encoding="utf-8"))
PICTURES = "(panel) => [...panel.querySelectorAll('img')].map((one) => [one.naturalWidth, one.alt])"
LOADED = "() => [...document.querySelectorAll('.node-help-content img')].every((one) => one.complete)"
# A table that is too wide for the panel is cut off.
WIDTHS = (
    "(panel) => [panel, ...panel.querySelectorAll('table')].map((one) => [one.scrollWidth, one.clientWidth])"
)


@pytest.mark.long
def test_every_node_shows_its_page_with_a_picture(comfy):
    start = comfy()
    start.close_templates()
    for name in NODES:
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        panel = start.help(start.only(name))
        # headings appear only in our page: without one, the panel shows the tooltips instead
        headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
        expect(panel.get_by_role("heading")).to_have_text(headings)
        expect(panel).to_contain_text(re.search(r"[\w ,']{20,}", text)[0])
        start.wait(LOADED)
        pictures = panel.evaluate(PICTURES)
        assert pictures, name
        assert all(width > 0 and alt for width, alt in pictures), (name, pictures)
        assert all(content <= shown for content, shown in panel.evaluate(WIDTHS)), name
        start.picture(f"help_{name}")
    assert not start.errors
