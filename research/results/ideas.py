"""Ideas that make the effect less one of contrast, or harder to exploit; each changes what guidance descends.

The nodes have three more as options: keep_appearance, smooth, and encoders that must agree.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from jepa_core import Encoder
from research.harness.pack_api import ImageGradient, ScoreGradient

CONTRAST = 1.0  # standard deviation of a preprocessed image after it is normalised, as of the encoder's training pictures
KEPT = 0.25  # share of the frequencies along each axis


class _NormalisedContrast(Encoder):
    """An encoder that sees every image at the same brightness and contrast."""

    def forward(self, x: Tensor, *, half: bool = False) -> Tensor:
        return super().forward(normalised(x), half=half)


def normalised(x: Tensor) -> Tensor:
    """Images x (B, 3, S, S) with mean 0 and standard deviation CONTRAST over all channels together."""
    centred = x - x.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return CONTRAST * centred / deviation.clamp(min=1e-6)


def normalised_contrast(image: ImageGradient) -> ImageGradient:
    """Every guide sees images at the same brightness and contrast; its derivative leaves changes of both out."""
    guides = []
    for guide in image.guides:
        encoder = copy.copy(guide.encoder)
        encoder.__class__ = _NormalisedContrast
        guides.append(guide._replace(encoder=encoder))
    return replace(image, guides=guides)


@dataclass
class _LowFrequencies(ImageGradient):
    """The gradient of changes that vary slowly over the image."""

    def __call__(self, image: Tensor, index: int, others: Sequence[Tensor] | None = None) -> ScoreGradient:
        found = super().__call__(image, index, others)
        return found._replace(gradient=low_frequencies(found.gradient))


def low_frequencies(images: Tensor) -> Tensor:
    """The lowest KEPT of the frequencies of images (B, H, W, 3) along both axes: an orthogonal projection."""
    waves = torch.fft.rfft2(images.double(), dim=(1, 2))
    rows = torch.fft.fftfreq(images.shape[1]).abs()[:, None] <= KEPT / 2
    columns = torch.fft.rfftfreq(images.shape[2]) <= KEPT / 2
    kept = waves * (rows & columns)[None, :, :, None].to(waves.device)
    return torch.fft.irfft2(kept, s=images.shape[1:3], dim=(1, 2)).to(images)


def slow_changes(image: ImageGradient) -> ImageGradient:
    """Only changes of low frequency count."""
    return _LowFrequencies(**{one.name: getattr(image, one.name) for one in fields(image)})
