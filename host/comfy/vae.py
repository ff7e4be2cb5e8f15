"""Decoding with the host's VAE."""

from typing import Any

import torch
from torch import Tensor

from .required import VAEDecode


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Decode latent (1, C, ...), in the VAE's own scale, to (1, 3, ...) in [0, 1], differentiably.

    The VAE's own decode runs under inference mode and falls back to tiles when memory is short, so its parts are called.
    """
    pixels = vae.first_stage_model.decode(latent.to(vae.vae_dtype).to(vae.device))
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    # clone: the host's last step works in place, and a pixel-space VAE returns its input
    return vae.process_output(pixels.clone())


def frames_of(vae: Any, latent: Tensor) -> int:
    """How many frames a latent (1, C, h, w) or (1, C, t, h, w) is decoded to; the first stands for itself."""
    if latent.ndim == 4:
        return 1
    return 1 + (latent.shape[2] - 1) * (vae.temporal_compression_decode() or 1)


def stock_decode(vae: Any, latent: dict) -> Tensor:
    """Run the host's own VAE Decode; returns an IMAGE (B, H, W, C)."""
    images: Tensor = VAEDecode().decode(vae, latent)[0]
    return images
