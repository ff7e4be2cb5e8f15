"""Patch scores on a scale from typical to rare, and masks for inpainting made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...jepa_core.transparency import over_white
from ..options import FLOOR_PERCENTILE, NO_FLOOR
from .mask_filters import blur, grow, local_contrast

_JUDGED = 0.5  # share of judgement from which a pixel counts for the scale


class RarityScale(NamedTuple):
    """Fields of a batch on a scale.

    Attributes:
        rarity: (B, H, W), 1 where an image is rarest, 0 where it is most typical or not judged.
        judged: (B, H, W), 0 where an image was not seen or is plain, 1 where it is not.
        ends: of each image, the lowest and the highest patch score of its scale.
    """

    rarity: Tensor
    judged: Tensor
    ends: list[tuple[float, float]]


@dataclass(frozen=True)
class MaskConfig:
    """What is done to rarity, in this order, to make a mask of it.

    Attributes:
        threshold_kind: NO_FLOOR leaves all values; FLOOR_VALUE: 1 from a value on, else 0; FLOOR_PERCENTILE: 1 in the
            rarest part of what is judged.
        threshold: the value, or the share that is left out, percent.
        grow: pixels, below 0 to shrink. blur: standard deviation in pixels. invert: 1 becomes 0.
        together: a percentile is that of the whole batch.
    """

    threshold_kind: str = NO_FLOOR
    threshold: float = 80.0
    grow: int = 0
    blur: float = 0.0
    invert: bool = False
    together: bool = False


def judged_parts(images: Tensor, fields: Tensor, least: float) -> Tensor:
    """How far each pixel is judged, 0 to 1: not where its field is NaN, nor where the image is plain.

    Args:
        images: (B, H, W, 3 or 4) in [0, 1]. fields: (B, H, W).
        least: the local contrast from which a pixel is judged in full; from half of it on in part. 0: any.
    """
    seen = (~fields.isnan()).float()
    if least == 0:
        return seen
    contrast = torch.stack([local_contrast(over_white(image).cpu().float()) for image in images])
    return seen * (2 * contrast / least - 1).clamp(0, 1)


def scaled(fields: Tensor, judged: Tensor, *, one_scale: bool = False) -> RarityScale:
    """Fields (B, H, W) on scales of their own or, for all images of the batch, on one; lower fields are rarer."""
    count = len(fields)
    ends = [_ends(fields, judged)] * count if one_scale else list(map(_ends, fields, judged))
    rarity = [_on_scale(field, *own) for field, own in zip(fields, ends, strict=True)]
    return RarityScale(torch.stack(rarity) * judged, judged, ends)


def _ends(field: Tensor, judged: Tensor) -> tuple[float, float]:
    """The lowest and the highest of the judged values; of the seen ones, if an image is plain all over."""
    counted = field[judged >= _JUDGED]
    if not counted.numel():
        counted = field[~field.isnan()]
    return counted.min().item(), counted.max().item()


def _on_scale(field: Tensor, low: float, high: float) -> Tensor:
    if high == low:
        return torch.zeros_like(field)
    return ((high - field) / (high - low)).clamp(0, 1).nan_to_num(0.0)


def mask_of(scale: RarityScale, config: MaskConfig) -> Tensor:
    """The mask, (B, H, W) in [0, 1]."""
    masks = scale.rarity
    if config.threshold_kind != NO_FLOOR:
        masks = (masks > 0) & (masks >= _least(scale, config))
    masks = blur(grow(masks.float(), config.grow), config.blur)
    return 1 - masks if config.invert else masks


def _least(scale: RarityScale, config: MaskConfig) -> Tensor:
    """The rarity from which the mask of each image is 1, (B, 1, 1)."""
    if config.threshold_kind != FLOOR_PERCENTILE:
        return torch.full((len(scale.rarity), 1, 1), config.threshold / 100)
    counted = [one[part >= _JUDGED] for one, part in zip(scale.rarity, scale.judged, strict=True)]
    if config.together:
        counted = [torch.cat(counted)] * len(counted)
    return torch.stack([percentile(values, config.threshold) for values in counted])[:, None, None]


def percentile(values: Tensor, percent: float) -> Tensor:
    """The value that this percentage of the values (N,) lies below; a scalar. Of no values it is above any rarity."""
    count = len(values)
    if count == 0:
        return torch.tensor(torch.inf)
    # torch.quantile refuses more than 16 million values
    return values.kthvalue(min(count, int(percent / 100 * count) + 1)).values
