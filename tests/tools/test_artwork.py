"""The icon and the banner that are committed are what their script draws."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tools.artwork import as_image, as_svg, pictures

FOLDER = ROOT / "docs" / "artwork"


@pytest.mark.parametrize("name", pictures())
def test_the_committed_picture_is_the_drawn_one(name):
    picture = pictures()[name]
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == as_svg(*picture)
    with Image.open(FOLDER / f"{name}.png") as committed:
        difference = np.asarray(committed, dtype=int) - np.asarray(as_image(*picture), dtype=int)
    # another version of Pillow may draw edges a little differently
    assert np.abs(difference).mean() < 0.5


def test_the_registry_takes_the_icon():
    _, width, height = pictures()["icon"]
    assert width == height <= 400


def test_the_banner_is_21_to_9():
    _, width, height = pictures()["banner"]
    assert width * 9 == height * 21
