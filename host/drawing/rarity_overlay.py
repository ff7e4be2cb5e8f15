"""Where an image is rare as colours over it, with a scale below."""

from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...jepa_core.appearance import LUMA
from ...jepa_core.transparency import over_white
from ..drawing.pictures import INK, PAPER, to_image
from ..scoring.rarity_map import ends, rarity_mask

# Brightness rises evenly, so the scale also works in grey and for colour-blind readers.
HEAT = torch.tensor(
    [[10, 8, 36], [62, 15, 98], [128, 37, 100], [193, 63, 72], [240, 118, 32], [250, 190, 62], [252, 253, 190]]
) / 255  # fmt: skip


class Legend(NamedTuple):
    """The texts of a scale: of its typical end, its rare end and its unit; {value} is the number at that end."""

    typical: str
    rare: str
    unit: str


SCORES = Legend("{value:.0f} typical", "rarer {value:.0f}", "patch score (nats)")
NOVELTIES = Legend("usual", "unlike the reference", "")


def draw_overlay(image: Tensor, field: Tensor, opacity: float, legend: Legend = SCORES) -> Tensor:
    """The image in grey, the colours of its patches over it, and a scale below.

    Args:
        image: (H, W, 3 or 4) in [0, 1]. field: (H, W), lower is rarer, NaN where the encoder saw nothing.
        opacity: opacity of the colours, 0 to 1.

    Returns:
        (1, H + scale, W, 3) in [0, 1].
    """
    grey = (over_white(image).cpu().float() * torch.tensor(LUMA)).sum(-1, keepdim=True).expand(-1, -1, 3)
    share = torch.where(field.isnan(), 0.0, opacity)[..., None]
    picture = (1 - share) * grey + share * _heat(rarity_mask(field))
    low, high = ends(field)
    texts = Legend(legend.typical.format(value=high), legend.rare.format(value=low), legend.unit)
    return torch.cat([picture, _scale(image.shape[1], texts)])[None].clamp(0, 1)


def _heat(rarity: Tensor) -> Tensor:
    """(..., ) in [0, 1] -> (..., 3)."""
    place = rarity * (len(HEAT) - 1)
    below = place.long().clamp(max=len(HEAT) - 2)
    part = (place - below)[..., None]
    return (1 - part) * HEAT[below] + part * HEAT[below + 1]


def _scale(width: int, texts: Legend) -> Tensor:
    """A strip with the colour scale, (rows, width, 3); its text is legible at any width."""
    size = max(13.0, 18 * width / 512)
    rows = round(3.5 * size)
    strip = Image.new("RGB", (width, rows), PAPER)
    colours = _heat(torch.linspace(0, 1, width)).mul(255).round().byte()
    bar = Image.fromarray(colours.expand(rows // 3, -1, -1).numpy())
    strip.paste(bar, (0, 0))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size)
    middle = round(rows * 0.68)
    edge = round(size / 3)
    draw.text((edge, middle), texts.typical, fill=INK, font=font, anchor="lm")
    draw.text((width - edge, middle), texts.rare, fill=INK, font=font, anchor="rm")
    if width > 24 * size:  # else the three texts would overlap
        draw.text((width / 2, middle), texts.unit, fill=INK, font=font, anchor="mm")
    return to_image(strip)[0]
