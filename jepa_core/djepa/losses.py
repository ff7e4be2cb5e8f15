"""D-JEPA's training losses (arXiv 2410.03755, section 3): the denoising loss and the JEPA loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoising import Denoiser
from .masking import random_masked_count, random_orders
from .model import DJEPA, ContextEncoder, take

SMOOTH_L1_BETA = 2.0
NOISE_DRAWS = 4
LABEL_DROP = 0.1


@dataclass(frozen=True)
class Draws:
    """The random draws of one training step, on B images with M masked tokens each.

    Attributes:
        places: (B, V), indices of the known tokens.
        wanted: (B, M), indices of the masked ones.
        labels: (B,), some of them replaced by "no class".
        noise: (draws, B, M, w), standard normal.
        times: (draws * B * M,), from the denoiser's random_times.
    """

    places: Tensor
    wanted: Tensor
    labels: Tensor
    noise: Tensor
    times: Tensor

    def to(self, device: torch.device) -> Draws:
        """The same draws on a device."""
        return Draws(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def training_draws(
    tokens: Tensor,
    labels: Tensor,
    denoiser: Denoiser,
    generator: torch.Generator,
    *,
    classes: int,
    label_drop: float = LABEL_DROP,
    noise_draws: int = NOISE_DRAWS,
) -> Draws:
    """Draw mask, dropped labels, noise and times for tokens (B, N, w) with labels (B,) on the CPU."""
    batch, count, width = tokens.shape
    masked = random_masked_count(count, generator)
    order = random_orders(count, [generator] * batch)
    dropped = torch.rand(batch, generator=generator) < label_drop
    return Draws(
        places=order[:, : count - masked],
        wanted=order[:, count - masked :],
        labels=torch.where(dropped, classes, labels.cpu()),
        noise=torch.randn(noise_draws, batch, masked, width, generator=generator),
        times=denoiser.random_times(noise_draws * batch * masked, generator),
    )


def training_losses(
    model: DJEPA,
    target: ContextEncoder | None,
    denoiser: Denoiser,
    tokens: Tensor,
    labels: Tensor,
    draws: Draws,
) -> tuple[Tensor, Tensor]:
    """Return (denoising loss, JEPA loss), each averaged over the masked tokens.

    Args:
        target: the target encoder; None makes the JEPA loss 0.
        tokens: (B, N, w), all of each image.
        labels: (B,), undropped, for the target encoder.
    """
    z = model.features(take(tokens, draws.places), draws.places, draws.labels, draws.wanted)
    clean = take(tokens, draws.wanted).expand_as(draws.noise).flatten(0, 2)
    repeated = z.expand(len(draws.noise), -1, -1, -1).flatten(0, 2)
    denoising = denoiser.loss(model.head, repeated, clean, draws.noise.flatten(0, 2), draws.times).mean()
    if target is None:
        return denoising, torch.zeros((), device=tokens.device)
    features = target_features(target, tokens, labels)
    return denoising, jepa_loss(model.projection(z), take(features, draws.wanted))


def jepa_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 with beta 2 between the projected z and the target encoder's features, (B, M, width) -> ()."""
    return F.smooth_l1_loss(predicted.float(), target.detach().float(), beta=SMOOTH_L1_BETA)


def target_features(target: ContextEncoder, tokens: Tensor, labels: Tensor) -> Tensor:
    """The target encoder's features of all tokens, (B, N, w) -> (B, N, width), without gradient or dropout.

    The encoder must be in evaluation mode.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    with torch.no_grad():
        return target(tokens, places, labels)[:, -tokens.shape[1] :]
