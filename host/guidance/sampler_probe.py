"""Dry runs of a sampler: which model call begins each step, and where the sampler keeps its state."""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..gradient.random_state import random_state_kept
from .guided_model import GuidedModel, SamplerPlan
from .refused_samplers import OTHERS, refusal, sampler_name, sampler_refusal

NOT_FOLLOWED = "in a dry run it did not follow a change of the latent as it should"

# Samplers are tested on one fixed schedule: this many steps that halve sigma, then one to zero. So the result does not
# depend on the user's schedule, and steps this coarse show clearly what a sampler remembers.
HALVINGS = 9

# By this step the model's first output acts only through the state: known samplers remember at most four outputs.
LATE = 4


def probe_sampler(function: Callable, sigmas: Tensor, options: dict, model: Any) -> SamplerPlan:
    """Find out how a sampler function calls the model, by dry runs on a few numbers. Leaves global random states alone.

    Samplers call the model once or several times per step, possibly at the same sigma, and report each step after its
    first call.

    Args:
        sigmas: the schedule. options: the sampler's own arguments.
        model: what the host passes to sampler functions; only its attributes are read.

    Raises:
        ValueError: the sampler cannot be guided; names the sampler and the reason.
    """
    if known := sampler_refusal(function):
        raise ValueError(known)
    name = sampler_name(function)
    try:
        dry = _DryRuns(function, options, model)
        run, alone = dry.run(sigmas, factor(0.5)), dry.run(sigmas, factor(0.0))
        why = _fault(run, alone, sigmas)
        carry = None
        if why is None and run.first:
            test = _StateTest(dry, sigmas.max())
            if not test.keeps_no_copy():
                carry = _carry(alone, dry.run(sigmas, factor(0.0), start=2.0))
                why = None if test.can_be_carried() else NOT_FOLLOWED
    except _CannotBeGuided as error:
        why = str(error)
    except Exception as error:
        raise ValueError(
            f"JEPA guidance cannot tell how the sampler {name!r} runs ({type(error).__name__}: {error}). {OTHERS}"
        ) from error
    if why is not None:
        raise ValueError(refusal(name, why))
    steps = {call: step for step, call in enumerate(run.first)}
    seen = [*(run.sigmas[call] for call in steps), float(sigmas[-1])]
    return SamplerPlan(steps, seen, carry)


def check_order(plan: SamplerPlan, call: int, step: int, function: Callable) -> None:
    """Raise RuntimeError unless a sampler reports a step after its first model call, as in its dry run.

    Args:
        call: the last one, from 0. step: that the sampler reports.
    """
    if plan.first.get(call) != step:
        raise RuntimeError(
            f"JEPA guidance: the sampler {sampler_name(function)!r} runs in another order than in its dry run, so "
            f"its steps cannot be guided. {OTHERS}"
        )


class _CannotBeGuided(Exception):
    """What a dry run found; the message is the reason."""


def _fault(run: "_Run", alone: "_Run", sigmas: Tensor) -> str | None:
    """Why the steps of a sampler cannot be identified, given two runs with different model outputs; or None."""
    if run.first != alone.first:
        return "its steps depend on the image"
    if not run.first and len(sigmas) > 1:
        return "it does not report its steps"
    return None


def _carry(alone: "_Run", doubled: "_Run") -> list[float]:
    """SamplerPlan.carry, from two runs with different starts; 0 where the start no longer matters."""
    moved = [two - one for one, two in zip(alone.course, doubled.course, strict=True)]
    return [1.0, *(after / before if before else 0.0 for before, after in pairwise(moved))]


# (the model's input, sigma, index of the call) -> the model's output
Answer = Callable[[Tensor, Tensor, int], Tensor]


def factor(size: float) -> Answer:
    """A model whose output is its input times `size`."""
    return lambda x, sigma, call: x * size


class _Run(NamedTuple):
    """One dry run.

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


class _DryRuns:
    """Runs a sampler function without noise on a latent of four equal numbers; some samplers fail on a single one."""

    def __init__(self, function: Callable, options: dict, model: Any) -> None:
        self.function = function
        self.model = model
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
    ) -> _Run:
        """Run the sampler once.

        Args:
            start: the initial state, in units of the first sigma.
            writes: {index of a call: the number that the model writes into its input}.
            wrap: wraps the model before the sampler gets it.
        """
        stub = _Stub(self.model, answer, writes or {})
        model = wrap(stub)
        x = torch.ones(1, 1, 2, 2, device=sigmas.device) * sigmas[0] * start
        options = self.options | ({"noise_sampler": lambda *_: torch.zeros_like(x)} if self.silent else {})
        first: list[int] = []
        arguments = {"model_options": {"transformer_options": {}}, "seed": 0}
        with random_state_kept(sigmas.device):
            # clones: some samplers write into their arguments
            result = self.function(
                model,
                x.clone(),
                sigmas.clone(),
                extra_args=arguments,
                callback=lambda report: first.append(len(stub.states) - 1),
                disable=True,
                **options,
            )
        if isinstance(model, GuidedModel):
            result = model.result(result)
        return _Run(stub.states, stub.sigmas, first, float(result.flatten()[0]))


class _Stub:
    """The model of a dry run."""

    def __init__(self, model: Any, answer: Answer, writes: dict[int, float]) -> None:
        self._model = model
        self._answer = answer
        self._writes = writes
        self.states: list[float] = []
        self.sigmas: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict | None = None, **_: Any) -> Tensor:
        call = len(self.states)
        self.states.append(float(x.flatten()[0]))
        self.sigmas.append(float(sigma.flatten()[0]))
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


class _StateTest:
    """Finds out by dry runs where a sampler keeps its state."""

    def __init__(self, dry: _DryRuns, highest: Tensor) -> None:
        self.dry = dry
        # at least 1, where flow models begin: the formulas of some samplers lose precision far below
        halves = highest.clamp(min=1.0) * 0.5 ** torch.arange(HALVINGS + 1, device=highest.device)
        self.sigmas = torch.cat([halves, halves.new_zeros(1)])
        self.alone = dry.run(self.sigmas, factor(0.0))
        self.first = self.alone.first

    def run(self, answer: Answer, start: float = 1.0, **settings: Any) -> _Run:
        run = self.dry.run(self.sigmas, answer, start, **settings)
        if run.first != self.first:
            raise _CannotBeGuided("its steps depend on the latent")
        return run

    def keeps_no_copy(self) -> bool:
        """Whether the tensor passed to the model is the sampler's whole state.

        The model writes into it, and then the old values must not matter any more.
        """
        return self._forgets_its_start() and all(map(self._sees_writes, self._undecided()))

    def _forgets_its_start(self) -> bool:
        """Whether two runs agree from the first step on if they are made equal there, before anything is remembered."""
        writes = {0: self.alone.states[0]}
        one, other = (self.run(factor(0.5), start, writes=writes) for start in (1.0, 2.0))
        return all(self._agree(one, other, step) for step in range(1, len(self.first) + 1))

    def _undecided(self) -> list[int]:
        """The steps for which it stays open whether a copy is kept.

        Two different runs are made equal at every second step, and must then agree. They may differ in the outputs or
        derivatives that they remember: with outputs of zero all outputs are equal, with outputs equal to the state all
        derivatives are. For a sampler that remembers both, the steps stay open.
        """
        steps = range(len(self.first))
        proven: set[int] = set()
        for answer in (factor(0.0), factor(1.0)):
            for parity in (0, 1):
                one, other = (self._made_equal(answer, parity, size) for size in (1.0, 2.0))
                proven |= {step for step in steps[parity::2] if self._agree(one, other, step + 1)}
            if len(proven) == len(steps):
                break
        return [step for step in steps if step not in proven]

    def _sees_writes(self, step: int) -> bool:
        """Whether the next step sees what the model writes in this one."""
        call = self.first[step]
        changed = self.run(factor(0.0), writes={call: 2 * self.alone.states[call]})
        return not self._agree(changed, self.alone, step + 1)

    def _made_equal(self, answer: Answer, parity: int, size: float) -> _Run:
        """A run scaled by `size`, but of size 1 at every second step."""
        writes = {
            call: self.alone.sigmas[call] * (1.0 if step % 2 == parity else size)
            for step, call in enumerate(self.first)
        }
        return self.run(answer, size, writes=writes)

    def _agree(self, one: _Run, other: _Run, step: int) -> bool:
        """Whether the states of two runs agree at the start of a step; false if they are not finite."""
        a, b = one.course[step], other.course[step]
        return abs(a - b) <= 1e-5 * max(abs(a), abs(b), 0.1 * self.alone.sigmas[self.first[step - 1]])

    def can_be_carried(self) -> bool:
        """Whether GuidedModel works for a sampler that keeps a copy.

        A run with another start and another first output is moved onto a plain run, and must then agree with it.
        """
        if len(self.first) <= LATE:
            return False

        def answer(first: float) -> Answer:
            return lambda x, sigma, call: x * 0 + sigma.flatten()[0] * (1.0 if call else first)

        plain, apart = self.run(answer(1.0), 2.0), self.run(answer(-1.0))
        carry = _carry(self.alone, self.run(factor(0.0), 2.0))
        plan = SamplerPlan({call: step for step, call in enumerate(self.first)}, [], carry)

        def move(model: Any, x: Tensor, sigma: Tensor, kwargs: dict, step: int) -> Tensor:
            return model(x.fill_(plain.course[step]), sigma, **kwargs)

        moved = self.run(answer(-1.0), wrap=lambda model: GuidedModel(model, plan, [LATE], move))
        # runs that converge by themselves prove nothing
        far = abs(plain.course[LATE] - apart.course[LATE]) > 1e-2 * abs(plain.course[LATE])
        return far and all(self._agree(moved, plain, step) for step in range(LATE, len(self.first) + 1))
