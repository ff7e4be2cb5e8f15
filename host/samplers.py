"""What guidance has to know of a sampler: which model call begins which step, and where it keeps its state."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# By the name of their function: samplers that pass to the model a tensor of their own making, or one whose change
# they lose again. All of them carry their state from step to step by a factor, whatever the model answers.
KEEPS_A_COPY = {"sample_unipc", "sample_unipc_bh2", "sample_sa_solver", "sample_sa_solver_pece"}
# By the name of their function: the sampler's own name, and why no step of it can be guided.
REFUSED = {
    "dpm_adaptive_function": (
        "dpm_adaptive",
        "it chooses its steps as it goes, so none has a fixed place in the run",
    ),
    "sample_ar_video": ("ar_video", "it makes a video block by block"),
}
OTHERS = "Choose another, for instance euler, dpmpp_2m or uni_pc."


class Rehearsal(NamedTuple):
    """How a sampler will run.

    Attributes:
        first: {index of the model call: step}, for the call that begins each step.
        sigmas: sigma at each of these calls, then the last of the schedule.
        carry: None for a sampler whose own state reaches the model, so that a change of it in place is a change
            of the state. For one of KEEPS_A_COPY: which part of the state at a step's first call comes from
            the state at the one before (1 at the first), then which part of the result from the last.
    """

    first: dict[int, int]
    sigmas: list[float]
    carry: list[float] | None

    @property
    def steps(self) -> int:
        return len(self.first)


def sampler_name(function: Callable) -> str:
    """The name of a sampler function as a user knows it."""
    return getattr(function, "__name__", type(function).__name__).removeprefix("sample_")


def sampler_refusal(function: Callable) -> str | None:
    """Why this sampler cannot be guided, or None."""
    if getattr(function, "__name__", "") not in REFUSED:
        return None
    name, why = REFUSED[function.__name__]
    return f"JEPA guidance does not support the sampler {name!r}: {why}. {OTHERS}"


def rehearse(function: Callable, sigmas: Tensor, options: dict, model: Any) -> Rehearsal:
    """Run a sampler function on one number, to see how it calls the model. Touches no global random state.

    Samplers call the model once or several times a step, at sigmas that repeat, and report each step after its
    first call.

    Args:
        sigmas: the schedule. options: the sampler's own arguments.
        model: what the host passes to sampler functions; only its attributes are read.

    Raises:
        ValueError: the sampler cannot be guided; says why and names it.
    """
    refusal = sampler_refusal(function)
    if refusal:
        raise ValueError(refusal)
    name = sampler_name(function)
    # a noise sampler made for the real latent would be advanced by a rehearsal
    options = {key: value for key, value in options.items() if key != "noise_sampler"}
    try:
        run = _play(function, sigmas, options, model, answer=0.5)
        # An answer of zero and no noise show what the state alone becomes, and steps that depend on the image.
        if "noise_sampler" in inspect.signature(function).parameters:
            options = options | {"noise_sampler": lambda *_: torch.zeros(1, 1, 1, 1, device=sigmas.device)}
        alone = _play(function, sigmas, options, model, answer=0.0)
    except Exception as error:
        raise ValueError(
            f"JEPA guidance cannot tell how the sampler {name!r} runs ({type(error).__name__}: {error}). {OTHERS}"
        ) from error
    if list(run.first) != list(alone.first):
        raise ValueError(
            f"JEPA guidance does not support the sampler {name!r}: its steps depend on the image. {OTHERS}"
        )
    if not run.first and len(sigmas) > 1:
        raise ValueError(
            f"JEPA guidance does not support the sampler {name!r}: it does not report its steps. {OTHERS}"
        )
    # the host's own are tested one by one, and some of them report another tensor
    known = getattr(function, "__module__", "").startswith("comfy.")
    keeps = known and function.__name__ in KEEPS_A_COPY
    if not known and not run.own_state:
        raise ValueError(
            f"JEPA guidance does not support the sampler {name!r}: it keeps a copy of the latent that the "
            f"guidance cannot change. {OTHERS}"
        )
    steps = {call: step for step, call in enumerate(run.first)}
    seen = [*(run.sigmas[call] for call in steps), float(sigmas[-1])]
    return Rehearsal(steps, seen, _carry(alone) if keeps else None)


def _carry(alone: "_Play") -> list[float]:
    states = [*(alone.states[call] for call in alone.first), alone.result]
    return [1.0, *(after / before for before, after in pairwise(states))]


class _Play(NamedTuple):
    """One run on one number: x and sigma of every model call, the calls that began a step, and the result.

    own_state: whether the tensors that these calls were given are the states that the sampler reported.
    """

    states: list[float]
    sigmas: list[float]
    first: list[int]
    own_state: bool
    result: float


def _play(function: Callable, sigmas: Tensor, options: dict, model: Any, answer: float) -> _Play:
    states: list[float] = []
    seen: list[float] = []
    first: list[int] = []
    own_state = True
    last = torch.empty(0)

    class OneNumber:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def __call__(self, x: Tensor, sigma: Tensor, model_options: dict | None = None, **_: Any) -> Tensor:
            nonlocal last
            last = x
            states.append(float(x.flatten()[0]))
            seen.append(float(sigma.flatten()[0]))
            denoised = x * answer
            # samplers of the cfg++ kind take the unconditional estimate from this hook
            for hook in (model_options or {}).get("sampler_post_cfg_function", []):
                keys = ("denoised", "cond_denoised", "uncond_denoised", "input")
                denoised = hook(dict.fromkeys(keys, denoised) | {"sigma": sigma, "cond_scale": 1.0})
            return denoised

    def note(report: dict) -> None:
        nonlocal own_state
        first.append(len(states) - 1)
        own_state &= report["x"].data_ptr() == last.data_ptr()

    x = torch.ones(1, 1, 1, 1, device=sigmas.device) * sigmas[0]
    arguments = {"model_options": {"transformer_options": {}}, "seed": 0}
    with _random_state_kept(sigmas.device):
        # a clone: some samplers write into their arguments
        result = function(
            OneNumber(), x, sigmas.clone(), extra_args=arguments, callback=note, disable=True, **options
        )
    return _Play(states, seen, first, own_state, float(result.flatten()[0]))


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the global random states of the processor and of `device` back after the block."""
    accelerator: Any = None if device.type == "cpu" else torch.get_device_module(device)
    before = accelerator and accelerator.get_rng_state()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        if accelerator:
            accelerator.set_rng_state(before)


class GuidedModel:
    """Stands in for the model inside a sampler function; shifts the sampler's state where a guided step begins.

    Most samplers pass their own state, and changing it in place is enough. For those that keep a copy it
    remembers how far the state should lie from the copy (`offset`), and answers for the state.
    """

    def __init__(
        self,
        model: Any,
        rehearsal: Rehearsal,
        guided: list[int],
        guide: Callable[[Any, Tensor, Tensor, dict, int], Tensor],
    ):
        self._model = model
        self._rehearsal = rehearsal
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
