"""Guided sampling compared with a plain loop and with the stock sampler, and under faults."""

from __future__ import annotations

import copy
import gc
import weakref

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from jepa_guidance.host.comfy.required import interrupt_check
from jepa_guidance.host.gradient.image_gradient import ScoreGradient
from jepa_guidance.host.gradient.residency import refuse_streamed
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.guidance.trace import Trace

from jepa_core import RarityGradient
from tests.combinations import covering
from tests.host.guide import guide_model
from tests.host.sampler_names import others_long

RARITY = {"k": 3, "oversample": 2, "power_iterations": 1}


def guide(tiny, schedule=None, *, model=None, vae=None, encoder=None, **settings):
    """The tiny MODEL, guided; settings are those of apply_guidance."""
    rarity = settings.pop("rarity", None) or RarityGradient(**RARITY)
    schedule = schedule or Schedule(end_percent=1.0)
    return guide_model(
        model or tiny.model, vae or tiny.vae, encoder or tiny.encoder, schedule, rarity, **settings
    )


def waves(x):
    """A smooth substitute for the gradient, a function of x alone."""
    return torch.sin(3 * x) + 0.1 * x


def wave_gradient(denoise, x, sigma, base_model):
    return ScoreGradient(torch.zeros(len(x)), waves(x))


# --- the paper's update ---------------------------------------------------------------------------------------


@torch.no_grad()
def paper_loop(tiny, model, noise, sigmas, cfg, schedule):
    """DDIM in the paper's variance-preserving scale with steps 1 to 4 of its algorithm, in float64."""
    network = model.model

    def clean_estimate(z, sigma):
        x = (z * (1 + sigma**2) ** 0.5).float()
        estimates = [
            network.apply_model(
                x, sigma.float().expand(len(x)), c_crossattn=cond[0][0].expand(len(x), -1, -1)
            )
            for cond in (tiny.positive, tiny.negative)
        ]
        return (estimates[1] + cfg * (estimates[0] - estimates[1])).double()

    total = len(sigmas) - 1
    guided = [i for i in range(total) if i / total >= 0.2]
    eta = schedule.strength * min(1, 3 / len(guided))
    # the host starts from pure noise at the highest sigma
    z = noise.double()
    for i in range(total):
        sigma, following = sigmas[i].double(), sigmas[i + 1].double()
        abar, abar_prev = 1 / (1 + sigma**2), 1 / (1 + following**2)
        if i in guided:
            g = waves(z * (1 + sigma**2) ** 0.5)
            g = g / g.abs().amax((1, 2, 3), keepdim=True)
            variance = (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev) if schedule.variance else 1.0
            z = z - eta * variance * g
        x0 = clean_estimate(z, sigma)
        eps = (z - abar.sqrt() * x0) / (1 - abar).sqrt()
        z = abar_prev.sqrt() * x0 + (1 - abar_prev).sqrt() * eps
    return z


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("variance", [False, True])
def test_guided_euler_is_the_papers_update(tiny, stock, sampler, variance):
    schedule = Schedule(strength=0.7, variance=variance, end_percent=1.0)
    guided = stock(
        guide(tiny, schedule, gradient=wave_gradient), tiny, steps=6, sampler_name=sampler, scheduler="normal"
    )
    sampling = tiny.model.model.model_sampling
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 6)
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(5))
    expected = paper_loop(tiny, tiny.model, noise, sigmas, 3.0, schedule) / 0.18215
    plain = stock(tiny.model, tiny, steps=6, sampler_name=sampler, scheduler="normal")
    # without guidance the loops differ only by rounding; with guidance they must agree just as well
    assert (guided - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (guided - plain).abs().max() > 0.005 * plain.abs().max()


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM", "FLOW"])
def test_the_shift_is_the_same_in_the_latents_own_scale(tiny, stock, kind):
    """The largest change of z_t = x * calculate_input is eta for every sampling class."""
    model = tiny.make_model(kind)
    trace = []
    patched = guide(tiny, Schedule(strength=0.3), model=model, gradient=wave_gradient, report=trace.append)
    stock(patched, tiny, steps=4)
    guided = trace[-1].guided_steps
    assert [step.step for step in guided] == [1, 2, 3]
    for step in guided:
        sigma = torch.tensor([step.sigma])
        scale = float(model.model.model_sampling.calculate_input(sigma, torch.ones(1, 1, 1, 1)))
        assert [shift * scale for shift in step.shift] == pytest.approx([0.3, 0.3], rel=1e-5)


# --- parity with the stock sampler ----------------------------------------------------------------------------

GUIDED_SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if name != "dpm_adaptive"]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "dpmpp_sde", "lcm", "dpm_fast"])
def test_a_shift_reaches_the_image_once_for_each_guided_step(tiny, stock, sampler):
    calls = []

    def count(denoise, x, sigma, base_model):
        calls.append(float(sigma))
        return wave_gradient(denoise, x, sigma, base_model)

    trace = []
    guided = stock(guide(tiny, gradient=count, report=trace.append), tiny, sampler_name=sampler)
    assert not torch.equal(guided, stock(tiny.model, tiny, sampler_name=sampler))
    assert len(calls) == sum(step.guided for step in trace[-1].steps)
    assert len(set(calls)) == len(calls)
    assert [step.step for step in trace[-1].steps] == list(range(len(trace[-1].steps)))


@pytest.mark.parametrize("through", [False, True])
def test_same_seed_same_image_and_the_image_of_a_batch_is_its_own(tiny, stock, through):
    patched = guide(tiny, through_denoiser=through)
    both = stock(patched, tiny)
    assert torch.equal(both, stock(patched, tiny))
    assert not torch.equal(both, stock(tiny.model, tiny))
    swapped = {"samples": torch.zeros(1, 4, 8, 8)}
    alone = stock(patched, tiny, latent_image=swapped)
    assert (both[:1] - alone).abs().max() < 1e-4 * alone.abs().max()


def test_negative_strength_raises_the_score_that_positive_strength_lowers(tiny, stock):
    traces = {}
    for strength in (-1.0, 1.0):
        reports = []
        stock(guide(tiny, Schedule(strength=strength), report=reports.append), tiny, steps=8)
        traces[strength] = reports[-1].guided_steps
    # both see the same latent at the first guided step
    assert traces[-1.0][0].score == traces[1.0][0].score
    assert sum(traces[1.0][-1].score) < sum(traces[-1.0][-1].score)


def test_other_wrappers_still_run_and_a_second_patch_replaces_the_first(tiny, stock):
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(type(executor.class_obj).__name__)
        return executor(*args, **kwargs)

    model = tiny.model.clone()
    for key in ("before", "zafter"):
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, key, wrapper)
    calls = []

    def count(denoise, x, sigma, base_model):
        calls.append(1)
        return wave_gradient(denoise, x, sigma, base_model)

    once = guide(tiny, model=model, gradient=count)
    twice = guide(tiny, model=once, gradient=count)
    stock(twice, tiny, steps=5)
    assert seen == ["KSAMPLER", "KSAMPLER"]
    assert len(calls) == 4


# --- one denoiser call a guided step --------------------------------------------------------------------------


def constant_network(tiny, kind):
    """A MODEL whose network output depends only on the conditioning, not on x."""
    model = tiny.make_model(kind)
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))

    def forward(x, timesteps, context, **_):
        return answer.to(x) * (1 + context.mean((1, 2))[:, None, None, None].to(x))

    model.model.diffusion_model.forward = forward
    return model


def count_network_calls(model):
    calls = []
    forward = model.model.diffusion_model.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    model.model.diffusion_model.forward = counted
    return calls


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.parametrize(
    "sampler", ["euler", "ddim", "dpmpp_2m", "heun", "lcm", "euler_cfg_pp", "dpmpp_2m_cfg_pp"]
)
def test_one_call_equals_two_where_the_network_is_constant(tiny, stock, kind, sampler):
    model = constant_network(tiny, kind)
    images = [
        stock(
            guide(tiny, model=model, gradient=wave_gradient, one_call=calls == "one"),
            tiny,
            sampler_name=sampler,
        )
        for calls in ("two", "one")
    ]
    size = images[0].abs().max()
    assert (images[0] - images[1]).abs().max() < 1e-4 * size
    assert (images[0] - stock(model, tiny, sampler_name=sampler)).abs().max() > 1e-2 * size


def test_one_call_survives_a_node_that_copies_the_model_options(tiny, stock):
    """cfg++ samplers take the unconditional estimate from a hook, which may be called through a copy."""

    def copying(executor, x, timestep, model_options, seed):
        hooks = copy.deepcopy(model_options["sampler_post_cfg_function"])
        return executor(x, timestep, {**model_options, "sampler_post_cfg_function": hooks}, seed)

    model = tiny.model.clone()
    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    model.add_wrapper_with_key(kind, "copying", copying)
    expected, found = (
        stock(guide(tiny, model=one, one_call=True), tiny, sampler_name="euler_cfg_pp")
        for one in (tiny.model, model)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("differential", [False, True])
def test_one_call_keeps_the_part_that_is_not_inpainted(tiny, stock, differential):
    model = constant_network(tiny, "EPS")
    if differential:
        model.model_options["denoise_mask_function"] = lambda sigma, mask, extra_options: (mask > 0.3).to(
            mask
        )
    mask = torch.zeros(1, 8, 8)
    mask[:, :4], mask[:, 4] = 1, 0.5
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.manual_seed(1)), "noise_mask": mask}
    images = [
        stock(
            guide(tiny, model=model, gradient=wave_gradient, one_call=calls == "one"),
            tiny,
            latent_image=latent,
        )
        for calls in ("two", "one")
    ]
    assert torch.allclose(*images, rtol=1e-4, atol=1e-4 * float(images[0].abs().max()))
    assert torch.equal(images[1][..., 5:, :], stock(model, tiny, latent_image=latent)[..., 5:, :])


@pytest.mark.parametrize(
    ("calls", "through", "expected"),
    [("two", False, 9), ("one", False, 5), ("two", True, 9), ("one", True, 5)],
)
def test_network_calls_of_five_steps_four_of_them_guided(tiny, stock, calls, through, expected):
    patched = guide(tiny, through_denoiser=through, one_call=calls == "one")
    counted = count_network_calls(tiny.model)
    stock(patched, tiny)
    # three more in the first run: two for the gradient check, and one that does not run, for the memory plan
    assert len(counted) == expected + 3 * through
    counted.clear()
    stock(guide(tiny, through_denoiser=through, one_call=calls == "one"), tiny)
    # that call again: a network that is counted cannot run without data, and a plan that failed is made anew
    assert len(counted) == expected + through


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp"])
def test_one_call_guides_and_leaves_no_graph(tiny, stock, through, sampler):
    settings = {"sampler_name": sampler, "steps": 3, "latent_image": {"samples": torch.zeros(1, 4, 8, 8)}}
    patched = guide(tiny, through_denoiser=through, one_call=True)
    guided = stock(patched, tiny, **settings)
    assert not guided.requires_grad
    assert guided.isfinite().all()
    assert not torch.equal(guided, stock(tiny.model, tiny, **settings))
    assert torch.equal(guided, stock(patched, tiny, **settings))


@pytest.mark.parametrize("sampler", others_long(GUIDED_SAMPLERS))
def test_one_call_and_a_zero_shift_are_bit_identical_to_the_stock_sampler(tiny, stock, sampler):
    def zero(denoise, x, sigma, base_model):
        denoise(x)
        return ScoreGradient(torch.zeros(len(x)), torch.zeros_like(x))

    patched = guide(tiny, gradient=zero, one_call=True)
    assert torch.equal(
        stock(patched, tiny, sampler_name=sampler), stock(tiny.model, tiny, sampler_name=sampler)
    )


def test_one_call_skips_an_image_whose_gradient_is_not_finite(tiny, stock):
    def broken(denoise, x, sigma, base_model):
        gradient = waves(x)
        gradient[0, 0, 0, 0] = torch.inf
        return ScoreGradient(torch.zeros(len(x)), gradient)

    out = stock(guide(tiny, gradient=broken, one_call=True), tiny)
    plain = stock(tiny.model, tiny)
    assert torch.equal(out[0], plain[0])
    assert out.isfinite().all()
    assert not torch.equal(out[1], plain[1])


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_checkpointing_changes_no_image_and_the_denoiser_runs_again_once(tiny, stock, kind):
    model = tiny.make_model(kind)
    counted = count_network_calls(model)
    images = []
    for checkpointing in (False, True):
        patched = guide(tiny, model=model, through_denoiser=True, checkpointing=checkpointing)
        images.append(stock(patched, tiny, steps=3))
    plain = stock(model, tiny, steps=3)
    # rounding, amplified through the gradient
    assert (images[0] - images[1]).abs().max() < 0.01 * (images[0] - plain).abs().max()
    # blocks run again in the backward pass, the network does not; two calls are for the gradient check, two that do not
    # run for the memory plans
    assert len(counted) == 2 * (3 + 2) + 2 + 2 + 3


# --- nothing leaks, and faults --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "calls", "through"),
    covering(["euler", "euler_cfg_pp", "uni_pc"], ["one", "two"], [False, True]),
)
def test_the_guided_model_is_freed_with_its_last_user(tiny, stock, sampler, calls, through):
    """A reference cycle would keep it until the next garbage collection, and its weights on the device."""
    gc.collect()
    gc.disable()
    try:
        patched = guide(tiny, through_denoiser=through, one_call=calls == "one")
        stock(patched, tiny, sampler_name=sampler, steps=3)
        gone = weakref.ref(patched)
        del patched
        assert gone() is None
    finally:
        gc.enable()


class Stop(Exception):
    pass


@pytest.mark.parametrize("calls", ["one", "two"])
def test_the_guided_model_is_freed_after_an_error_in_a_guided_step(tiny, stock, calls):
    left = [4]

    def stop():
        left[0] -= 1
        if not left[0]:
            raise Stop

    gc.collect()
    gc.disable()
    try:
        patched = guide(tiny, one_call=calls == "one", on_pass=stop)
        with pytest.raises(Stop):
            stock(patched, tiny, sampler_name="euler_cfg_pp", steps=3)
        gone = weakref.ref(patched)
        del patched
        assert gone() is None
    finally:
        gc.enable()


class Counted(RarityGradient):
    """Counts the runs that took a fresh copy."""

    runs = 0

    def fresh(self, on_pass=None):
        self.runs += 1
        return super().fresh(on_pass)


def test_every_run_starts_without_the_bases_tracked_by_the_last_one_even_after_an_error(tiny, stock):
    passes_left = [10**6]

    def stop():
        passes_left[0] -= 1
        if not passes_left[0]:
            raise Stop

    rarity = Counted(**RARITY)
    patched = guide(tiny, rarity=rarity, on_pass=stop)
    first = stock(patched, tiny)
    passes_left[0] = 8
    with pytest.raises(Stop):
        stock(patched, tiny)
    assert torch.equal(first, stock(patched, tiny))
    assert rarity.runs == 3
    assert not rarity.snapshot()  # bases are tracked in the copies only


def test_the_message_says_how_the_gradient_was_computed(tiny, stock):
    reports = []
    patched = guide(
        tiny, one_call=True, checkpointing=True, decoder="encoder resolution", report=reports.append
    )
    stock(patched, tiny, steps=2)
    how = "denoiser constant, decoder at encoder resolution, one call, tracked, checkpointing"
    assert how in reports[-1].message().splitlines()


@pytest.mark.parametrize("through", [False, True])
def test_an_interrupt_leaves_weights_flags_and_random_state_as_they_were(tiny, stock, through):
    passes = []

    def stop():
        passes.append(1)
        if len(passes) == 4:
            raise Stop

    patched = guide(tiny, through_denoiser=through, checkpointing=through, on_pass=stop)
    modules = (tiny.model.model, tiny.vae.first_stage_model, tiny.encoder.encoder)
    before = [{id(t) for t in (*m.parameters(), *m.buffers())} for m in modules]
    with pytest.raises(Stop):
        stock(patched, tiny)
    assert len(passes) == 4
    assert before == [{id(t) for t in (*m.parameters(), *m.buffers())} for m in modules]
    assert not getattr(comfy.model_management, "in_training", False)  # newer than the oldest host
    assert not any("forward" in part.__dict__ for module in modules for part in module.modules())
    assert torch.equal(stock(tiny.model, tiny), stock(tiny.model, tiny))


def test_guidance_does_not_touch_the_global_random_state(tiny, stock):
    states = []
    for model in (tiny.model, guide(tiny)):
        stock(model, tiny)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_hosts_interrupt_stops_guidance():
    interrupt_check()
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        interrupt_check()


def test_a_gradient_that_is_not_finite_skips_that_image_and_says_so(tiny, stock):
    def broken(denoise, x, sigma, base_model):
        gradient = waves(x)
        gradient[0, 0, 0, 0] = torch.nan
        return ScoreGradient(torch.zeros(len(x)), gradient)

    reports = []
    out = stock(guide(tiny, gradient=broken, report=reports.append), tiny)
    plain = stock(tiny.model, tiny)
    assert out.isfinite().all()
    assert torch.equal(out[0], plain[0])
    assert not torch.equal(out[1], plain[1])
    assert "4 shift(s) skipped" in reports[-1].message()


def test_a_variance_of_zero_does_not_count_as_a_skipped_shift(tiny, stock):
    """At the last step the posterior variance is zero: there is no shift, and nothing is wrong."""
    reports = []
    schedule = Schedule(variance=True, end_percent=1.0)
    stock(guide(tiny, schedule, gradient=wave_gradient, report=reports.append), tiny)
    assert reports[-1].steps[-1].shift == [0.0, 0.0]
    assert "skipped" not in reports[-1].message()


def test_a_run_without_guided_steps_says_so_and_is_the_stock_image(tiny, stock):
    reports = []
    patched = guide(tiny, Schedule(start_percent=0.9, end_percent=1.0), report=reports.append)
    assert torch.equal(stock(patched, tiny, steps=4), stock(tiny.model, tiny, steps=4))
    assert "no step" in reports[-1].message()


def test_an_unsupported_sampler_is_refused_by_name(tiny, stock):
    with pytest.raises(ValueError, match="'dpm_adaptive'"):
        stock(guide(tiny), tiny, sampler_name="dpm_adaptive")


def test_a_vae_of_another_model_is_refused_before_sampling(tiny):
    with pytest.raises(ValueError, match="16 channels, the model makes 4"):
        guide(tiny, vae=tiny.make_vae(channels=16))


def test_a_rank_larger_than_the_embedding_is_refused_before_sampling(tiny):
    with pytest.raises(ValueError, match="rank 17 is larger than the embedding of tiny, 16"):
        guide(tiny, rarity=RarityGradient(k=17))


def test_a_latent_with_nan_is_refused_before_sampling(tiny, stock):
    latent = torch.zeros(2, 4, 8, 8)
    latent[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"image\(s\) \[1\]"):
        stock(guide(tiny), tiny, latent_image={"samples": latent})


def test_streamed_weights_are_refused(tiny):
    patcher = tiny.vae.patcher
    refuse_streamed(patcher, "the VAE")
    # the host's partial load: one byte of weights is on the device, the rest is streamed
    patcher.load(torch.device("cpu"), lowvram_model_memory=1)
    with pytest.raises(ValueError, match="the VAE while its weights are streamed"):
        refuse_streamed(patcher, "the VAE")


def test_a_trace_before_any_run_has_a_message():
    assert "not run" in Trace().message()
