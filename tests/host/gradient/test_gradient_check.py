"""The gradient check finds wrong gradients, accepts right ones, and runs once."""

from __future__ import annotations

import functools
import itertools
import json
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jepa_guidance.host.gradient import gradient_check
from jepa_guidance.host.gradient.gradient_check import DENOISER, Comparison, GradientCheck, compare
from jepa_guidance.host.gradient.linearise import linearised
from jepa_guidance.host.guidance.patch_state import PatchState
from jepa_guidance.host.guidance.schedule import Schedule
from torch import Tensor

from tests.combinations import covering
from tests.host.families import FAMILIES, Family
from tests.host.guidance.test_families import SUPPORTED, encoder_of, guided, sample

HALVES = (torch.float32, torch.float16, torch.bfloat16)


# --- the comparison -------------------------------------------------------------------------------------------------


def matrix(seed: int, size: int = 40) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def comparison(function: Callable[[Tensor], Tensor], pulled: Callable[[Tensor], Tensor]) -> Comparison:
    """Compare the values of one function with the gradient of another."""
    x = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with linearised(pulled, x) as (_, pull):
        return compare(function, x, function(x), pull, pull(torch.ones_like(x), keep=True), 1e-4)


def test_a_right_gradient_agrees_to_the_curvature():
    weights = matrix(2)
    found = comparison(lambda x: torch.tanh(weights @ x / 7), lambda x: torch.tanh(weights @ x / 7))
    assert found.ratio == pytest.approx(1, abs=1e-6)
    assert not found.falls_short
    assert not found.goes_beyond


def test_a_missing_part_with_other_inputs_and_outputs_is_found():
    """The missing part shares no input and no output with the rest."""
    rest, part = torch.zeros(40, 40).double(), torch.zeros(40, 40).double()
    rest[:20, :20], part[20:, 20:] = matrix(3, 20), matrix(4, 20)
    found = comparison(lambda x: (rest + part) @ x, lambda x: rest @ x)
    # a comparison along the gradient alone would show nothing
    assert 0.2 < found.ratio < 0.9
    assert found.falls_short or found.goes_beyond


@pytest.mark.parametrize("share", [0.0, 2.0, -1.0])
def test_a_gradient_of_another_size_or_sign_is_found(share):
    weights = matrix(5)
    found = comparison(lambda x: weights @ x, lambda x: share * (weights @ x))
    assert found.ratio == pytest.approx(share)
    assert found.falls_short or found.goes_beyond


def test_a_cached_output_is_found_unless_the_gradient_is_zero():
    weights = matrix(6)
    answer = weights @ torch.ones(40).double()
    assert comparison(lambda x: answer, lambda x: weights @ x).goes_beyond
    assert comparison(lambda x: answer, lambda x: answer + 0 * x).ratio == 1


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 0.03), (torch.bfloat16, 0.1)])
def test_half_precision_agrees_within_the_measured_noise(dtype, step):
    weights = (matrix(7, 64) / 8).to(dtype)
    x = torch.randn(64, generator=torch.Generator().manual_seed(8)).to(dtype)

    def function(x: Tensor) -> Tensor:
        return torch.tanh(weights @ x)

    with linearised(function, x) as (value, pull):
        found = compare(function, x, value, pull, x, step)
    assert not found.falls_short
    assert not found.goes_beyond
    assert found.noise < 0.2


# --- faults in a network --------------------------------------------------------------------------------------------


@contextmanager
def within_the_network(
    family: Family, owner: Any, name: str, replacement: Callable[..., Any]
) -> Iterator[None]:
    """Replace an attribute only while the denoiser's network runs."""
    network = family.model.model.diffusion_model
    forward = network.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, replacement)
            return forward(*args, **kwargs)

    network.forward = run
    yield
    del network.forward


@contextmanager
def attention_without_a_backward(family: Family) -> Iterator[None]:
    """Attention returns correct values without a gradient, as kernels for inference do."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def kernel(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return plain(q.detach(), k.detach(), v.detach(), *args, **kwargs)

    with within_the_network(family, torch.nn.functional, "scaled_dot_product_attention", kernel):
        yield


@contextmanager
def network_without_a_backward(family: Family) -> Iterator[None]:
    """The whole network is one kernel without a backward pass."""
    network = family.model.model.diffusion_model
    forward = network.forward
    network.forward = lambda x, *args, **kwargs: forward(x.detach(), *args, **kwargs).detach()
    yield
    del network.forward


@contextmanager
def a_cached_step(family: Family) -> Iterator[None]:
    """After its third call the network repeats the change that it made there, as step caches do."""
    network = family.model.model.diffusion_model
    forward = network.forward
    changes: list[Tensor] = []
    calls = 0

    def cached(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            last = changes[-1]
            return last + x[:, : last.shape[1]] if x.shape[2:] == last.shape[2:] else last.clone()
        answer = forward(x, *args, **kwargs)
        # some networks have more input channels than output channels, or another size
        before = x[:, : answer.shape[1]] if x.shape[2:] == answer.shape[2:] else 0
        changes[:] = [(answer - before).detach().clone()]
        return answer

    network.forward = cached
    yield
    del network.forward


@contextmanager
def a_buffer_that_is_used_again(family: Family) -> Iterator[None]:
    """Matrices of the same shape share a buffer, as streamed weights do: a backward pass reads those of the last layer."""
    plain = torch.nn.functional.linear
    buffers: dict[torch.Size, Tensor] = {}

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        memory = buffers.setdefault(weight.shape, weight.detach().clone())
        # a separate tensor over the same memory: autograd does not notice that later layers write there
        view = torch.empty(0, dtype=weight.dtype)
        view.set_(memory.untyped_storage(), 0, memory.shape, memory.stride())
        view.copy_(weight.detach())
        return plain(x, view, bias)

    with within_the_network(family, torch.nn.functional, "linear", linear):
        yield


FAULTS = [
    attention_without_a_backward,
    network_without_a_backward,
    a_cached_step,
    a_buffer_that_is_used_again,
]


@functools.cache
def family_in(name: str, dtype: torch.dtype, side: int | None = None) -> Family:
    family = FAMILIES[name](dtype)
    if side is None:
        return family
    channels = family.latent["samples"].shape[1]
    return replace(family, latent={"samples": torch.zeros(1, channels, side, side)})


def run_through(family: Family, **changes: Any) -> list[str]:
    """The notices of a guided run through the denoiser, after all earlier check results are dropped."""
    gradient_check._verdicts.clear()
    reports: list[Any] = []
    model = guided(
        family,
        encoder_of(),
        changes.pop("schedule", None),
        through_denoiser=True,
        report=reports.append,
    )
    sample(family, model, **{"steps": 4, **changes})
    return reports[-1].notices


@pytest.mark.parametrize(("name", "dtype"), covering(["sd15", "sdxl", "flux", "sd3"], HALVES), ids=str)
def test_nothing_is_wrong_with_a_sound_network(name, dtype):
    assert run_through(family_in(name, dtype)) == []


@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.long)])
@pytest.mark.parametrize(("fault", "dtype"), covering(FAULTS, HALVES))
def test_a_fault_is_caught_and_the_run_goes_on_with_the_denoiser_constant(name, fault, dtype):
    family = family_in(name, dtype, side=16)
    with fault(family):
        notices = run_through(family)
    assert len(notices) == 1, notices
    assert "denoiser constant (a different image than through the denoiser)" in notices[0]


# --- when it runs, and what it leaves behind --------------------------------------------------------------------------


class TenthOfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 0.1 * cotangent


def wrong_wrapper(function: Callable, arguments: dict) -> Tensor:
    return function(TenthOfTheGradient.apply(arguments["input"]), arguments["timestep"], **arguments["c"])


def with_a_wrong_wrapper(model: Any) -> Any:
    model = model.clone()
    model.set_model_unet_function_wrapper(wrong_wrapper)
    return model


def with_a_wrong_forward(model: Any) -> Any:
    model = model.clone()
    forward = model.get_model_object("diffusion_model").forward
    model.add_object_patch(
        "diffusion_model.forward",
        lambda x, *args, **kwargs: forward(TenthOfTheGradient.apply(x), *args, **kwargs),
    )
    return model


def notices_of(family: Family, model: Any = None, **changes: Any) -> list[str]:
    reports: list[Any] = []
    patched = guided(family, encoder_of(), model=model, through_denoiser=True, report=reports.append)
    sample(family, patched, steps=4, **changes)
    return reports[-1].notices


@pytest.mark.parametrize("patch", [with_a_wrong_wrapper, with_a_wrong_forward])
def test_another_patch_is_checked_again(patch):
    family = family_in("sd15", torch.float32, side=16)
    gradient_check._verdicts.clear()
    assert notices_of(family) == []
    (notice,) = notices_of(family, patch(family.model))
    assert "of the change that was measured: denoiser constant" in notice
    assert notices_of(family) == []


@pytest.mark.parametrize("fault", [attention_without_a_backward, a_buffer_that_is_used_again])
def test_a_small_mask_hides_no_fault_and_does_not_count_for_the_whole_image(fault):
    family = family_in("sd15", torch.float32, side=16)
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    masked = {**family.latent, "noise_mask": mask}
    gradient_check._verdicts.clear()
    assert notices_of(family, latent_image=masked) == []
    with fault(family):
        gradient_check._verdicts.clear()
        assert len(notices_of(family, latent_image=masked)) == 1
        gradient_check._verdicts.clear()
        gradient_check._verdicts.setdefault(family.model.model, {})
        assert len(notices_of(family)) == 1


def test_a_check_that_runs_out_of_memory_is_skipped(monkeypatch):
    family = family_in("sd15", torch.float32)
    expected = sample(family, guided(family, encoder_of(), through_denoiser=True), steps=4)
    gradient_check._verdicts.clear()

    def full(*_: Any) -> Comparison:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gradient_check, "compare", full)
    reports: list[Any] = []
    model = guided(family, encoder_of(), through_denoiser=True, report=reports.append)
    assert torch.equal(sample(family, model, steps=4), expected)
    assert reports[-1].notices == []
    assert not any(gradient_check._verdicts.values())


class Counting:
    """State as other packs keep it: in a nested object, in containers, in a random generator, behind a partial."""

    def __init__(self) -> None:
        self.inner = SimpleNamespace(count=0)
        self.seen: set[int] = set()
        self.order: deque[int] = deque()
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, offset: float, args: dict) -> Tensor:
        self.inner.count += 1
        self.seen.add(self.inner.count)
        self.order.append(self.inner.count)
        noise = torch.randn(1, generator=self.generator)
        return args["denoised"] * (
            1 + 0.01 * (len(self.seen) + len(self.order)) + 0.01 * float(noise) + offset
        )


@pytest.mark.parametrize("calls", ["one", "two"])
@pytest.mark.parametrize("fault", [None, network_without_a_backward])
def test_patches_with_state_make_the_same_image_whether_or_not_a_check_runs(calls, fault):
    family = family_in("sd15", torch.float32)
    images, notices = [], []
    gradient_check._verdicts.clear()
    with fault(family) if fault else nullcontext():
        for _ in ("checked", "remembered"):
            model = family.model.clone()
            model.set_model_sampler_post_cfg_function(functools.partial(Counting(), 0.0))
            reports: list[Any] = []
            settings = {"through_denoiser": True, "one_call": calls == "one", "report": reports.append}
            images.append(sample(family, guided(family, encoder_of(), model=model, **settings), steps=4))
            notices.append(reports[-1].notices)
    assert torch.equal(*images)
    assert notices[0] == notices[1]
    assert bool(notices[0]) == bool(fault)


def test_the_state_of_a_pack_whose_name_begins_like_this_ones_is_restored():
    count = 0

    def hook() -> int:
        nonlocal count
        count += 1
        return count

    class Nameless:
        __module__ = None  # type: ignore[assignment]
        calls = 0

    hook.__module__ = PatchState.__module__.partition(".")[0] + "_extras.nodes"
    holder = Nameless()
    state = PatchState({"hooks": [hook, holder]}, torch.nn.Identity())
    holder.calls = hook()
    state.put_back()
    assert (count, holder.calls) == (0, 0)


def test_python_modules_and_functions_without_one_are_left_alone():
    code = types.ModuleType("somewhere")
    code.flag = 1

    def hook() -> int:
        return code.flag

    nameless = types.FunctionType((lambda: None).__code__, {})
    state = PatchState({"hooks": [hook, nameless]}, torch.nn.Identity())
    code.flag = 2
    state.put_back()
    assert code.flag == 2


# --- the whole table --------------------------------------------------------------------------------------------------

FIGURES = Path(__file__).with_name("gradient_check.json")
CHECKS = 1000


@pytest.mark.long
def test_no_false_alarm_in_a_thousand_checks_and_what_is_caught(monkeypatch):
    """Every family, in float32 and both half precisions, several latents and noise levels; then every fault in each."""
    found: list[tuple[str, Comparison]] = []
    part_of = GradientCheck.__call__

    def noting(self: Any, part: str, *args: Any) -> None:
        monkeypatch.setattr(gradient_check, "compare", lambda *args: note(part, compare(*args)))
        part_of(self, part, *args)

    def note(part: str, comparison: Comparison) -> Comparison:
        found.append((part, comparison))
        return comparison

    monkeypatch.setattr(GradientCheck, "__call__", noting)
    sound: dict[str, Any] = {"checks": 0, "false alarms": [], "families": {}}
    seed = 0
    while sound["checks"] < CHECKS:
        for name, dtype in itertools.product(SUPPORTED, HALVES):
            try:
                family = family_in(name, dtype)
            except (RuntimeError, NotImplementedError):
                continue  # the CPU has no such kernel
            start = (0.0, 0.3, 0.6, 0.85)[seed % 4]
            schedule = Schedule(start_percent=start, end_percent=min(1.0, start + 0.15))
            found.clear()
            settings = {"steps": 8, "seed": seed, "cfg": (1.0, 3.0, 7.0)[seed % 3]}
            try:
                notices = run_through(family, schedule=schedule, **settings)
            except ValueError as error:
                notices = [str(error)]
            if notices:
                print(name, dtype, seed, start, found, notices)
            for part, comparison in found:
                sound["checks"] += 1
                row = sound["families"].setdefault(f"{name} {str(dtype).rpartition('.')[2]} {part}", [])
                row.append([round(comparison.ratio, 4), round(comparison.noise, 4), comparison.numbers])
            sound["false alarms"] += [[name, str(dtype), seed, text] for text in notices]
        seed += 1
    caught: dict[str, dict[str, Any]] = {}
    for fault, name, dtype in itertools.product(FAULTS, SUPPORTED, HALVES):
        try:
            family = family_in(name, dtype)
        except (RuntimeError, NotImplementedError):
            continue
        found.clear()
        with fault(family):
            notices = run_through(family)
        ratios = [round(comparison.ratio, 3) for part, comparison in found if part == DENOISER]
        cell = {"caught": bool(notices), "ratios": ratios}
        caught.setdefault(fault.__name__, {}).setdefault(name, {})[str(dtype).rpartition(".")[2]] = cell
    FIGURES.write_text(json.dumps({"sound": sound, "faults": caught}) + "\n")
    assert sound["false alarms"] == []
