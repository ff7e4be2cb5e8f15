"""Resizing images and latents with a deterministic backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision


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
    unit = torch.eye(side, dtype=torch.float64, device="cpu")[None, None]
    return F.interpolate(unit, (wanted, side), mode=mode, align_corners=False, antialias=antialias)[0, 0]
