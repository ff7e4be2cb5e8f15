"""The page's search for nodes, in the words of artists."""

from __future__ import annotations

import pytest

from tests.browser.test_page import open_demo

# A word that is not in the node's name, and a name that the search should list.
FOUND = {
    "same face": "JEPA Guided KSampler",
    "heatmap": "JEPA Rarity Map",
    "image chooser": "JEPA Pick Images",
    "\u7a00\u6709": "JEPA Guided KSampler",  # rare, in Chinese
    "\u6311\u9009": "JEPA Pick Images",  # to choose, in Chinese
    "\u30d2\u30fc\u30c8\u30de\u30c3\u30d7": "JEPA Rarity Map",  # heat map, in Japanese
    "\uace0\ub974\uae30": "JEPA Pick Images",  # choosing, in Korean
}


@pytest.mark.long
def test_a_node_is_found_by_what_artists_call_it_in_any_language(comfy):
    page = open_demo(comfy)
    page.page.mouse.dblclick(1300, 950)
    page.wait("document.activeElement?.tagName === 'INPUT'")
    for word, name in FOUND.items():
        page.page.keyboard.press("Control+A")
        page.page.keyboard.insert_text(word)
        page.page.get_by_role("dialog").get_by_text(name, exact=True).first.wait_for(timeout=15_000)
        page.picture("node_search")
    assert not page.errors
