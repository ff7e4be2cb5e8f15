"""Self-guided minority sampling against a plain reference written from the paper, and in the host's own samplers."""

from __future__ import annotations

import math
from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, RandomNoise, SamplerCustomAdvanced
from jepa_guidance.host.comfy.sampling import sigma_at, time_left
from jepa_guidance.host.gradient.random_state import own_noise
from jepa_guidance.host.gradient.self_guidance import SelfGuidance
from jepa_guidance.host.gradient.ways import CONSTANT, THROUGH
from jepa_guidance.host.guidance import guided_run
from jepa_guidance.host.guidance.schedule import posterior_variance
from jepa_guidance.host.guidance.self_guided import apply_self_guidance, self_guided_schedule
from jepa_guidance.host.search.config import SearchConfig
from jepa_guidance.host.search.search import apply_search
from jepa_guidance.nodes.self_guided_minority import JEPASelfGuidedMinority

from tests.combinations import covering
from tests.host.search.test_search import row_by_row

KINDS = ("EPS", "V_PREDICTION", "EDM", "FLOW")


def guided(model, strength=2.0, interval=1, level=0.8, **others):
    return apply_self_guidance(model, self_guided_schedule(strength, interval), level, **others)


class Denoiser:
    """A smooth function in place of a denoiser; sigma changes it."""

    seed = 5

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def __call__(self, x):
        return torch.tanh(x / (1 + self.sigma)) + 0.1 * torch.roll(x, 1, -1).sin()

    def at(self, sigma):
        return Denoiser(sigma)

    def row(self, index):
        return self


def schedule_of(model, steps, kind="simple"):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), kind, steps)


# --- the level of the noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "V_PREDICTION_CONTINUOUS", "FLUX"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_level_is_a_share_of_the_time(tiny, kind, share):
    sampling = tiny.make_model(kind).model.model_sampling
    # the schedules have about 1000 entries
    assert time_left(sampling, torch.tensor(sigma_at(sampling, share))) == pytest.approx(share, abs=3e-3)


def test_the_level_of_a_discrete_schedule_is_its_step(tiny):
    sampling = tiny.model.model.model_sampling
    assert sigma_at(sampling, 0.8) == float(sampling.sigmas[799])


# --- the gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_gradient_is_the_finite_difference_of_the_papers_distance(tiny, kind):
    base_model = tiny.make_model(kind).model
    sampling = base_model.model_sampling
    sigma, level = torch.tensor(0.7), sigma_at(sampling, 0.8)
    denoise = Denoiser(0.7)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = own_noise(x[:1], (5, float(sigma))).double()
    signal = 1 - level if kind == "FLOW" else 1.0
    held = Denoiser(level)(signal * denoise(x) + level * noise)  # sg(x0')

    def distance(z):
        return (denoise(z) - held).square().flatten(1).mean(1)

    found = SelfGuidance()(denoise, x, sigma, base_model)
    torch.testing.assert_close(found.score, distance(x), rtol=1e-6, atol=1e-9)
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        measured = (distance(x + 1e-5 * direction) - distance(x - 1e-5 * direction)) / 2e-5
        predicted = -(found.gradient * direction).flatten(1).sum(1)
        torch.testing.assert_close(predicted, measured, rtol=1e-5, atol=1e-9)


def test_every_way_has_the_same_gradient(tiny):
    base_model = tiny.model.model
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [
        replace(SelfGuidance(), way=way)(Denoiser(0.7), x, torch.tensor(0.7), base_model).gradient
        for way in SelfGuidance().ways(3)
        if way.through_denoiser
    ]
    assert len(gradients) == 6
    for one in gradients:
        torch.testing.assert_close(one, gradients[0], rtol=1e-9, atol=1e-12)


def test_the_ways_end_with_the_denoiser_constant():
    ways = SelfGuidance().ways(2)
    assert ways[0] == THROUGH
    assert ways[-1] == replace(CONSTANT, checkpointing=True)
    assert not any(way.small_decoder or way.one_direction for way in ways)


# --- a run ----------------------------------------------------------------------------------------------------


def reference(tiny, noise, sigmas, cfg, strength, interval, level, seed):
    """DDIM with the paper's update of the mean of x_(t-1), on the tiny model with autograd."""
    network = tiny.model.model
    sampling = network.model_sampling
    renoised = float(sampling.sigmas[int(level * 999)])

    def clean_of(x, sigma):
        outputs = [
            network.apply_model(
                x, sigma.float().expand(len(x)), c_crossattn=cond[0][0].expand(len(x), -1, -1)
            )
            for cond in (tiny.positive, tiny.negative)
        ]
        return outputs[1] + cfg * (outputs[0] - outputs[1])

    x = noise * math.sqrt(1 + float(sigmas[0]) ** 2)
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            x0 = clean_of(leaf, sigma)
            with torch.no_grad():
                again = x0 + renoised * own_noise(x[:1], (seed, float(sigma)))
                again = clean_of(again, torch.tensor(renoised))
            distance = (x0 - again).flatten(1).norm(dim=1).sum()
            (g,) = torch.autograd.grad(distance, leaf)
        x0 = x0.detach()
        x = x0 + following / sigma * (x - x0)
        if i % interval == 0:
            abar, abar_prev = 1 / (1 + sigma**2), 1 / (1 + following**2)
            variance = (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)
            g = g / g.abs().amax((1, 2, 3), keepdim=True)
            # in units of x, and as large as at x_t
            x = x + strength * variance * g * torch.sqrt(1 + sigma**2)
    return x


@pytest.mark.parametrize("interval", [1, 2])
def test_a_run_is_the_papers_loop(tiny, stock, interval):
    sigmas = schedule_of(tiny.model, 6, "normal").double()
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(5))
    tiny.model.model.diffusion_model.requires_grad_(False)
    with torch.inference_mode(False):
        plain_weights(tiny)
        expected = reference(tiny, noise, sigmas.float(), 3.0, 0.3, interval, 0.8, 5) / 0.18215
    how = {"steps": 6, "sampler_name": "euler", "scheduler": "normal"}
    found = stock(guided(tiny.model, 0.3, interval), tiny, **how)
    plain = stock(tiny.model, tiny, **how)
    moved = (found - plain).abs().max()
    assert moved > 0.05
    assert (found - expected).abs().max() <= 1e-3 * moved + 1e-5 * expected.abs().max()


def plain_weights(tiny) -> None:
    """The host's weights are inference tensors, which plain autograd cannot use."""
    network = tiny.model.model.diffusion_model
    for part in network.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(weight.clone(), requires_grad=False)
    sampling = tiny.model.model.model_sampling
    for name, buffer in sampling._buffers.items():
        sampling._buffers[name] = buffer.clone()


@pytest.mark.parametrize(
    ("kind", "sampler"),
    covering(KINDS, ["euler", "dpmpp_2m", "heun", "euler_ancestral", "euler_cfg_pp"]),
)
def test_samplers_are_guided_and_give_the_same_image_again(tiny, stock, kind, sampler):
    model, traces = tiny.make_model(kind), []
    first, again = (
        stock(guided(model, report=traces.append), tiny, sampler_name=sampler, steps=6) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert (first - stock(model, tiny, sampler_name=sampler, steps=6)).abs().max() > 1e-3
    trace = traces[-1]
    assert [step.step for step in trace.guided_steps] == list(range(6))
    assert "minority score" in trace.message()
    assert not trace.notices


def test_custom_sampling(tiny):
    with torch.inference_mode():
        (sigmas,) = BasicScheduler.execute(tiny.model, "simple", 6, 1.0).result
        (noise,) = RandomNoise.execute(7).result
        images = []
        for model in (tiny.model, guided(tiny.model)):
            (guider,) = CFGGuider.execute(model, tiny.positive, tiny.negative, 3.0).result
            sampler = comfy.samplers.sampler_object("dpmpp_2m")
            latent = {"samples": torch.zeros(2, 4, 8, 8)}
            images.append(SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0])
    assert (images[0]["samples"] - images[1]["samples"]).abs().max() > 1e-3


def test_what_a_mask_keeps_stays(tiny, stock):
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latent = {"samples": start, "noise_mask": mask}
    found = stock(guided(tiny.model), tiny, latent_image=latent, steps=6)
    plain = stock(tiny.model, tiny, latent_image=latent, steps=6)
    torch.testing.assert_close(found[..., 4:], start[..., 4:], rtol=1e-5, atol=1e-5)
    assert (found - plain)[..., :4].abs().max() > 1e-3


def test_an_image_alone_is_the_same_image_in_a_batch(tiny, stock):
    model = guided(row_by_row(tiny.model))
    both = stock(model, tiny, steps=6)
    one = torch.zeros(1, 4, 8, 8)
    # the host draws the noise of these places of the batch
    alone = [stock(model, tiny, steps=6, latent_image={"samples": one, "batch_index": [i]}) for i in range(2)]
    assert torch.equal(both, torch.cat(alone))


def test_the_gradient_of_the_denoiser_is_checked(tiny, stock, monkeypatch):
    parts = []
    real = guided_run.gradient_check

    def watched(*args):
        check = real(*args)
        due = check.due
        check.due = lambda part, x: parts.append((part, due(part, x))) or parts[-1][1]
        return check

    monkeypatch.setattr(guided_run, "gradient_check", watched)
    stock(guided(tiny.make_model()), tiny, steps=4)
    assert parts[0] == ("denoiser", True)
    assert all(one == ("denoiser", False) for one in parts[1:])


def test_short_of_memory_it_goes_another_way_to_the_same_image(tiny, stock, monkeypatch):
    wanted = stock(guided(tiny.model), tiny, steps=4)
    fails = [True]
    real = SelfGuidance.of_estimate

    def once(self, *args):
        if fails:
            fails.clear()
            raise torch.OutOfMemoryError("out of memory")
        return real(self, *args)

    monkeypatch.setattr(SelfGuidance, "of_estimate", once)
    traces: list = []
    found = stock(guided(tiny.model, report=traces.append), tiny, steps=4)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert any("out of memory" in one for one in traces[-1].notices)


def test_a_search_guides_what_is_left(tiny, stock):
    model = guided(row_by_row(tiny.model))
    searched, record = apply_search(model, tiny.vae, tiny.encoder, SearchConfig(candidates=4, count=2))
    latent = {"samples": torch.zeros(4, 4, 8, 8)}
    drawn = stock(searched, tiny, steps=8, latent_image=latent)
    plain, _ = apply_search(
        row_by_row(tiny.model), tiny.vae, tiny.encoder, SearchConfig(candidates=4, count=2)
    )
    kept = [one.index for one in record.kept]
    assert drawn[kept].isfinite().all()
    assert not torch.equal(drawn[kept], stock(plain, tiny, steps=8, latent_image=latent)[kept])


def test_global_random_states_are_left_alone(tiny, stock):
    model = guided(tiny.model)
    torch.manual_seed(3)
    stock(tiny.model, tiny, sampler_name="euler_ancestral")
    plain = torch.get_rng_state()
    torch.manual_seed(3)
    stock(model, tiny, sampler_name="euler_ancestral")
    assert torch.equal(plain, torch.get_rng_state())


def total_shift(steps: int, interval: int, strength: float, last: int) -> float:
    """Strength times posterior variance, over the guided steps of the cosine schedule. last: guided, modulo interval."""

    def rate(left: float) -> float:
        return (
            math.cos((left + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        )

    rates = [max(rate((steps - i) / steps), 1e-6) for i in range(steps + 1)]
    guided = [i for i in range(steps) if i % interval == last]
    return strength * sum(posterior_variance(rates[i], rates[i + 1]) for i in guided)


def test_the_defaults_shift_as_far_in_all_as_the_papers_settings(tiny):
    inputs = {one.id: getattr(one, "default", None) for one in JEPASelfGuidedMinority.define_schema().inputs}
    faces, imagenet = total_shift(250, 5, 0.4, 4), total_shift(250, 2, 0.2, 1)
    own = total_shift(20, inputs["interval"], inputs["strength"], 0)
    assert [round(one, 2) for one in (faces, own, imagenet)] == [0.62, 0.76, 0.91]


# --- the node -------------------------------------------------------------------------------------------------

INPUTS = {"strength": 0.2, "interval": 2, "level": 0.8, "start_percent": 0.0, "end_percent": 1.0}


def test_the_node_guides_with_its_inputs(tiny, stock):
    model = JEPASelfGuidedMinority.execute(model=tiny.model, **INPUTS).result[0]
    assert torch.equal(stock(model, tiny), stock(guided(tiny.model, 0.2, 2), tiny))


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}])
def test_off_is_the_model_itself(tiny, off):
    assert JEPASelfGuidedMinority.execute(model=tiny.model, **INPUTS | off).result[0] is tiny.model


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"strength": -1.0}, "strength -1.0 is outside 0.0 to 10.0"),
        ({"strength": math.nan}, "strength nan is outside"),
        ({"strength": 0.2, "level": 1.0}, "level 1.0 is outside"),
        ({"strength": 0.2, "start_percent": 0.8, "end_percent": 0.2}, "swap them"),
    ],
)
def test_values_that_do_not_fit_are_named_before_the_run(tiny, inputs, named):
    with pytest.raises(ValueError, match=named):
        JEPASelfGuidedMinority.execute(model=tiny.model, **INPUTS | inputs)
