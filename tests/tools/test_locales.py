"""Which texts the tool says are to be translated again."""

from __future__ import annotations

from tools.locales import changed


def test_changed_and_new_texts_are_named_and_gone_ones_are_not():
    before = {"A": {"description": "old", "inputs": {"x": {"tooltip": "same"}, "gone": {"tooltip": "t"}}}}
    after = {
        "A": {"description": "new", "inputs": {"x": {"tooltip": "same"}, "y": {"tooltip": "t"}}},
        "B": {"description": "d"},
    }
    assert changed(before, after) == ["A.description", "A.inputs.y.tooltip", "B.description"]
    assert changed(after, after) == []
