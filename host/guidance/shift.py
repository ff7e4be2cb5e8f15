"""How far a guided step moves the latent."""

import torch
from torch import Tensor

from .schedule import normalise


def shift_of(gradient: Tensor, eta: float, scale: float, normalisation: str) -> Tensor:
    """What to subtract from x: z_t <- z_t - eta * g / max|g| (arXiv 2605.24631, algorithm 1), in x's own scale.

    Args:
        gradient: (B, ...) with respect to x; images whose gradient is not finite are not shifted.
        scale: units of x per unit of z_t, see schedule.latent_scale.
        normalisation: see Schedule.
    """
    finite = is_finite(gradient).reshape(-1, *[1] * (gradient.ndim - 1))
    # from per unit of x to per unit of z_t = x / scale
    direction = normalise(torch.where(finite, gradient * scale, 0.0), normalisation)
    return (eta * scale) * direction


def is_finite(gradient: Tensor) -> Tensor:
    """Whether the gradient of each image is finite: (B, ...) -> (B,)."""
    return gradient.flatten(1).isfinite().all(1)
