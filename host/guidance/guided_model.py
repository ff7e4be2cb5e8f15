"""What stands in for the model inside a guided sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class SamplerPlan(NamedTuple):
    """How a sampler will run.

    Attributes:
        first: {index of the model call: step}, for the call that begins each step.
        sigmas: sigma at each of these calls, then the last of the schedule.
        carry: None for a sampler that gives its own state to the model, so that a change of it in place is a change
            of the state. For one that keeps a copy: which part of the state at a step's first call comes from
            the state at the one before (1 at the first), then which part of the result from the last.
    """

    first: dict[int, int]
    sigmas: list[float]
    carry: list[float] | None

    @property
    def steps(self) -> int:
        return len(self.first)


class GuidedModel:
    """Stands in for the model inside a sampler function; shifts the sampler's state where a guided step begins.

    Most samplers pass their own state, and changing it in place is enough. For those that keep a copy it
    remembers how far the state should lie from the copy (`offset`), and answers for the state.
    """

    def __init__(
        self,
        model: Any,
        plan: SamplerPlan,
        guided: list[int],
        guide: Callable[[Any, Tensor, Tensor, dict, int], Tensor],
    ):
        self._model = model
        self._rehearsal = plan
        self._guided = guided
        self._guide = guide
        self._offset: Tensor | None = None
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        step = self._rehearsal.first.get(self.calls)
        self.calls += 1
        carry = self._rehearsal.carry
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
        """What the sampler's result should be, from what it is."""
        if self._offset is None or self._rehearsal.carry is None:
            return x
        return x - self._rehearsal.carry[-1] * self._offset
