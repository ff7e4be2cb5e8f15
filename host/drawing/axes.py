"""What charts share: sizes, colours, round numbers along an axis, upright text."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from .fonts import Font
from .pictures import INK, PAPER

WIDTH, LEGEND_HEIGHT = 1024, 36  # pixels; text stays legible at half the size
LEFT, RIGHT, TOP, BOTTOM = 150, 30, 84, 96  # margins of a panel
BIG, NORMAL = 30, 25  # text sizes, pixels
SMALLEST = 1e-100  # span of an axis; smaller ones are taken as none
# Okabe and Ito's colour-blind safe palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def upright(panel: Image.Image, text: str, centre: tuple[int, int], font: Font) -> None:
    """Write a text rotated by 90 degrees."""
    right, bottom = map(round, font.getbbox(text)[2:])
    strip = Image.new("RGB", (right + 4, bottom + 8), PAPER)
    ImageDraw.Draw(strip).text((2, 2), text, fill=INK, font=font)
    strip = strip.rotate(90, expand=True)
    panel.paste(strip, (centre[0] - strip.width // 2, centre[1] - strip.height // 2))


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Evenly spaced round numbers that cover `low` to `high`, with at most `most` intervals."""
    span = high - low
    if span <= max(1e-9 * max(abs(low), abs(high)), SMALLEST):  # otherwise two ticks could be the same number
        span = max(abs(high), 1.0) * 0.1
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(
        size * factor
        for factor in (1, 2, 5, 10, 20)
        if math.ceil(high / (size * factor)) - math.floor(low / (size * factor)) <= most
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        first, last = first - 1, last + 1
    digits = max(12, 3 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]
