"""Resizing images and latents with a deterministic backward pass."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision

# how far from an output's place its inputs lie, in steps of the coarser grid
_TAPS = {"bilinear": 1, "bicubic": 2}
_TOGETHER = 256
# devices on which interpolate with antialias, and its backward pass, add up in one order
_IN_ORDER = {"cpu"}


def resize(x: Tensor, size: tuple[int, int], *, mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """Resize x (B, C, H, W) to `size`, as torch.nn.functional.interpolate does with align_corners=False.

    On CUDA, interpolate's backward pass sums in the order in which its threads run, so that a guided image would differ from
    run to run. Without antialias, its result on a CPU depends on the number of threads.
    """
    if antialias and x.device.type in _IN_ORDER and x.dtype in (torch.float32, torch.float64):
        return F.interpolate(x, size, mode=mode, align_corners=False, antialias=True)
    return _by_products(x, size, mode, antialias)


def _by_products(x: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    """Resize rows and columns separately, each by a matrix product."""
    with full_precision(x.device):
        rows, columns = (
            _weights(side, wanted, mode, antialias).to(x)
            for side, wanted in zip(x.shape[-2:], size, strict=True)
        )
        return rows @ x @ columns.T


@torch.inference_mode(False)
def _weights(side: int, wanted: int, mode: str, antialias: bool) -> Tensor:
    """The resizing matrix (wanted, side) along one axis, computed on the CPU.

    Its columns are what becomes of unit vectors. Those whose places are far apart go through interpolate in one sum, since
    no output depends on two of them: a unit matrix of a long side would fill the memory.
    """
    reach = _TAPS[mode] * (max(1.0, side / wanted) if antialias else 1.0)
    period = min(side, 2 * math.ceil(reach) + 3)
    place = torch.arange(side, device="cpu")
    parts = []
    for some in torch.arange(period, device="cpu").split(_TOGETHER):
        combs = (place[:, None] % period == some).double()[None, None]
        size = (wanted, len(some))
        parts.append(F.interpolate(combs, size, mode=mode, align_corners=False, antialias=antialias)[0, 0])
    found = torch.cat(parts, 1)
    if period == side:
        return found
    centre = (torch.arange(wanted, device="cpu").double() + 0.5) * side / wanted - 0.5
    near = (place - centre[:, None]).abs() < period / 2
    return torch.where(near, found[:, place % period], 0.0)
