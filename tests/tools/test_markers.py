"""Text between markers is replaced, and nothing else."""

from __future__ import annotations

import pytest

from tools.markers import fill, table

PAGE = "before\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n<!-- begin b -->\n<!-- end b -->\nafter\n"


def test_each_text_stands_between_the_markers_of_its_name():
    filled = fill(PAGE, {"b": "two\n", "a": "one"})
    assert filled == (
        "before\n<!-- begin a -->\n\none\n\n<!-- end a -->\nbetween\n<!-- begin b -->\n\ntwo\n\n<!-- end b -->\nafter\n"
    )
    assert fill(filled, {"a": "one", "b": "two"}) == filled


@pytest.mark.parametrize("page", ["", "<!-- begin a -->\n", "<!-- end a -->\n<!-- begin a -->\n"])
def test_missing_markers_are_refused(page):
    with pytest.raises(ValueError, match="begin a"):
        fill(page, {"a": "text"})


def test_a_table_is_markdown():
    assert table(["a", "b"], [["1", ""]]) == "| a | b |\n| --- | --- |\n| 1 |  |\n"
