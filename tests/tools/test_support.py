"""The support matrix on its page is the one that was measured."""

from __future__ import annotations

import pytest

from tools import support


def test_the_page_shows_the_figures():
    text = support.PAGE.read_text(encoding="utf-8")
    assert support.page(text) == text, "run: python dev.py run tools/support.py"


def test_a_sampler_that_differs_between_schedulers_is_no_row():
    with pytest.raises(ValueError, match="euler"):
        support.sampler_table({"euler": {"normal": "exact", "karras": "refused"}})


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="support matrix"):
        support.page("# Title\n")
