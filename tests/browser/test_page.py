"""What an artist sees and does: from a fresh page to a guided image, with the mouse."""

from __future__ import annotations


def test_few_clicks_from_a_fresh_page_to_a_guided_image_whose_score_is_seen_to_fall(comfy):
    start = comfy()
    page = start.page
    # a new user's page opens the templates by itself
    start.click(page.get_by_text("jepa-guidance", exact=True))
    start.picture("templates")
    start.click(page.get_by_text("jepa_demo_ab"))
    start.wait("app.graph.nodes.length > 5")
    start.picture("template")
