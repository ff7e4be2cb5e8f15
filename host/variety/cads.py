"""CADS: noise on the conditioning, strong at first and annealed away, so that one prompt gives more varied pictures.

Sadat, Buhmann, Bradley, Hilliges, Weber: "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed
Sampling", ICLR 2024, arXiv 2310.17347, section 3.1. `annealing` is its equation 2; `noised` is equation 3 with the
rescaling that follows it. As in its code, mean and standard deviation are those of a whole conditioning, over tokens and
channels; here always of one candidate's, so that candidates do not depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gradient.random_state import own_noise

# The conditioning that carries the noise: tokens of the prompt or, in models without them, its pooled vector.
CARRIERS = ("c_crossattn", "y")


@dataclass(frozen=True)
class Cads:
    """How much noise the conditioning carries, and until when.

    Attributes:
        scale: the paper's s, standard deviation of the noise in units of the conditioning; 0 is off.
        mix: the paper's psi; at 1 the noisy conditioning has the mean and standard deviation of the clean one, at 0 those
            that the noise gave it.
        tau1, tau2: times left (1 at the start of a run) up to which the conditioning is clean, and from which on it is
            only noise.
    """

    scale: float = 0.1
    mix: float = 1.0
    tau1: float = 0.6
    tau2: float = 0.9

    def __post_init__(self) -> None:
        if self.tau1 > self.tau2:
            raise ValueError(f"tau1 {self.tau1} is larger than tau2 {self.tau2}; swap them")
        if not 0 <= self.tau1 <= self.tau2 <= 1:
            raise ValueError(f"tau1 and tau2 must be 0 to 1, got {self.tau1} and {self.tau2}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be 0 to 1, got {self.mix}")
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"scale must be a number from 0 on, got {self.scale}")


def annealing(t: float, tau1: float, tau2: float) -> float:
    """gamma(t): 1 up to tau1, 0 from tau2 on, linear between. t is the time left, 1 at the start of a run."""
    if t <= tau1:
        return 1.0
    if t >= tau2:
        return 0.0
    return (tau2 - t) / (tau2 - tau1)


def noised(y: Tensor, gamma: float, scale: float, mix: float, noise: Tensor) -> Tensor:
    """sqrt(gamma) y + scale sqrt(1 - gamma) noise, rescaled to y's mean and standard deviation by the share `mix`.

    Args:
        y: the conditioning of one candidate, any shape.
        scale: larger than 0.
        noise: standard normal, in y's shape. Its dtype is computed in; the result has y's.
    """
    clean = y.to(noise.dtype)
    changed = gamma**0.5 * clean + scale * (1 - gamma) ** 0.5 * noise
    rescaled = (changed - changed.mean()) / changed.std() * clean.std() + clean.mean()
    return (mix * rescaled + (1 - mix) * changed).to(y.dtype)


def can_carry_noise(conds: dict[str, list[dict]]) -> bool:
    """Whether any positive conditioning of a run (guider.conds) has something that the noise can be added to."""
    return any(_carrier(entry) is not None for entry in conds["positive"])


def with_noised_conditioning(
    conds: dict[str, list[dict]], rows: Sequence[int], step: int, t: float, settings: Cads, seed: int
) -> dict[str, list[dict]]:
    """The conditioning of a run with noise on the positive one, for a model call whose batch is these candidates.

    A candidate's noise depends on nothing but the seed, its number, the step and the place of the conditioning among the
    positive ones; neither on the other rows of the call nor on the global random state.

    Args:
        conds: the host's conditioning as its guider holds it during a run. Tensors have one row, or one for each of `rows`.
        rows: numbers of the candidates, in the order of the batch.
        t: see time_left. The very same conditioning returns where gamma is 1.
    """
    gamma = annealing(t, settings.tau1, settings.tau2)
    if gamma == 1 or settings.scale == 0:
        return conds

    def noisy(y: Tensor, place: int) -> Tensor:
        # row by row: sums over several rows at once may be in another order
        return torch.stack(
            [
                noised(own, gamma, settings.scale, settings.mix, own_noise(own, (seed, row, step, place)))
                for row, own in zip(rows, y.expand(len(rows), *y.shape[1:]), strict=True)
            ]
        )

    positive = []
    for place, entry in enumerate(conds["positive"]):
        name = _carrier(entry)
        if name is not None:
            parts = entry["model_conds"]
            changed = parts[name]._copy_with(noisy(parts[name].cond, place))
            entry = {**entry, "model_conds": {**parts, name: changed}}
        positive.append(entry)
    return {**conds, "positive": positive}


def _carrier(entry: dict) -> str | None:
    parts = entry["model_conds"]
    found = (name for name in CARRIERS if name in parts and torch.is_floating_point(parts[name].cond))
    return next(found, None)
