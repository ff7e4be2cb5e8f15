"""Model calls within a guided step, and the post-CFG hooks that see them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..comfy.sampling import replaced_conditioning
from ..gradient.rows import row, row_of_attributes
from .patch_state import PatchState

POST_CFG = "sampler_post_cfg_function"
# What the host's wrapper for inpainting masks holds of the batch.
HELD = ("latent_image", "noise")


class StepCalls:
    """Calls the model as often as a guided step needs. Patches of other nodes remember only the sampler's own call.

    Args:
        model: what the sampler calls. network: the denoiser's network.
        kwargs: the arguments of the sampler's call.
        first_is_samplers: whether the first call replaces the sampler's own.
    """

    def __init__(self, model: Any, network: nn.Module, kwargs: dict, first_is_samplers: bool) -> None:
        self._model = model
        self._network = network
        self._first_is_samplers = first_is_samplers
        self._made = 0
        self._before = self._state(kwargs)

    def __call__(self, x: Tensor, sigmas: Tensor, kwargs: dict, model: Any = None) -> Tensor:
        """Return the clean estimate. model: in place of the sampler's."""
        samplers_own = self._first_is_samplers and not self._made
        state = None if samplers_own else self._state(kwargs)
        try:
            answer: Tensor = (model or self._model)(x, sigmas, **kwargs)
        finally:
            if state:
                state.put_back()
        self._made += 1
        return answer

    def of_row(self, x: Tensor, sigmas: Tensor, kwargs: dict, index: int, batch: int) -> Tensor:
        """The clean estimate of one image of the batch, x (1, ...). The conditioning is the caller's concern."""
        own = row({"sigmas": sigmas, "mask": kwargs.get("denoise_mask")}, index, batch)
        kwargs = {**kwargs, "denoise_mask": own["mask"]} if "denoise_mask" in kwargs else kwargs
        model = row_of_attributes(self._model, HELD, index, batch)
        return self(x, own["sigmas"], kwargs, model)

    def undo(self) -> None:
        """Restore what patches remembered before the step."""
        self._before.put_back()
        self._made = 0

    def _state(self, kwargs: dict) -> PatchState:
        return PatchState(kwargs.get("model_options", {}), self._network)


@dataclass(frozen=True)
class BatchDenoiser:
    """The denoiser of a guided step as a function of x, see estimate.Denoise.

    Attributes:
        calls, sigmas, kwargs: how the model is called. guider: the host's guider of this run.
        watched: wraps the function, see BlockCount.
    """

    calls: StepCalls
    sigmas: Tensor
    kwargs: dict
    guider: Any
    watched: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] = lambda denoise: denoise

    def __call__(self, x: Tensor) -> Tensor:
        return self.watched(lambda z: self.calls(z, self.sigmas, self.kwargs))(x)

    @property
    def seed(self) -> int | None:
        seed: int | None = self.kwargs.get("seed")
        return seed

    def at(self, sigma: float) -> "BatchDenoiser":
        return replace(self, sigmas=torch.full_like(self.sigmas, sigma))

    def row(self, index: int) -> Callable[[Tensor], Tensor]:
        batch = len(self.sigmas)

        def one(z: Tensor) -> Tensor:
            with replaced_conditioning(self.guider, lambda conds: row(conds, index, batch)):
                return self.calls.of_row(z, self.sigmas, self.kwargs, index, batch)

        return self.watched(one)


class HookListener:
    """Adds a post-CFG hook that keeps its arguments from the first model call after `forget`.

    Attributes:
        received: the host's arguments for such hooks.
    """

    def __init__(self) -> None:
        self.received: dict = {}

    def forget(self) -> None:
        """Drop the arguments: they hold the options, which hold this hook."""
        self.received = {}

    def added_to(self, kwargs: dict) -> dict:
        """The arguments of a model call, with this hook after the others."""

        # a function: copies of the options that other nodes make must reach this listener
        def listen(args: dict) -> Tensor:
            if not self.received:
                self.received = args
            denoised: Tensor = args["denoised"]
            return denoised

        options = {**kwargs["model_options"], POST_CFG: [*post_cfg_hooks(kwargs), listen]}
        return {**kwargs, "model_options": options}


def post_cfg_hooks(kwargs: dict) -> list[Callable[[dict], Tensor]]:
    """The hooks that see the clean estimates of a model call, in the order they run."""
    hooks: list[Callable[[dict], Tensor]] = kwargs.get("model_options", {}).get(POST_CFG, [])
    return hooks


def inpainting_mask(model: Any, sigmas: Tensor, kwargs: dict) -> Tensor | None:
    """The denoiser's share of the clean estimate in this call, or None if that is all of it."""
    mask = kwargs.get("denoise_mask")
    change_mask = kwargs.get("model_options", {}).get("denoise_mask_function")
    if mask is None or change_mask is None:
        return mask
    changed: Tensor = change_mask(
        sigmas, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas}
    )
    return changed
