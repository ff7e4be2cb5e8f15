"""The autoencoders of small generators, as a VAE of the host, and the one that this pack's own two share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..comfy.required import VAE, ModelPatcher, PixelspaceConversionVAE, vae_offload_device

# The tokenizer of the demo generator and of the D-JEPA that comes with the pack.
TOKENIZER = Path(__file__).absolute().parents[2] / "assets" / "tokenizer128.safetensors"


def small_vae(autoencoder: PixelspaceConversionVAE, *, stride: int, channels: int) -> VAE:
    """A VAE of the host around an autoencoder of pixels in [-1, 1].

    Args:
        stride: pixels a side for each latent pixel. channels: of the latents.
    """
    # The host's pixel-space VAE has everything except the autoencoder. float32, since half precision, its default on a
    # GPU, would round the pixels.
    vae = VAE({"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    with torch.inference_mode(False):
        vae.first_stage_model = autoencoder.eval().requires_grad_(False)
    vae.patcher = ModelPatcher(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=vae_offload_device(),
    )
    vae.downscale_ratio = vae.upscale_ratio = stride
    vae.latent_channels = channels
    return vae


class WrappedAutoencoder(PixelspaceConversionVAE):
    """Wraps a module that has encode and decode for the host's VAE.

    Args:
        scale: the module's latents are the host's latents times this.
    """

    def __init__(self, module: Any, scale: float) -> None:
        super().__init__()
        self.module: Any = module
        self.scale = scale

    def encode(self, pixels: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents."""
        return self.module.encode(pixels) / self.scale

    def decode(self, samples: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Latents -> (B, 3, H, W)."""
        return self.module.decode(samples * self.scale)
