"""Conversion of pictures to the host's IMAGE, and sheets of pictures with a label below each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...jepa_core.transparency import over_white
from .fonts import lettering

INK, DIM, PAPER = "#1a1a1a", "#5a5a5a", "#ffffff"
SIDE, GAP, LINE = 256, 16, 28  # pixels; text stays legible at half the size
CLOSE = 512  # the longer side of a picture that is looked at closely, pixels
TEXT = 22
FEW_COLUMNS = 6  # of up to 36 pictures
MOST_HIGH = 65_535  # pixels; other programs do not open an image of more


def to_image(picture: Image.Image) -> Tensor:
    """A picture as the host's IMAGE, (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def viewable(picture: Tensor) -> Tensor:
    """A picture (H, W, 3 or 4) in [0, 1] to look at closely, (h, w, 3): shrunk to 512 pixels, or enlarged to 256."""
    return to_image(_fitted(picture, min(max(*picture.shape[:2], SIDE), CLOSE)))[0]


def labelled_sheet(
    pictures: Sequence[Tensor], labels: Sequence[str], *, columns: int = 0, text: int = TEXT
) -> Tensor:
    """Lay out pictures, row by row.

    Args:
        pictures: each (H, W, 3 or 4) in [0, 1], of any size; shrunk or enlarged to fit a square of 256 pixels.
        labels: one for each picture; may contain line breaks.
        columns: 0 for as many as look well. text: size of the labels, pixels.

    Returns:
        (1, H, W, 3) in [0, 1].
    """
    # many pictures in as many columns as rows, so that it is not too high
    columns = min(columns or max(FEW_COLUMNS, math.ceil(len(pictures) ** 0.5)), len(pictures))
    rows = -(-len(pictures) // columns)
    lines = max(len(label.splitlines()) for label in labels)
    height = _row(lines, text)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * height + GAP), PAPER)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = GAP + index % columns * (SIDE + GAP), GAP + index // columns * height
        paste_labelled(sheet, picture, label, left, top, text=text)
    return to_image(sheet)


def rows_that_fit(lines: int, text: int = TEXT) -> int:
    """How many rows of a sheet with labels of so many lines are not too high."""
    return (MOST_HIGH - GAP) // _row(lines, text)


def paste_labelled(
    sheet: Image.Image, picture: Tensor, label: str, left: int, top: int, *, text: int = TEXT
) -> None:
    """Put a picture (H, W, 3 or 4) into a square of the sheet, with its label below; long lines are written smaller.

    The first line of a label stands out.
    """
    draw = ImageDraw.Draw(sheet)
    shown = _fitted(picture)
    sheet.paste(shown, (left + (SIDE - shown.width) // 2, top + (SIDE - shown.height) // 2))
    draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="#cccccc")
    for line, words in enumerate(label.splitlines()):
        words, font = lettering(words, text)
        share = 0.97 * SIDE / max(font.getlength(words), 1.0)  # hinting widens small text
        if share < 1:
            words, font = lettering(words, text * share)
        place = left + SIDE // 2, top + SIDE + 4 + _line(text) * (line + 0.5)
        draw.text(place, words, fill=DIM if line else INK, font=font, anchor="mm")


def _row(lines: int, text: int) -> int:
    """The height of a row of pictures with labels of so many lines, pixels."""
    return SIDE + _line(text) * lines + GAP


def _line(text: int) -> int:
    """The height of a line of this text size, pixels."""
    return round(text * LINE / TEXT)


def _fitted(picture: Tensor, side: int = SIDE) -> Image.Image:
    """A picture scaled to fit a square."""
    pixels = over_white(picture).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
