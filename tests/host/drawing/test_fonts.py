"""Texts in scripts that Pillow's own font lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jepa_guidance.host.drawing import fonts
from jepa_guidance.host.drawing.pictures import labelled_sheet
from PIL import ImageFont

NAME = "caf\u00e9 \u0420\u043e\u0431\u043e\u0442.png"  # Latin with an accent, and Cyrillic


@pytest.fixture
def system(monkeypatch):
    """A system with the named fonts alone."""

    def install(*names: str) -> None:
        monkeypatch.setattr(fonts, "SYSTEM", names)

    return install


@pytest.fixture
def many_scripts() -> str:
    matplotlib = pytest.importorskip("matplotlib")
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def test_plain_text_is_written_in_pillows_font(system, many_scripts):
    system(many_scripts)
    text, font = fonts.lettering("robot.png", 22)
    assert text == "robot.png"
    assert font.getname() == ImageFont.load_default(22).getname()


def test_a_font_of_the_system_writes_what_pillows_lacks(system, many_scripts):
    own = ImageFont.load_default(22)
    assert fonts.lacking(own, frozenset(NAME)) == set("\u00e9\u0420\u043e\u0431\u0442")
    system("no such font.ttf", many_scripts)
    text, font = fonts.lettering(NAME, 22)
    assert text == NAME
    assert font.getname() == ("DejaVu Sans", "Book")
    assert fonts.lacking(font, frozenset(text)) == set()


def test_letters_taken_apart_are_put_together(system, many_scripts):
    system(many_scripts)
    assert fonts.lettering("cafe\u0301", 22)[0] == "caf\u00e9"


def test_without_a_font_a_question_mark_stands_for_a_character(system):
    system()
    text, font = fonts.lettering(NAME + "\n1", 22)
    assert text == "caf? ?????.png\n1"
    assert fonts.lacking(font, frozenset(text) - {"\n"}) == set()


def test_the_font_that_lacks_fewest_is_taken(system, many_scripts):
    system(many_scripts)
    text, font = fonts.lettering("\u0420\u6a5f", 22)
    assert text == "\u0420?"
    assert font.getname() == ("DejaVu Sans", "Book")


def test_a_sheet_is_lettered_so(system, many_scripts):
    pictures = [torch.ones(8, 8, 3)]

    def sheet(name: str) -> torch.Tensor:
        return labelled_sheet(pictures, [f"#1\n{name}"])

    system()
    assert torch.equal(sheet(NAME), sheet("caf? ?????.png"))
    system(many_scripts)
    assert not torch.equal(sheet(NAME), sheet("caf? ?????.png"))
