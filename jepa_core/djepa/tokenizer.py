"""A small autoencoder of stride 8, from images to the continuous tokens of a small D-JEPA.

The paper uses a published autoencoder of stride 16 and 16 channels (KL-16). This one is for small models of
small images: 2 M parameters, latents of zero mean and unit variance by construction. In training, noise
is added to the latents, so that slightly wrong tokens still decode to a clean image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8
CHANNELS = 16
# Standard deviation of the noise added to the latents in training; that of the latents is 1.
LATENT_NOISE = 0.15


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group normalisation and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape."""
        return x + self.layers(x)


def _upsample(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 4 * out, 3, padding=1), nn.PixelShuffle(2))


class Tokenizer(nn.Module):
    """Encodes (B, 3, H, W) in [-1, 1] to (B, 16, H/8, W/8) of unit variance, and decodes latents."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, 96, 3, padding=1),
            ResidualBlock(96),
            nn.Conv2d(96, 128, 3, padding=1, stride=2),
            ResidualBlock(128),
            nn.GroupNorm(8, 128),
            nn.SiLU(),
            nn.Conv2d(128, CHANNELS, 1),
        )
        # without learned weights; makes each channel's mean 0 and variance 1
        self.standardise = nn.BatchNorm2d(CHANNELS, affine=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 128, 3, padding=1),
            ResidualBlock(128),
            ResidualBlock(128),
            _upsample(128, 96),
            ResidualBlock(96),
            ResidualBlock(96),
            _upsample(96, 48),
            ResidualBlock(48),
            nn.GroupNorm(8, 48),
            nn.SiLU(),
            _upsample(48, 3),
        )

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W multiples of 8 -> (B, 16, H/8, W/8)."""
        return self.standardise(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, H, W) -> (B, 3, 8H, 8W), roughly in [-1, 1], not clamped."""
        return self.decoder(latents)

    def reconstruction_error(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """The training loss: mean absolute plus mean squared error of the image decoded from noisy latents.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            noise: (B, 16, H/8, W/8), standard normal.
        """
        decoded = self.decode(self.encode(pixels) + LATENT_NOISE * noise)
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)


def peak_signal_to_noise(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, for images in [-1, 1]."""
    return (10 * torch.log10(4 / F.mse_loss(a.clamp(-1, 1), b))).item()
