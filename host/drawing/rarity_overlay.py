"""Where an image is rare as colours over it, and the scale of the colours."""

from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...jepa_core.appearance import LUMA
from ...jepa_core.transparency import over_white
from .palettes import painted
from .pictures import INK, PAPER, to_image

_LEAST_SIZE = 13.0  # of text that fits, pixels
_READABLE = 4.0  # texts that had to be smaller are left out, pixels
_APART = 0.8  # between two texts, in text sizes


class Legend(NamedTuple):
    """The texts of a scale: of its typical end, its rare end and its unit; {value} is the number at that end."""

    typical: str
    rare: str
    unit: str


SCORES = Legend("{value:.0f} typical", "rarer {value:.0f}", "patch score (nats)")
NOVELTIES = Legend("usual", "unlike the reference", "")


def with_plain(legend: Legend) -> Legend:
    """The legend of a map in which plain areas are left grey."""
    return legend._replace(unit=f"{legend.unit}; grey: plain".removeprefix("; "))


def draw_overlay(image: Tensor, rarity: Tensor, judged: Tensor, opacity: float, palette: str) -> Tensor:
    """The image in grey under the colours of its patches.

    Args:
        image: (H, W, 3 or 4) in [0, 1].
        rarity, judged: (H, W) in [0, 1]; where judged is 0 there are no colours.
        opacity: of the colours, 0 to 1.

    Returns:
        (1, H, W, 3) in [0, 1].
    """
    grey = (over_white(image).cpu().float() * torch.tensor(LUMA)).sum(-1, keepdim=True).expand(-1, -1, 3)
    share = (opacity * judged)[..., None]
    return ((1 - share) * grey + share * painted(rarity, palette))[None].clamp(0, 1)


def draw_legend(width: int, ends: tuple[float, float], palette: str, legend: Legend = SCORES) -> Tensor:
    """The colour scale with its texts, (1, rows, width, 3); they are written smaller where they would overlap,
    and left out where nobody could read them.

    Args:
        ends: the numbers at the rare and at the typical end.
    """
    low, high = ends
    size = max(_LEAST_SIZE, 18 * width / 512)
    rows = round(3.5 * size)
    strip = Image.new("RGB", (width, rows), PAPER)
    scale = painted(torch.linspace(0, 1, width), palette).mul(255).round().byte()
    strip.paste(Image.fromarray(scale.expand(rows // 3, -1, -1).numpy()), (0, 0))

    typical, rare = legend.typical.format(value=high), legend.rare.format(value=low)
    length = ImageFont.load_default(size).getlength
    margin, apart = size / 3, _APART * size
    room = width - 2 * margin
    own = size * min(1.0, room / (length(typical) + apart + length(rare)))
    if own < _READABLE:
        return to_image(strip)
    font = ImageFont.load_default(own)
    draw, middle = ImageDraw.Draw(strip), round(rows * 0.68)
    draw.text((margin, middle), typical, fill=INK, font=font, anchor="lm")
    draw.text((width - margin, middle), rare, fill=INK, font=font, anchor="rm")
    if length(typical) + length(legend.unit) + length(rare) + 2 * apart <= room:
        centre = (width + length(typical) - length(rare)) / 2
        draw.text((centre, middle), legend.unit, fill=INK, font=font, anchor="mm")
    return to_image(strip)
