"""Resizing images and latents with a deterministic backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision

_COLUMNS = 256


def resize(x: Tensor, size: tuple[int, int], *, mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """Resize x (..., H, W) to `size`, as torch.nn.functional.interpolate does with align_corners=False.

    Rows and columns are resized separately, each by a matrix product. On CUDA, interpolate's backward pass sums in the
    order in which its threads run, so that a guided image would differ from run to run.
    """
    with full_precision(x.device):
        rows, columns = (
            _weights(side, wanted, mode, antialias).to(x)
            for side, wanted in zip(x.shape[-2:], size, strict=True)
        )
        return rows @ x @ columns.T


@torch.inference_mode(False)
def _weights(side: int, wanted: int, mode: str, antialias: bool) -> Tensor:
    """The resizing matrix (wanted, side) along one axis, computed on the CPU."""
    # some columns at a time, since a whole unit matrix of a long side would fill the memory
    parts = torch.arange(side, device="cpu").split(_COLUMNS)
    return torch.cat([_resized(columns, side, wanted, mode, antialias) for columns in parts], 1)


def _resized(columns: Tensor, side: int, wanted: int, mode: str, antialias: bool) -> Tensor:
    """Some columns of the resizing matrix: what becomes of unit vectors."""
    unit = F.one_hot(columns, side).T.double()[None, None]
    size = (wanted, len(columns))
    return F.interpolate(unit, size, mode=mode, align_corners=False, antialias=antialias)[0, 0]
