"""Masks made larger, smaller and softer, and how much contrast an image has at every pixel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_PATCHES = 16  # across the shorter side: those of an encoder with patches of 14 pixels at 224
_CELLS = 4  # across a patch: how finely contrast is measured
_REACH = 4.0  # of a Gaussian, in standard deviations


def grow(masks: Tensor, pixels: int) -> Tensor:
    """The largest value within a disc around each pixel; (B, H, W) -> (B, H, W).

    Args:
        pixels: radius of the disc. Below 0 masks shrink: the smallest value instead. What lies outside the image is not
            asked.
    """
    if pixels < 0:
        return 1 - grow(1 - masks, -pixels)
    grown, rows, reach = masks.clone(), masks.clone(), 0
    for down in range(pixels, -1, -1):
        # the rows of a disc become wider toward its middle
        while reach < math.isqrt(pixels**2 - down**2):
            reach += 1
            _raise(rows[..., reach:], masks[..., :-reach])
            _raise(rows[..., :-reach], masks[..., reach:])
        height = masks.shape[1] - down
        if height > 0:
            _raise(grown[:, down:], rows[:, :height])
            _raise(grown[:, :height], rows[:, down:])
    return grown


def _raise(values: Tensor, least: Tensor) -> None:
    """Raise values, in place, to another tensor's where those are larger."""
    torch.maximum(values, least, out=values)


def blur(masks: Tensor, deviation: float) -> Tensor:
    """Masks (B, H, W) under a Gaussian with this standard deviation in pixels; edges are continued outward."""
    radius = int(_REACH * deviation + 0.5)
    if radius == 0:
        return masks
    down, across = (_gaussian(length, deviation, radius).to(masks) for length in masks.shape[1:])
    # for wide Gaussians much faster than a convolution
    return down @ masks @ across.mT


def _gaussian(length: int, deviation: float, radius: int) -> Tensor:
    """The matrix that blurs a column of pixels, (length, length) float64."""
    steps = torch.arange(-radius, radius + 1, device="cpu")
    kernel = torch.exp(-0.5 * (steps.double() / deviation) ** 2)
    places = (torch.arange(length, device="cpu")[:, None] + steps).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64, device="cpu")
    return matrix.scatter_add_(1, places, (kernel / kernel.sum()).expand(length, -1))


def local_contrast(image: Tensor) -> Tensor:
    """The standard deviation of colours around each pixel, over about a patch of an encoder.

    Args:
        image: (H, W, 3) in [0, 1].

    Returns:
        (H, W), from 0 (one colour) to 0.5.
    """
    colours = (image - image.mean((0, 1))).movedim(-1, 0)  # centred, or rounding would count
    share = min(1.0, _CELLS * _PATCHES / min(colours.shape[1:]))
    size = [max(1, round(share * length)) for length in colours.shape[1:]]
    mean, square = (F.interpolate(one[None], size, mode="area")[0] for one in (colours, colours**2))
    deviation = min(size) / _PATCHES / math.sqrt(12)  # that of a square of a patch's side
    variance = (blur(square, deviation) - blur(mean, deviation) ** 2).clamp(min=0).mean(0)
    found = F.interpolate(variance.sqrt()[None, None], image.shape[:2], mode="bilinear", align_corners=False)
    return found[0, 0]
