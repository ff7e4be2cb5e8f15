"""Where in a picture its rarity lies: patch scores as a mask and as a picture laid over the image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...jepa_core import patch_scores
from ...jepa_core.transparency import over_white
from ..comfy.internals import interrupt_check
from ..drawing.pictures import INK, PAPER, to_image
from ..encoders.host_encoder import AnyEncoder, use_encoder
from ..gradient.chain import PROJECTION
from .scores import check_images

# From dark to bright at an even pace, so that it reads in grey and to the colour-blind.
HEAT = torch.tensor(
    [[10, 8, 36], [62, 15, 98], [128, 37, 100], [193, 63, 72], [240, 118, 32], [250, 190, 62], [252, 253, 190]]
) / 255  # fmt: skip
GREY = (0.299, 0.587, 0.114)  # luma of red, green and blue


def score_fields(
    images: Tensor,
    encoder: AnyEncoder,
    *,
    fit: str = "squash",
    antialias: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> Tensor:
    """The patch score at every pixel, of several encoders the mean by their weights; see jepa_core.patch_scores.

    Args:
        images: (B, H, W, 3 or 4) in [0, 1].
        fit: "crop" leaves out what lies beside the centre square, where the field is NaN.

    Returns:
        (B, H, W) float32 on the CPU. Lower is rarer.

    Raises:
        ValueError: images of another shape, or with NaN pixels.
    """
    check_images(images)
    height, width = images.shape[1:3]
    total = torch.zeros(len(images), height, width, device="cpu")
    for member in encoder.members:
        judge = use_encoder(member.encoder)
        projection = min(PROJECTION, judge.embed_dim)
        for image, field in zip(images.split(1), total, strict=True):
            seen = over_white(image).to(judge.weight.device)
            x = judge.preprocess(seen, fit=fit, antialias=antialias)
            scores = patch_scores(judge, x, projection=projection, on_pass=interrupt_check)
            field += member.weight * _over_image(scores.float(), height, width, fit)
            on_image()
    return total


def _over_image(scores: Tensor, height: int, width: int, fit: str) -> Tensor:
    """Scores (1, side, side) laid over an image the way the encoder saw it: (height, width)."""
    seen = (min(height, width),) * 2 if fit == "crop" else (height, width)
    smooth = F.interpolate(scores[None], seen, mode="bilinear", align_corners=False)[0, 0]
    field = torch.full((height, width), torch.nan, device="cpu")
    top, left = (height - seen[0]) // 2, (width - seen[1]) // 2
    field[top : top + seen[0], left : left + seen[1]] = smooth
    return field


def rarity_mask(field: Tensor) -> Tensor:
    """1 where an image is rarest, 0 where it is most typical or was not seen: (H, W) -> (H, W)."""
    low, high = _ends(field)
    if high == low:
        return torch.zeros_like(field)
    return ((high - field) / (high - low)).nan_to_num(0.0)


def draw_overlay(image: Tensor, field: Tensor, opacity: float) -> Tensor:
    """An image in grey under the colours of its rarity, with a scale below.

    Args:
        image: (H, W, 3 or 4) in [0, 1]. field: (H, W) patch scores, NaN where there is none.
        opacity: of the colours, 0 to 1.

    Returns:
        (1, H + scale, W, 3) in [0, 1].
    """
    grey = (over_white(image).cpu().float() * torch.tensor(GREY)).sum(-1, keepdim=True).expand(-1, -1, 3)
    share = torch.where(field.isnan(), 0.0, opacity)[..., None]
    picture = (1 - share) * grey + share * _heat(rarity_mask(field))
    low, high = _ends(field)
    return torch.cat([picture, _scale(image.shape[1], low, high)])[None].clamp(0, 1)


def _ends(field: Tensor) -> tuple[float, float]:
    seen = field[~field.isnan()]
    return seen.min().item(), seen.max().item()


def _heat(rarity: Tensor) -> Tensor:
    """(..., ) in [0, 1] -> (..., 3)."""
    place = rarity * (len(HEAT) - 1)
    below = place.long().clamp(max=len(HEAT) - 2)
    part = (place - below)[..., None]
    return (1 - part) * HEAT[below] + part * HEAT[below + 1]


def _scale(width: int, low: float, high: float) -> Tensor:
    """A strip that says which colour is which patch score, (rows, width, 3); its text can be read at any width."""
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
    draw.text((edge, middle), f"{high:.0f} typical", fill=INK, font=font, anchor="lm")
    draw.text((width - edge, middle), f"rarer {low:.0f}", fill=INK, font=font, anchor="rm")
    if width > 24 * size:  # else the three would run into each other
        draw.text((width / 2, middle), "patch score (nats)", fill=INK, font=font, anchor="mm")
    return to_image(strip)[0]
