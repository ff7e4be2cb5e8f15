"""Which steps are guided, and how strongly."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..comfy.sampling import signal_and_noise
from ..options import MAX, NONE, PER_STEP, SPREAD

# The strength published in the paper is for runs with this many guided steps.
PUBLISHED_GUIDED_STEPS = 3


@dataclass(frozen=True)
class Schedule:
    """Which steps to guide, and how strongly.

    Attributes:
        strength: the paper's eta at three guided steps; negative values make images more typical.
        start_percent, end_percent: fractions of the steps that this sampler call runs; the paper's deferral tau is
            1 - start_percent. Equal values guide nothing.
        interval: N, guide every N-th step.
        strength_rule: "spread" keeps the total of three guided steps when there are more; "per_step" applies eta at
            every guided step, as the paper says.
        variance: multiply by the posterior variance of the step (the paper's "variance" schedule).
        normalisation: "max" (the paper: largest entry 1), "rms" (root mean square 1) or "none".
        times: how often strength counts.
    """

    strength: float = 0.5
    start_percent: float = 0.2
    end_percent: float = 0.8
    interval: int = 1
    strength_rule: str = SPREAD
    variance: bool = False
    normalisation: str = MAX
    times: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start_percent <= 1 or not 0 <= self.end_percent <= 1:
            raise ValueError(
                f"start_percent and end_percent must be 0 to 1, got {self.start_percent} and {self.end_percent}"
            )
        if self.start_percent > self.end_percent:
            raise ValueError(
                f"start_percent {self.start_percent} is larger than end_percent {self.end_percent}; "
                "swap them, or set both equal to guide nothing"
            )
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        if not -1e4 <= self.strength <= 1e4:
            raise ValueError(f"strength must be -10000 to 10000, got {self.strength}")

    def guided_steps(self, total: int) -> list[int]:
        """Steps i of `total` with start <= i / total < end and i mod interval = 0."""
        slack = 1e-6  # percentages typed as 0.3 are not exact
        low, high = self.start_percent * total - slack, self.end_percent * total - slack
        return [i for i in range(total) if low <= i < high and i % self.interval == 0]

    def step_strength(self, guided: int) -> float:
        """The eta of each of `guided` guided steps."""
        eta = self.strength * self.times
        return eta if self.strength_rule == PER_STEP else eta * min(1.0, PUBLISHED_GUIDED_STEPS / guided)


def latent_scale(model_sampling: Any, sigma: Tensor) -> float:
    """Sampler units per unit of the variance-preserving latent z_t: sqrt(sigma^2 + sigma_data^2); 1 for flow models."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return 1 / float(model_sampling.calculate_input(sigma.reshape(1).double().cpu(), one))


def signal_rate(model_sampling: Any, sigma: Tensor) -> float:
    """alpha-bar at sigma, alpha^2 / (alpha^2 + sigma_t^2) of x = alpha * latent + sigma_t * noise."""
    alpha, noise = signal_and_noise(model_sampling, sigma)
    return alpha**2 / (alpha**2 + noise**2)


def posterior_variance(rate: float, next_rate: float) -> float:
    """Var_t = (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev); `next_rate` is abar_prev, at the less noisy step.

    0 where the next step is noisier, as after a restart.
    """
    if rate >= 1 or next_rate <= rate:
        return 0.0
    return (1 - next_rate) / (1 - rate) * (1 - rate / next_rate)


def normalise(gradient: Tensor, how: str) -> Tensor:
    """Scale each sample of gradient (B, ...): by its largest entry, its root mean square, or not at all."""
    if how == NONE:
        return gradient
    flat = gradient.flatten(1)
    size = flat.abs().amax(1) if how == MAX else flat.square().mean(1).sqrt()
    size = torch.where(size > 0, size, 1.0)  # a zero gradient stays zero
    return gradient / size.reshape(-1, *[1] * (gradient.ndim - 1))
