"""The model that a guided sampler calls."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class SamplerPlan(NamedTuple):
    """How a sampler calls the model.

    Attributes:
        first: {index of the model call: step}, for the first call of each step.
        sigmas: sigma at each of these calls, then the last sigma of the schedule.
        carry: None for a sampler that passes its own state to the model, where changing it in place is enough. For a
            sampler that keeps a copy: for each step, the factor of the previous step's state in the state at its first
            call (1 for the first step), then the factor of the last state in the result.
    """

    first: dict[int, int]
    sigmas: list[float]
    carry: list[float] | None

    @property
    def steps(self) -> int:
        return len(self.first)


def holds(shape: Sequence[int], first: Sequence[int]) -> bool:
    """Whether a latent is whole, not a part of the first one; some samplers enlarge it as they go."""
    return all(now >= before for now, before in zip(shape, first, strict=True))


class GuidedModel:
    """Takes the place of the model inside a sampler function, and shifts the sampler's state at each guided step.

    Most samplers pass their own state, and changing it in place is enough. If a sampler keeps a copy, this remembers
    the difference between the copy and the shifted state (`offset`), and evaluates the model at the shifted state.

    Args:
        guided: the guided steps. guide: answers at the first call of these.
        calls: how many model calls there were before.

    Attributes:
        calls: model calls so far.
        last: the last one with the whole latent, from 0; None before.
    """

    __slots__ = ("_guide", "_guided", "_model", "_offset", "_plan", "_shape", "calls", "last")

    def __init__(
        self,
        model: Any,
        plan: SamplerPlan,
        guided: list[int],
        guide: Callable[[Any, Tensor, Tensor, dict, int], Tensor],
        calls: int = 0,
    ):
        self._model = model
        self._plan = plan
        self._guided = guided
        self._guide = guide
        self._offset: Tensor | None = None
        self.calls = calls
        self.last: int | None = None
        self._shape: tuple[int, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What a sampler sets on the model, such as a schedule of its own, is set there."""
        if name in self.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self._model, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        step = self._plan.first.get(self.calls)
        self._shape = self._shape or tuple(x.shape)  # every sampler begins with the whole latent
        if holds(x.shape, self._shape):
            self.last = self.calls
        self.calls += 1
        carry = self._plan.carry
        if carry is None:
            return self._answer(x, sigma, kwargs, step)
        if step is not None and self._offset is not None:
            self._offset = carry[step] * self._offset
        state = x.clone() if self._offset is None else x - self._offset
        answer = self._answer(state, sigma, kwargs, step)
        if step in self._guided:
            self._offset = x - state
        return answer

    def _answer(self, x: Tensor, sigma: Tensor, kwargs: dict, step: int | None) -> Tensor:
        if step in self._guided:
            return self._guide(self._model, x, sigma, kwargs, step)
        return self._model(x, sigma, **kwargs)

    def result(self, x: Tensor) -> Tensor:
        """The sampler's result with the shifts applied."""
        if self._offset is None or self._plan.carry is None:
            return x
        return x - self._plan.carry[-1] * self._offset
