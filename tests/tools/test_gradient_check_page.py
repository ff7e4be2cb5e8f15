"""The page about the check of a gradient is that of its figures."""

from __future__ import annotations

import json

from tools.gradient_check_page import FIGURES, PAGE, page


def test_the_page_is_made_from_the_figures():
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(FIGURES.read_text()))


def test_there_were_a_thousand_checks_and_no_false_alarm():
    sound = json.loads(FIGURES.read_text())["sound"]
    assert sound["checks"] >= 1000
    assert sound["false alarms"] == []
