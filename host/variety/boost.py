"""Boost-and-Skip: start from noise that is too strong, past the first steps, so that rarer pictures come out.

Um, Kim, Ye: "Boost-and-Skip: A Simple Guidance-Free Diffusion for Minority Generation", ICML 2025, arXiv 2502.06516.
The paper starts a variance-preserving run at gamma * eps instead of eps and leaves out the first of its steps; gamma is 4.0
for CelebA and 2.5 for ImageNet at 64 pixels, with 3 of 250 steps left out. Both are needed: at the first step of a schedule
that begins without any signal, the denoiser undoes the boost.

Those values belong to samplers that add noise at each step. One that adds none, such as Euler, keeps more of the boost, and
large gammas leave blotches there.
"""

import math
from typing import Any

from torch import Tensor

from ..comfy.sampling import signal_and_noise, starts_from_noise

PUBLISHED_SHARE = 3 / 250  # of the steps


def skipped(steps: int) -> int:
    """How many of a run's first steps are left out: the paper's share, but one where that is less than half a step.

    One of 20 steps is more time than the paper leaves out. A run of one step keeps it.
    """
    return min(max(1, round(PUBLISHED_SHARE * steps)), steps - 1)


def boosted_start(
    model_sampling: Any, sigmas: Tensor, noise: Tensor, gamma: float, skip: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Noise and sigmas to give to the host's sampler in place of its own.

    At the later sigma the host then starts from its usual share of the latent plus noise of gamma times the standard
    deviation that x has there, if latents have 1: sqrt(alpha^2 + sigma_t^2), which is sqrt(1 + sigma^2) where variance
    explodes. A run that starts below the model's largest sigma, from a picture (denoise below 1), has gamma times its own
    noise. So gamma 1 without skipping changes nothing.

    Args:
        sigmas: (steps + 1,) of the run. skip: how many steps to leave out, less than steps.
        noise: (B, ...), standard normal. Zero for a run that goes on with the latent of another one: it stays as it is.
        mask: 1 where the run draws, 0 where it keeps the latent, which the host mixes with noise that is not boosted.
    """
    if not noise.any():
        return noise, sigmas
    if not 0 <= skip < len(sigmas) - 1:
        raise ValueError(
            f"skip cannot leave out {skip} of {len(sigmas) - 1} steps; set it to {len(sigmas) - 2} or less"
        )
    later = sigmas[skip:]
    signal, own = signal_and_noise(model_sampling, later[0])
    wanted = math.hypot(signal, own) if starts_from_noise(model_sampling, sigmas) else own
    _, given = signal_and_noise(model_sampling, later[0], starts_from_noise(model_sampling, later))
    factor = gamma * wanted / given
    return noise * (factor if mask is None else 1 + (factor - 1) * mask), later
