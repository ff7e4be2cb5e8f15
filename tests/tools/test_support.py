"""The support matrix in the README is the one that was measured."""

from __future__ import annotations

import json

import pytest

from tools import support


def test_the_readme_shows_the_figures():
    readme = support.README.read_text(encoding="utf-8")
    assert support.with_tables(readme, support.tables(json.loads(support.FIGURES.read_text()))) == readme


def test_a_sampler_that_differs_between_schedulers_is_no_row():
    with pytest.raises(ValueError, match="euler"):
        support.sampler_table({"euler": {"normal": "exact", "karras": "refused"}})


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="support matrix"):
        support.with_tables("# Title\n", "table")
