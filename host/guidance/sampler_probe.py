"""What dry runs tell about a sampler: which model call begins each step, and where the sampler keeps its state."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .dry_run import Answer, DryRuns, Run, factor
from .guided_model import GuidedModel, SamplerPlan
from .refused_samplers import OTHERS, refusal, sampler_name, sampler_refusal

NOT_FOLLOWED = "in a dry run it did not follow a change of the latent as it should"

# Samplers are tested on one fixed schedule: this many steps that halve sigma, then one to zero. So the result does not
# depend on the user's schedule, and steps this coarse show clearly what a sampler remembers.
HALVINGS = 9

# By this step the model's first output acts only through the state: known samplers remember at most four outputs.
LATE = 4


def probe_sampler(
    sampler: Any, sigmas: Tensor, options: dict, model: Any, shape: Sequence[int]
) -> SamplerPlan:
    """Find out how a sampler calls the model, by dry runs on a small latent. Leaves global random states alone.

    Samplers call the model once or several times per step, possibly at the same sigma, and report each step after its
    first call.

    Args:
        sampler: the host's KSAMPLER. sigmas: the schedule. options: the arguments of the sampler's function.
        model: what the host passes to sampler functions; only its attributes are read.
        shape: of the latent, (B, C, ..., height, width).

    Raises:
        ValueError: the sampler cannot be guided; names the sampler and the reason.
    """
    if known := sampler_refusal(sampler):
        raise ValueError(known)
    function = sampler.sampler_function
    try:
        try:
            return _plan(DryRuns(function, shape, options, model), sigmas)
        except _CannotBeGuided:
            raise
        except Exception:
            # a sampler may hold something of the latent's size, such as a mask
            return _plan(DryRuns(function, shape, options, model, side=None), sigmas)
    except _CannotBeGuided as error:
        raise ValueError(refusal(sampler_name(sampler), str(error))) from error
    except Exception as error:
        raise ValueError(
            f"JEPA guidance cannot tell how the sampler {sampler_name(sampler)} runs ({type(error).__name__}: {error}). "
            f"{OTHERS}"
        ) from error


class StepCount:
    """The steps that a sampler reports in a run, by the model calls before; other packs number their reports otherwise.

    Args:
        sampler: the host's KSAMPLER, for its name.
    """

    def __init__(self, plan: SamplerPlan, sampler: Any) -> None:
        self._plan = plan
        self._sampler = sampler
        self._done = 0

    def reported(self, call: int | None) -> int | None:
        """The step that a report completes, from 0; None for a report without a new model call.

        Args:
            call: the last model call with the whole latent, from 0; None before the first.

        Raises:
            RuntimeError: the sampler does not run as in its dry run.
        """
        if call is None or (self._done and self._plan.first.get(call) == self._done - 1):
            return None
        if self._plan.first.get(call) != self._done:
            raise RuntimeError(
                f"JEPA guidance: the sampler {sampler_name(self._sampler)} runs in another order than in its dry run, so "
                f"its steps cannot be guided. {OTHERS}"
            )
        self._done += 1
        return self._done - 1


def _plan(dry: DryRuns, sigmas: Tensor) -> SamplerPlan:
    """Raises _CannotBeGuided, or what the sampler raises."""
    run, alone = dry.run(sigmas, factor(0.5)), dry.run(sigmas, factor(0.0))
    if run.first != alone.first:
        raise _CannotBeGuided("its steps depend on the image")
    if not run.first and len(sigmas) > 1:
        raise _CannotBeGuided("it does not report its steps")
    carry = None
    if run.first:
        test = _StateTest(dry, sigmas.max())
        if not test.keeps_no_copy():
            carry = _carry(alone, dry.run(sigmas, factor(0.0), start=2.0))
            if not test.can_be_carried():
                raise _CannotBeGuided(NOT_FOLLOWED)
    steps = {call: step for step, call in enumerate(run.first)}
    seen = [*(run.sigmas[call] for call in steps), float(sigmas[-1])]
    return SamplerPlan(steps, seen, carry)


class _CannotBeGuided(Exception):
    """What a dry run found; the message is the reason."""


def _carry(alone: Run, doubled: Run) -> list[float]:
    """SamplerPlan.carry, from two runs with different starts; 0 where the start no longer matters."""
    moved = [two - one for one, two in zip(alone.course, doubled.course, strict=True)]
    return [1.0, *(after / before if before else 0.0 for before, after in pairwise(moved))]


class _StateTest:
    """Finds out by dry runs where a sampler keeps its state."""

    def __init__(self, dry: DryRuns, highest: Tensor) -> None:
        self.dry = dry
        # at least 1, where flow models begin: the formulas of some samplers lose precision far below
        halves = highest.clamp(min=1.0) * 0.5 ** torch.arange(HALVINGS + 1, device=highest.device)
        self.sigmas = torch.cat([halves, halves.new_zeros(1)])
        self.alone = dry.run(self.sigmas, factor(0.0))
        self.first = self.alone.first

    def run(self, answer: Answer, start: float = 1.0, **settings: Any) -> Run:
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

    def _made_equal(self, answer: Answer, parity: int, size: float) -> Run:
        """A run scaled by `size`, but of size 1 at every second step."""
        writes = {
            call: self.alone.sigmas[call] * (1.0 if step % 2 == parity else size)
            for step, call in enumerate(self.first)
        }
        return self.run(answer, size, writes=writes)

    def _agree(self, one: Run, other: Run, step: int) -> bool:
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
