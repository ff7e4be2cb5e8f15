"""Dry runs of a sampler function: on a small latent, with a model that costs nothing."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..gradient.random_state import random_state_kept
from .guided_model import GuidedModel, holds

# Height and width of the latent: samplers of other packs blur it, pad it, or call the model on every other pixel.
SIDE = 32

# (the model's input, sigma, index of the call) -> the model's output
Answer = Callable[[Tensor, Tensor, int], Tensor]


def factor(size: float) -> Answer:
    """A model whose output is its input times `size`."""
    return lambda x, sigma, call: x * size


class Run(NamedTuple):
    """One dry run. A latent is represented by the number in its middle.

    Attributes:
        states, sigmas: the model's arguments at every call.
        first: the first call of each step.
        result: the sampler's result.
    """

    states: list[float]
    sigmas: list[float]
    first: list[int]
    result: float

    @property
    def course(self) -> list[float]:
        """The state at the first call of each step, then the result."""
        return [*(self.states[call] for call in self.first), self.result]


class DryRuns:
    """Runs a sampler function without noise on a latent of equal numbers.

    Args:
        shape: of the real latent (B, C, ...); channels and frames of the dry one are the same.
        options: the sampler's own arguments. model: what the host passes to sampler functions.
        side: height and width of the latent; None for those of the real one.
    """

    def __init__(
        self, function: Callable, shape: Sequence[int], options: dict, model: Any, side: int | None = SIDE
    ) -> None:
        self.function = function
        self.model = model
        self.shape = (1, *shape[1:]) if side is None else (1, *shape[1:-2], side, side)
        # a dry run would advance a noise sampler made for the real latent
        self.options = {key: value for key, value in options.items() if key != "noise_sampler"}
        self.silent = "noise_sampler" in inspect.signature(function).parameters

    def run(
        self,
        sigmas: Tensor,
        answer: Answer,
        start: float = 1.0,
        writes: dict[int, float] | None = None,
        wrap: Callable[[Any], Any] = lambda model: model,
    ) -> Run:
        """Run the sampler once.

        Args:
            start: the initial state, in units of the first sigma.
            writes: {index of a call: the number that the model writes into its input}.
            wrap: wraps the model before the sampler gets it.
        """
        calls = _Calls()
        model = wrap(_Stub(self.model, self.shape, answer, writes or {}, calls))
        x = torch.ones(self.shape, device=sigmas.device) * sigmas[0] * start
        options = self.options | ({"noise_sampler": lambda *_: torch.zeros_like(x)} if self.silent else {})
        first: list[int] = []

        def report(_: dict) -> None:
            # a step is counted by its model calls: other packs number their reports from 1, or in parts
            if calls.last is not None and calls.last not in first[-1:]:
                first.append(calls.last)

        arguments = {"model_options": {"transformer_options": {}}, "seed": 0}
        with random_state_kept(sigmas.device):
            # clones: some samplers write into their arguments
            result = self.function(
                model,
                x.clone(),
                sigmas.clone(),
                extra_args=arguments,
                callback=report,
                disable=True,
                **options,
            )
        if isinstance(model, GuidedModel):
            result = model.result(result)
        return Run(calls.states, calls.sigmas, first, middle(result))


def middle(x: Tensor) -> float:
    """The number in the middle of a latent: what a sampler pads or blurs at the edges is farthest from it."""
    height, width = x.shape[-2:]
    return float(x[..., height // 2, width // 2].flatten()[0])


@dataclass
class _Calls:
    """The model calls of a dry run.

    Attributes:
        states, sigmas: as in Run.
        last: the last call with the whole latent; others, on parts of it, begin no step.
    """

    states: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    last: int | None = None


class _Stub:
    """The model of a dry run. What a sampler sets on it, such as `sigmas`, does not reach the real one."""

    def __init__(
        self, model: Any, shape: Sequence[int], answer: Answer, writes: dict[int, float], calls: _Calls
    ) -> None:
        self._model = model
        self._shape = tuple(shape)
        self._answer = answer
        self._writes = writes
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict | None = None, **_: Any) -> Tensor:
        calls = self._calls
        call = len(calls.states)
        if holds(x.shape, self._shape):
            calls.last = call
        calls.states.append(middle(x))
        calls.sigmas.append(float(sigma.flatten()[0]))
        if call in self._writes:
            x.fill_(self._writes[call])
        denoised = self._answer(x, sigma, call)
        # cfg++ samplers take the unconditional estimate from such a hook
        for hook in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = hook(self._hook_arguments(x, sigma, denoised, model_options))
        return denoised

    def _hook_arguments(self, x: Tensor, sigma: Tensor, denoised: Tensor, model_options: dict | None) -> dict:
        """The arguments that the host passes to a post-CFG hook."""
        guider = getattr(self._model, "inner_model", None)
        conds = getattr(guider, "conds", {})
        return {
            **dict.fromkeys(("denoised", "cond_denoised", "uncond_denoised"), denoised),
            "cond": conds.get("positive"),
            "uncond": conds.get("negative"),
            "cond_scale": getattr(guider, "cfg", 1.0),
            "model": getattr(guider, "inner_model", None),
            "sigma": sigma,
            "model_options": model_options,
            "input": x,
        }
