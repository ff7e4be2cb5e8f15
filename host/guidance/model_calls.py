"""Model calls within a guided step: what patches of other nodes remember of them, and what hooks are told."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .patch_state import PatchState

POST_CFG = "sampler_post_cfg_function"


class StepCalls:
    """Calls the model as often as a guided step needs; patches remember the sampler's own call and no other.

    Args:
        model: what the sampler calls. network: the denoiser's.
        kwargs: the arguments of the sampler's call.
        first_is_samplers: whether the first call here stands for the sampler's own.
    """

    def __init__(self, model: Any, network: nn.Module, kwargs: dict, first_is_samplers: bool) -> None:
        self._model = model
        self._network = network
        self._first_is_samplers = first_is_samplers
        self._made = 0
        self._before = self._state(kwargs)

    def __call__(self, x: Tensor, sigmas: Tensor, kwargs: dict) -> Tensor:
        """Return the clean estimate."""
        samplers_own = self._first_is_samplers and not self._made
        state = None if samplers_own else self._state(kwargs)
        answer: Tensor = self._model(x, sigmas, **kwargs)
        if state:
            state.put_back()
        self._made += 1
        return answer

    def undo(self) -> None:
        """Have patches remember what they did before the step."""
        self._before.put_back()
        self._made = 0

    def _state(self, kwargs: dict) -> PatchState:
        return PatchState(kwargs.get("model_options", {}), self._network)


class HookListener:
    """A post-CFG hook that keeps what it is told at the first model call after `forget`.

    Attributes:
        told: the host's arguments for such hooks.
    """

    def __init__(self) -> None:
        self.told: dict = {}

    def __call__(self, args: dict) -> Tensor:
        if not self.told:
            self.told = args
        denoised: Tensor = args["denoised"]
        return denoised

    def forget(self) -> None:
        """Let go of it: it holds the options, which hold this hook."""
        self.told = {}

    def added_to(self, kwargs: dict) -> dict:
        """The arguments of a model call with this hook after the others."""
        options = {**kwargs["model_options"], POST_CFG: [*post_cfg_hooks(kwargs), self]}
        return {**kwargs, "model_options": options}


def post_cfg_hooks(kwargs: dict) -> list[Callable[[dict], Tensor]]:
    """The hooks that see a model call's clean estimates, in the order they run."""
    hooks: list[Callable[[dict], Tensor]] = kwargs.get("model_options", {}).get(POST_CFG, [])
    return hooks


def inpainting_mask(model: Any, sigmas: Tensor, kwargs: dict) -> Tensor | None:
    """What share of the clean estimate this call leaves to the denoiser, or None when it is all of it."""
    mask = kwargs.get("denoise_mask")
    change_mask = kwargs.get("model_options", {}).get("denoise_mask_function")
    if mask is None or change_mask is None:
        return mask
    changed: Tensor = change_mask(
        sigmas, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas}
    )
    return changed
