"""The two models of a token's distribution given its feature z (arXiv 2410.03755, sections 3.2 and A).

Both have the same methods, on tokens (T, w):

    draws(steps)                        the number of noise tensors that sampling takes
    random_times(count, generator)      training times, (count,)
    loss(head, z, clean, noise, times)  the loss of each token, (T,)
    sample(head, z, noise, ...)         tokens drawn from p(x | z)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from math import cos, log, pi
from typing import Union

import torch
from torch import Tensor

from .config import DJEPAConfig
from .model import DenoisingHead

TRAINING_STEPS = 1000
# Tokens have about unit variance. At the noisiest step the prediction error is divided by a signal rate of 5e-5, so an
# error of 0.001 would become a token of size 20, from which later steps do not recover.
LARGEST_TOKEN = 8.0

Denoiser = Union["DiffusionDenoiser", "FlowDenoiser"]


def denoiser_of(config: DJEPAConfig, *, time_shift: float = 1.0) -> Denoiser:
    """The denoiser that a model was trained with; time_shift applies only to flow matching."""
    return FlowDenoiser(time_shift) if config.denoiser == "flow" else DiffusionDenoiser()


class DiffusionDenoiser:
    """DDPM with noise prediction and learned variance on the cosine schedule (arXiv 2102.09672).

    The loss is the mean squared error of the noise plus the variational bound of one step in bits per entry, whose
    gradient reaches only the variance. The last step's bound is a Kullback-Leibler divergence like the others, with
    that step's clipped variance: the discretised likelihood used for 8-bit pixels does not apply to latents.
    """

    def __init__(self) -> None:
        def alpha_bar(u: float) -> float:
            return cos((u + 0.008) / 1.008 * pi / 2) ** 2

        edges = [alpha_bar(step / TRAINING_STEPS) for step in range(TRAINING_STEPS + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in pairwise(edges)]
        self.alphas_cumulative = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)

    def draws(self, steps: int) -> int:
        """The number of noise tensors that `sample` takes: the initial one, and one for each step but the last."""
        return steps

    def random_times(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64 in 0..999."""
        return torch.randint(TRAINING_STEPS, (count,), generator=generator)

    def loss(self, head: DenoisingHead, z: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """z (T, width), clean and noise (T, w), times (T,) in 0..999 -> (T,)."""
        step = Posterior.of(self.alphas_cumulative, clean.device, clean.dtype).at(times)
        noisy = step.noised(clean, noise)
        predicted, spread = head(noisy, times, z).to(clean.dtype).chunk(2, dim=-1)
        error = (predicted - noise).square().mean(-1)
        with torch.no_grad():
            truth = step.mean(clean, noisy)
            mean = step.mean(step.clean(noisy, predicted), noisy)
        bound = _normal_divergence(truth, step.log_variance, mean, step.learned(spread))
        return error + bound.mean(-1) / log(2)

    def sample(
        self,
        head: DenoisingHead,
        z: Tensor,
        noise: Tensor,
        *,
        steps: int,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw tokens by ancestral sampling on an evenly respaced schedule, clamped to LARGEST_TOKEN.

        Args:
            head: the denoising head.
            z: (T, width); with a guidance scale other than 1, (2 T, width), with the unconditional half last.
            noise: (draws(steps), T, w), standard normal.
            steps: denoising steps, 1 to 1000.
            guidance_scale: w in unconditional + w (conditional - unconditional); the variance is the conditional's.
            temperature: factor of each step's noise, but not of the initial noise.

        Returns:
            (T, w)
        """
        # includes both ends of the training steps; a single step is the noisiest one
        chosen = torch.linspace(TRAINING_STEPS - 1, 0, steps, dtype=torch.float64).round().long()
        schedule = Posterior.of(self.alphas_cumulative[chosen.flip(0)], z.device, noise.dtype)
        modulations = head.modulations(head.embed_time(chosen.to(z.device)), head.condition(z))
        x = noise[0]
        for draw, modulation in enumerate(modulations, 1):
            step = schedule.at(steps - draw)
            predicted, spread = _guided(head, x, modulation, guidance_scale, z.dtype).chunk(2, dim=-1)
            x = step.mean(step.clean(x, predicted).clamp(-LARGEST_TOKEN, LARGEST_TOKEN), x)
            if draw < steps:
                x = x + temperature * (0.5 * step.learned(spread)).exp() * noise[draw]
        return x


@dataclass(frozen=True)
class Posterior:
    """q(x_{t-1} | x_t, x_0) of a schedule (DDPM, eq. 6 and 7): tables over its steps, or rows of them.

    The mean is coef_x0 x_0 + coef_xt x_t. The learned log variance lies between `log_variance`, the posterior's, and
    `log_beta`.
    """

    signal: Tensor
    sigma: Tensor
    log_beta: Tensor
    log_variance: Tensor
    coef_x0: Tensor
    coef_xt: Tensor

    @classmethod
    def of(cls, alphas_cumulative: Tensor, device: torch.device, dtype: torch.dtype) -> Posterior:
        """The tables of a schedule with the given cumulative products of alpha, (steps,) float64."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumulative[:-1]])
        beta = 1 - alphas_cumulative / before
        variance = beta * (1 - before) / (1 - alphas_cumulative)
        # the first step's variance is 0; replaced by the second's
        variance[0] = variance[1] if len(variance) > 1 else beta[0]
        tables = (
            alphas_cumulative.sqrt(),
            (1 - alphas_cumulative).sqrt(),
            beta.log(),
            variance.log(),
            beta * before.sqrt() / (1 - alphas_cumulative),
            (1 - before) * (alphas_cumulative / before).sqrt() / (1 - alphas_cumulative),
        )
        # cast before moving: not every device has float64
        return cls(*(table.to(dtype).to(device) for table in tables))

    def at(self, steps: Tensor | int) -> Posterior:
        """The rows for one step, or for each token's step (T,), then of shape (T, 1)."""
        rows = (getattr(self, field.name)[steps] for field in fields(self))
        return Posterior(*(row if isinstance(steps, int) else row[:, None] for row in rows))

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """x_t, (T, w)."""
        return self.signal * clean + self.sigma * noise

    def clean(self, noisy: Tensor, noise: Tensor) -> Tensor:
        """x_0 estimated from the predicted noise, (T, w)."""
        return (noisy - self.sigma * noise) / self.signal

    def mean(self, clean: Tensor, noisy: Tensor) -> Tensor:
        """The posterior's mean, (T, w)."""
        return self.coef_x0 * clean + self.coef_xt * noisy

    def learned(self, spread: Tensor) -> Tensor:
        """The log variance interpolated between its two bounds (arXiv 2102.09672, eq. 15), (T, w)."""
        part = (spread + 1) / 2
        return part * self.log_beta + (1 - part) * self.log_variance


class FlowDenoiser:
    """Flow matching on straight paths from noise (t = 0) to the token (t = 1), Euler steps (arXiv 2210.02747).

    Args:
        time_shift: s in t / (t + s (1 - t)), for sampling; above 1, steps are finer near the noise.
    """

    def __init__(self, time_shift: float = 1.0) -> None:
        self.time_shift = time_shift

    def draws(self, steps: int) -> int:
        """The number of noise tensors that `sample` takes: only the initial one."""
        return 1

    def random_times(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) in [0, 1)."""
        return torch.rand(count, generator=generator)

    def loss(self, head: DenoisingHead, z: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """z (T, width), clean and noise (T, w), times (T,) in [0, 1] -> (T,)."""
        t = times.to(clean.dtype)[:, None]
        velocity = head(t * clean + (1 - t) * noise, TRAINING_STEPS * times, z).to(clean.dtype)
        return (velocity - (clean - noise)).square().mean(-1)

    def sample(
        self,
        head: DenoisingHead,
        z: Tensor,
        noise: Tensor,
        *,
        steps: int,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Integrate the velocity from noise to tokens.

        Args:
            head, z, steps, guidance_scale: as in DiffusionDenoiser.sample.
            noise: (1, T, w), standard normal.
            temperature: factor of the noise (the paper has none for flow matching).

        Returns:
            (T, w)
        """
        even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        shifted = even / (even + self.time_shift * (1 - even))
        times = head.embed_time(TRAINING_STEPS * shifted[:-1].float().to(z.device))
        x = temperature * noise[0]
        for length, modulation in zip(
            shifted.diff().tolist(), head.modulations(times, head.condition(z)), strict=True
        ):
            x = x + length * _guided(head, x, modulation, guidance_scale, z.dtype)
        return x


def _guided(
    head: DenoisingHead, x: Tensor, modulation: list[Tensor], scale: float, dtype: torch.dtype
) -> Tensor:
    """The head's output for tokens x (T, w), guided in its first w entries; the rest is the conditional output."""
    if scale == 1:
        return head.denoise(x.to(dtype), modulation).to(x.dtype)
    wanted, free = head.denoise(x.repeat(2, 1).to(dtype), modulation).to(x.dtype).chunk(2)
    width = x.shape[1]
    guided = free[:, :width] + scale * (wanted[:, :width] - free[:, :width])
    return torch.cat([guided, wanted[:, width:]], dim=1)


def _normal_divergence(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    ratio = (log_variance1 - log_variance2).exp()
    distance = (mean1 - mean2).square() * (-log_variance2).exp()
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)
