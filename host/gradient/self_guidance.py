"""The gradient of self-guided minority sampling: how much an image changes when it is noised and denoised again.

Um, Ye: "Self-Guided Generation of Minority Samples Using Diffusion Models", ECCV 2024, arXiv 2407.11555. A picture that the
denoiser has seen little of comes back changed. Its minority score is the distance of x0, the clean estimate of x, from
x0', that of x0 noised again; x0' is held constant. The paper measures it by LPIPS or by the L2 norm in pixels; here it is
the mean square in latents. Normalised by its largest entry, the gradient is that of the norm.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..comfy.sampling import sigma_at, signal_and_noise
from .estimate import Denoise, EstimateGradient
from .gradient_check import GradientCheck
from .image_gradient import ScoreGradient
from .random_state import own_noise
from .ways import THROUGH, Way, ways_down

MINORITY = "minority score"
PUBLISHED_LEVEL = 0.8  # the share of the diffusion time up to which x0 is noised again


@dataclass
class SelfGuidance(EstimateGradient):
    """The gradient of the minority score, downward: guidance descends it.

    The noise depends on the seed of the run and on sigma. All images of a batch get the same, so that an image alone is the
    same as in any place of any batch.

    Attributes:
        level: the share of the diffusion time up to which x0 is noised again, see comfy.sampling.time_left.
    """

    level: float = PUBLISHED_LEVEL
    way: Way = THROUGH
    measure: str = MINORITY
    check: GradientCheck | None = None
    on_pass: Callable[[], None] = lambda: None

    def begin_run(self, on_pass: Callable[[], None], check: GradientCheck) -> "SelfGuidance":
        return replace(self, on_pass=on_pass, check=check)

    def ways(self, batch: int) -> list[Way]:
        return ways_down(self.way, False, batch, False)

    def of_estimate(self, clean: Tensor, denoise: Denoise, sigma: Tensor, base_model: Any) -> ScoreGradient:
        with torch.inference_mode(False), torch.no_grad():
            level = sigma_at(base_model.model_sampling, self.level)
            signal, deviation = signal_and_noise(base_model.model_sampling, torch.tensor(level))
            noise = own_noise(clean[:1], (denoise.seed, float(sigma)))
            again = denoise.at(level)((signal * clean + deviation * noise).to(clean))
            self.on_pass()
            difference = clean - again
            score = difference.double().square().flatten(1).mean(1)
            gradient = difference * (-2 / difference[0].numel())
        return ScoreGradient(score, gradient, clean.detach())
