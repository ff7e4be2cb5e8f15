"""Samplers as other packs write them: restarts, reports numbered otherwise, latents that are blurred, padded or cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import comfy.k_diffusion.sampling
import comfy.sample
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from jepa_guidance.host.guidance.guided_model import GuidedModel
from jepa_guidance.host.guidance.refused_samplers import sampler_name
from jepa_guidance.host.guidance.sampler_probe import probe_sampler
from jepa_guidance.host.guidance.schedule import posterior_variance
from jepa_guidance.host.guidance.self_guided import apply_self_guidance, self_guided_schedule
from torch import Tensor

from tests.host.clips import tiny_clip
from tests.host.guidance.test_minority_prompt import learned
from tests.host.guidance.test_samplers import (
    SIGMAS,
    check,
    guided_and_expected,
    inner_model,
    multistep,
    verdict,
    zero_guided,
)
from tests.host.shifted_samplers import Shift

Sampler = Callable[..., Tensor]


def unshifted(x: Tensor, sigma: Any, step: int) -> Tensor:
    return x


def euler_step(
    model: Any, x: Tensor, sigma: Tensor, following: Tensor, extra_args: dict
) -> tuple[Tensor, Tensor]:
    denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
    return denoised, x + (x - denoised) / sigma * (following - sigma)


def restarting(shift: Shift = unshifted) -> Sampler:
    """Euler's method that goes back to a higher noise level once. It numbers its reports from 1, anew in each part."""

    def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        back = len(sigmas) // 2
        step = 0
        for part in (sigmas[: back + 1], sigmas[back - 1 :]):
            if step:
                x = x + torch.randn_like(x) * (sigmas[back - 1] ** 2 - sigmas[back] ** 2).sqrt()
            for i, (sigma, following) in enumerate(pairwise(part), 1):
                x = shift(x, sigma, step)
                denoised, new = euler_step(model, x, sigma, following, extra_args)
                callback({"x": x, "i": i, "sigma": sigma, "denoised": denoised})
                x, step = new, step + 1
        return x

    return sampler_function


def per_step(
    own: Callable[..., Tensor], reports: int = 1, number: Callable[[int], Any] = int
) -> Callable[..., Sampler]:
    """Samplers with a step of their own: (model, x, sigma, following, extra_args) -> x."""

    def made(shift: Shift = unshifted) -> Sampler:
        def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None):
            for i in range(len(sigmas) - 1):
                x = shift(x, sigmas[i], i)
                x, denoised = own(model, x, sigmas[i], sigmas[i + 1], extra_args)
                for _ in range(reports):
                    callback({"x": x, "i": number(i), "sigma": sigmas[i], "denoised": denoised})
            return x

        return sampler_function

    return made


def plain(model, x, sigma, following, extra_args):
    denoised, new = euler_step(model, x, sigma, following, extra_args)
    return new, denoised


def blurred(model, x, sigma, following, extra_args, mode="reflect"):
    denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
    smooth = F.avg_pool2d(F.pad(denoised, (2, 2, 2, 2), mode=mode), 5, 1)
    denoised = torch.lerp(denoised, smooth, 0.2)
    return x + (x - denoised) / sigma * (following - sigma), denoised


def also_on_every_other_pixel(model, x, sigma, following, extra_args):
    """It reports after a second call, on a smaller latent."""
    denoised, new = euler_step(model, x, sigma, following, extra_args)
    few = new[..., 1::2, 1::2].contiguous()
    new[..., 1::2, 1::2] = torch.lerp(few, model(few, following * x.new_ones(len(x)), **extra_args), 0.1)
    return new, denoised


def masked(model, x, sigma, following, extra_args):
    """It holds a mask of the real latent's size."""
    denoised, new = euler_step(model, x, sigma, following, extra_args)
    return new * torch.ones(8, 8), denoised


def noting_on_the_model(model, x, sigma, following, extra_args):
    """It sets attributes of the model, some under names that a wrapper of it may well use itself."""
    own = {"sigmas": torch.stack([sigma, following]), "states": x, "step": 3}
    for name, value in own.items():
        setattr(model, name, value)
    denoised, new = euler_step(model, x, sigma, following, extra_args)
    assert all(getattr(model, name) is value for name, value in own.items())
    del model.step
    return new, denoised


SAMPLERS = {
    "restarts": restarting,
    "numbers from 1": per_step(plain, number=lambda i: i + 1),
    "reports twice": per_step(plain, reports=2),
    "pads by reflection": per_step(blurred),
    "pads with zeros": per_step(partial(blurred, mode="constant")),
    "parts": per_step(also_on_every_other_pixel),
    "a mask": per_step(masked),
    "notes on the model": per_step(noting_on_the_model),
}


@pytest.fixture
def in_the_menu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sampler], None]:
    """Adds a sampler to KSampler's menu under the name theirs."""
    samplers = comfy.samplers
    monkeypatch.setattr(samplers.KSampler, "SAMPLERS", [*samplers.KSampler.SAMPLERS, "theirs"])
    return lambda made: monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_theirs", made, raising=False)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_shift_reaches_the_state_once_at_every_step(tiny, stock, in_the_menu, kind):
    make = SAMPLERS[kind]
    in_the_menu(make())

    @contextmanager
    def written_in(shift: Shift) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.k_diffusion.sampling, "sample_theirs", make(shift))
            yield

    assert verdict(tiny, "theirs") == "exact"
    check(*guided_and_expected(tiny, stock, "theirs", "normal", "EPS", written_in))
    zero = {"sampler_name": "theirs", "scheduler": "normal"}
    assert torch.equal(stock(zero_guided(tiny), tiny, **zero), stock(tiny.model, tiny, **zero))


def test_the_dry_run_has_the_channels_and_frames_of_the_latent(tiny):
    seen = []

    def curious(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seen.append(tuple(x.shape))
        return restarting()(model, x, sigmas, extra_args, callback)

    for shape in ((2, 16, 8, 12), (1, 48, 5, 8, 8)):
        probe_sampler(comfy.samplers.KSAMPLER(curious), SIGMAS, {}, inner_model(tiny), shape)
        assert set(seen) == {(1, *shape[1:-2], 32, 32)}
        seen.clear()


def test_what_a_sampler_sets_on_the_model_reaches_the_hosts_in_a_run_alone(tiny):
    inner = inner_model(tiny)
    before = dict(vars(inner))
    sampler = comfy.samplers.KSAMPLER(per_step(noting_on_the_model)())
    plan = probe_sampler(sampler, SIGMAS, {}, inner, (1, 4, 8, 8))
    assert vars(inner) == before
    guided = GuidedModel(inner, plan, [], lambda *_: None)
    guided.sigmas = SIGMAS
    assert inner.sigmas is guided.sigmas is SIGMAS


def test_every_patch_that_follows_steps_runs_with_restarts(tiny, stock, in_the_menu):
    in_the_menu(restarting())
    patched, positive = learned(tiny.model, tiny_clip())
    drawn = stock(patched, tiny, positive=positive, steps=4, sampler_name="theirs")
    assert not torch.equal(drawn, stock(tiny.model, tiny, positive=positive, steps=4, sampler_name="theirs"))
    trace: list[Any] = []
    itself = apply_self_guidance(tiny.model, self_guided_schedule(2.0, 1), 0.8, report=trace.append)
    assert stock(itself, tiny, steps=4, sampler_name="theirs").isfinite().all()
    assert [step.step for step in trace[-1].guided_steps] == list(range(5))


def test_a_step_before_a_noisier_one_moves_nothing_under_the_variance_schedule():
    assert posterior_variance(0.6, 0.4) == 0
    assert posterior_variance(0.4, 0.6) > 0


# --- names ------------------------------------------------------------------------------------------------------


def test_a_refused_sampler_is_named_as_in_the_menu_whatever_its_function_is_called(tiny, stock, in_the_menu):
    in_the_menu(multistep("derivative", copies=True))
    with pytest.raises(ValueError, match="does not support the sampler 'theirs': in a dry run"):
        stock(zero_guided(tiny), tiny, sampler_name="theirs")


def test_a_sampler_outside_the_menu_is_named_with_its_pack(tiny):
    def sampler_function(*_: Any, **__: Any) -> None: ...

    sampler_function.__module__ = "/home/me/ComfyUI/custom_nodes/restart-pack.nodes"
    name = "'sampler_function' (not in KSampler's menu; from restart-pack)"
    for function in (sampler_function, partial(sampler_function, eta=1.0)):
        assert sampler_name(comfy.samplers.KSAMPLER(function)) == name


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_of_the_host_has_its_name(name):
    assert sampler_name(comfy.samplers.sampler_object(name)) == repr(name)


def test_a_menu_with_a_name_that_makes_no_sampler_names_the_others(monkeypatch):
    """Some packs list names that only their own nodes understand."""
    monkeypatch.setattr(comfy.samplers.KSampler, "SAMPLERS", ["nothing", *comfy.samplers.KSampler.SAMPLERS])
    assert sampler_name(comfy.samplers.sampler_object("lms")) == "'lms'"
