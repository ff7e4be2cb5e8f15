"""Resizing pictures and latents with a backward pass that gives the same bits every time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision


def resize(x: Tensor, size: tuple[int, int], *, mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """Resize x (..., H, W) to `size`, as torch.nn.functional.interpolate does without aligned corners.

    Rows and columns are resized on their own, each by a matrix product. On CUDA, the backward pass of interpolate adds
    up in whatever order its threads come, and a guided image would differ from run to run.
    """
    with full_precision(x.device):
        rows, columns = (
            _weights(side, wanted, mode, antialias).to(x)
            for side, wanted in zip(x.shape[-2:], size, strict=True)
        )
        return rows @ x @ columns.T


@torch.inference_mode(False)
def _weights(side: int, wanted: int, mode: str, antialias: bool) -> Tensor:
    """(wanted, side): what each pixel of a resized row takes from each pixel of the row; computed on the processor."""
    unit = torch.eye(side, dtype=torch.float64, device="cpu")[None, None]
    return F.interpolate(unit, (wanted, side), mode=mode, align_corners=False, antialias=antialias)[0, 0]
