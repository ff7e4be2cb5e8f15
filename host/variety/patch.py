"""CADS and Boost-and-Skip as patches of a MODEL, for any sampler of the host and beside this pack's other patches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..comfy.sampling import replaced_conditioning, time_left, wrap_call, wrap_sampler
from .boost import boosted_start, skipped
from .cads import Cads, can_carry_noise, with_noised_conditioning

BOOST_KEY = "jepa_boost_and_skip"
CADS_KEY = "jepa_cads"
# In an entry of the conditioning: the place in the batch of each row. What cuts rows out of conditioning cuts these too.
_PLACES = "jepa_places"


def apply_boost(model: Any, gamma: float, skip: int = 0) -> Any:
    """Return a clone of MODEL whose runs start with boosted noise, past their first steps.

    Args:
        gamma: see boosted_start. skip: how many steps to leave out; 0 for the paper's share of the run's.
    """
    patched = model.clone()
    wrap_sampler(patched, BOOST_KEY, _BoostedStart(gamma, skip))
    return patched


@dataclass(frozen=True)
class _BoostedStart:
    """The wrapper of a MODEL's sampler calls."""

    gamma: float
    skip: int

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        latent: Tensor | None = None,
        mask: Tensor | None = None,
        *args: Any,
    ) -> Tensor:
        sampling = guider.inner_model.model_sampling
        skip = self.skip or skipped(len(sigmas) - 1)
        noise, sigmas = boosted_start(sampling, sigmas, noise, self.gamma, skip, mask)
        result: Tensor = executor(guider, sigmas, extra_args, callback, noise, latent, mask, *args)
        return result


def apply_cads(model: Any, settings: Cads, seed: int) -> Any:
    """Return a clone of MODEL whose positive conditioning carries noise that fades; MODEL itself at scale 0.

    An image's noise depends on the seed, its place in the batch, the step and the place of the conditioning alone.
    """
    if settings.scale == 0:
        return model
    patched = model.clone()
    wrap_sampler(patched, CADS_KEY, _with_places)
    wrap_call(patched, CADS_KEY, _NoisedCalls(settings, seed))
    return patched


def _with_places(
    executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any
) -> Tensor:
    """A sampler call whose conditioning knows the rows of the batch.

    Raises:
        ValueError: no conditioning can carry noise.
    """
    if not can_carry_noise(guider.conds):
        raise ValueError(
            "CADS finds nothing in this model's conditioning that can carry noise: no tokens of a prompt, no vector; "
            "remove the node, or connect a model that takes prompts"
        )
    places = torch.arange(len(noise))

    def numbered(conds: dict) -> dict:
        return {**conds, "positive": [{**entry, _PLACES: places} for entry in conds["positive"]]}

    with replaced_conditioning(guider, numbered):
        result: Tensor = executor(guider, sigmas, extra_args, callback, noise, *args)
        return result


@dataclass(frozen=True)
class _NoisedCalls:
    """The wrapper of a MODEL's calls."""

    settings: Cads
    seed: int

    def __call__(self, executor: Any, x: Tensor, sigmas: Tensor, options: dict, *args: Any) -> Tensor:
        guider, sigma = executor.class_obj, sigmas.flatten()[0]
        # all calls at and after a step's noise level, up to the next, belong to the step
        step = int((options["transformer_options"]["sample_sigmas"] >= sigma).sum())
        t = time_left(guider.inner_model.model_sampling, sigma)

        def noised(conds: dict) -> dict:
            rows = conds["positive"][0][_PLACES].tolist()
            return with_noised_conditioning(conds, rows, step, t, self.settings, self.seed)

        with replaced_conditioning(guider, noised):
            result: Tensor = executor(x, sigmas, options, *args)
            return result
