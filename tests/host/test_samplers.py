"""Every sampler of the host, guided, against the same sampler with the shift written into its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
from jepa_guidance.host.guidance import apply_guidance
from jepa_guidance.host.latent_gradient import Slope
from jepa_guidance.host.samplers import rehearse, sampler_refusal
from jepa_guidance.host.steps import Schedule

from jepa_core import RarityGradient
from tests.host.shifted_samplers import largest_entry_shift, shifted

REFUSED = {"dpm_adaptive"}
HANDLED = {"uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece"}
EXACT = set(comfy.samplers.SAMPLER_NAMES) - REFUSED - HANDLED
SCHEDULERS = comfy.samplers.SCHEDULER_NAMES
STEPS = 6


def waves(x: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for the gradient, a function of x alone."""
    return torch.sin(3 * x) + 0.1 * x


def wave_gradient(denoise: Any, x: torch.Tensor, sigma: torch.Tensor, base_model: Any) -> Slope:
    return Slope(torch.zeros(len(x)), waves(x))


def guided_and_expected(
    tiny: Any,
    stock: Callable[..., torch.Tensor],
    sampler: str,
    scheduler: str,
    kind: str = "EPS",
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The guided image, the one that the shifted sampler makes, and the stock one; each (2, 4, 8, 8)."""
    model = tiny.make_model(kind)
    settings |= {"sampler_name": sampler, "scheduler": scheduler, "steps": STEPS}
    trace: list[Any] = []
    patched = apply_guidance(
        model,
        tiny.vae,
        tiny.encoder,
        Schedule(strength=0.7, start_percent=0.0, end_percent=1.0),
        RarityGradient(k=3),
        gradient=wave_gradient,
        report=trace.append,
    )
    guided = stock(patched, tiny, **settings)
    steps = [step["step"] for step in trace[-1].steps]
    assert steps == list(range(len(steps)))
    assert all(step["guided"] for step in trace[-1].steps)
    eta = 0.7 * min(1, 3 / len(steps))
    with shifted(largest_entry_shift(waves, steps, eta, flow=kind == "FLOW")):
        expected = stock(model, tiny, **settings)
    return guided, expected, stock(model, tiny, **settings)


def check(guided: torch.Tensor, expected: torch.Tensor, plain: torch.Tensor) -> None:
    change = (expected - plain).norm()
    # A difference of rounding; a shift too many, too few or of another size would be of the size of the change.
    assert (guided - expected).norm() <= 1e-3 * change + 1e-5 * plain.norm()
    assert change > 1e-2 * plain.norm()


@pytest.mark.parametrize("sampler", sorted(EXACT | HANDLED))
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_shift_reaches_the_state_once_at_every_step(tiny, stock, sampler, kind):
    check(*guided_and_expected(tiny, stock, sampler, "normal" if kind == "EPS" else "simple", kind))


@pytest.mark.long
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_under_every_scheduler(tiny, stock, record_property, sampler, scheduler):
    """A cell of the support matrix."""
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    settings = {"sampler_name": sampler, "scheduler": scheduler, "steps": STEPS, "latent_image": latent}
    if sampler in REFUSED:
        with pytest.raises(ValueError, match=f"'{sampler}'"):
            stock(zero_guided(tiny), tiny, **settings)
        record_property("support", ["sampler", sampler, scheduler, "refused"])
        return
    check(*guided_and_expected(tiny, stock, sampler, scheduler))
    assert torch.equal(stock(zero_guided(tiny), tiny, **settings), stock(tiny.model, tiny, **settings))
    verdict = "handled" if sampler in HANDLED else "exact"
    record_property("support", ["sampler", sampler, scheduler, verdict])


def zero_gradient(denoise: Any, x: torch.Tensor, sigma: torch.Tensor, base_model: Any) -> Slope:
    return Slope(torch.zeros(len(x)), torch.zeros_like(x))


def zero_guided(tiny: Any, model: Any = None) -> Any:
    """A MODEL that is guided at every step by a gradient of zero."""
    schedule = Schedule(start_percent=0.0, end_percent=1.0)
    return apply_guidance(
        model or tiny.model, tiny.vae, tiny.encoder, schedule, RarityGradient(k=3), gradient=zero_gradient
    )


@pytest.mark.parametrize("sampler", sorted(EXACT | HANDLED))
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_a_zero_shift_is_bit_identical_to_the_stock_sampler(tiny, stock, sampler, kind):
    model = tiny.make_model(kind)
    patched = zero_guided(tiny, model)
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    settings = {"sampler_name": sampler, "steps": 4, "denoise": 0.7, "latent_image": latent}
    assert torch.equal(stock(patched, tiny, **settings), stock(model, tiny, **settings))


@pytest.mark.parametrize("sampler", sorted(HANDLED | {"euler", "lms"}))
def test_a_run_that_ends_in_noise_carries_the_shift_to_its_end(tiny, stock, sampler):
    """KSamplerAdvanced's range: the first steps of a longer run."""
    import nodes as host_nodes

    def run(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return host_nodes.KSamplerAdvanced().sample(
                model, "enable", 5, 8, 3.0, sampler, "normal", tiny.positive, tiny.negative,
                {"samples": torch.zeros(2, 4, 8, 8)}, 0, 5, "enable",
            )[0]["samples"].clone()  # fmt: skip

    schedule = Schedule(strength=0.7, start_percent=0.0, end_percent=1.0)
    patched = apply_guidance(
        tiny.model, tiny.vae, tiny.encoder, schedule, RarityGradient(k=3), gradient=wave_gradient
    )
    guided = run(patched)
    with shifted(largest_entry_shift(waves, list(range(5)), 0.7 * 3 / 5, flow=False)):
        expected = run(tiny.model)
    check(guided, expected, run(tiny.model))


def inner_model(tiny: Any) -> Any:
    """What samplers look up on the model that the host passes to them."""
    inner: Any = type("Inner", (), {})()
    inner.model_sampling = tiny.model.model.model_sampling
    inner.model_patcher = tiny.model
    inner.inner_model = inner
    outer: Any = type("Model", (), {})()
    outer.inner_model = inner
    return outer


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_is_rehearsed_or_refused_by_name(tiny, name):
    sampler = comfy.samplers.sampler_object(name)
    sigmas = torch.tensor([14.0, 7.0, 3.0, 1.0, 0.0])
    before = torch.get_rng_state()
    if name in REFUSED:
        assert repr(name) in sampler_refusal(sampler.sampler_function)
        with pytest.raises(ValueError, match=f"'{name}'"):
            rehearse(sampler.sampler_function, sigmas, {}, inner_model(tiny))
        return
    assert sampler_refusal(sampler.sampler_function) is None
    found = rehearse(sampler.sampler_function, sigmas, sampler.extra_options, inner_model(tiny))
    assert torch.equal(before, torch.get_rng_state())
    # dpm_fast takes three model calls to a step of its own; every other sampler has one step a sigma
    assert found.steps == (2 if name == "dpm_fast" else 4)
    assert sorted(found.first.values()) == list(range(found.steps))
    assert found.first[0] == 0
    assert found.sigmas[0] == pytest.approx(14.0)
    assert found.sigmas[-1] == 0
    assert (found.carry is not None) == (name in HANDLED)


def test_at_least_forty_samplers_are_counted():
    assert len(EXACT) + len(HANDLED) >= 43
    assert set(comfy.samplers.SAMPLER_NAMES) == EXACT | HANDLED | REFUSED


# --- samplers of other packs ------------------------------------------------------------------------------------


def loop(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method, as other packs write their samplers."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return loop(model, x, sigmas, extra_args, lambda state: None)


def copying(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return loop(lambda z, s, **rest: model(z.clone(), s, **rest), x, sigmas, extra_args, callback)


def adaptive(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Takes another step at the start when the answer is not zero."""
    twice = bool(model(x, sigmas[0] * x.new_ones(len(x)), **extra_args).any())
    return loop(model, x, torch.cat([sigmas[: twice + 1], sigmas[1:]]), extra_args, callback)


def broken(model, x, sigmas, extra_args=None, callback=None, disable=None):
    raise KeyError("secret")


SIGMAS = torch.tensor([14.0, 7.0, 3.0, 1.0, 0.0])


def test_a_sampler_of_another_pack_is_guided_like_the_hosts(tiny):
    found = rehearse(loop, SIGMAS, {}, inner_model(tiny))
    assert found.first == {0: 0, 1: 1, 2: 2, 3: 3}
    assert found.carry is None


def test_a_name_of_the_hosts_makes_no_sampler_of_another_pack_the_hosts(tiny):
    def sample_unipc(*args, **kwargs):
        return loop(*args, **kwargs)

    assert rehearse(sample_unipc, SIGMAS, {}, inner_model(tiny)).carry is None


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (silent, "does not report its steps"),
        (copying, "keeps a copy of the latent"),
        (adaptive, "its steps depend on the image"),
        (broken, "cannot tell how the sampler 'broken' runs"),
    ],
)
def test_a_sampler_that_cannot_be_guided_is_refused_by_name(tiny, function, why):
    with pytest.raises(ValueError, match=why) as caught:
        rehearse(function, SIGMAS, {}, inner_model(tiny))
    assert repr(function.__name__) in str(caught.value)


def test_a_sampler_that_runs_otherwise_than_it_was_rehearsed_is_stopped(tiny):
    def moody(model, x, sigmas, extra_args=None, callback=None, disable=None):
        """Two calls a step, but only for a real latent."""
        for i in range(len(sigmas) - 1):
            for _ in range(1 if x.numel() == 1 else 2):
                denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
            x = denoised
        return x

    patched = apply_guidance(
        tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3), gradient=wave_gradient
    )
    import comfy.sample

    with torch.inference_mode(), pytest.raises(RuntimeError, match="'moody' runs otherwise"):
        comfy.sample.sample_custom(
            patched,
            torch.randn(1, 4, 8, 8),
            3.0,
            comfy.samplers.KSAMPLER(moody),
            SIGMAS,
            tiny.positive,
            tiny.negative,
            torch.zeros(1, 4, 8, 8),
        )
