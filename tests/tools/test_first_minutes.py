"""Clicks and seconds of a new user: the page has the table of the figures, and they are what the README promises."""

from __future__ import annotations

import json

from tests.conftest import ROOT
from tools.first_minutes import FIGURES, TASKS, table


def test_the_page_quotes_the_figures_that_are_there() -> None:
    figures = json.loads(FIGURES.read_text())
    assert [row["name"] for row in figures["rows"]] == list(TASKS)
    assert table(figures) in (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")


def test_the_first_picture_comes_within_a_minute() -> None:
    first, kept = json.loads(FIGURES.read_text())["rows"]
    assert first["seconds"]["first picture"] < 60
    assert first["clicks"] == 3
    assert kept["clicks"] <= 9
