"""CADS and Boost-and-Skip as MODEL patches, in the host's own samplers and beside guidance and search."""

from __future__ import annotations

import math

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, RandomNoise, SamplerCustomAdvanced
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.search.config import SearchConfig
from jepa_guidance.host.search.search import apply_search
from jepa_guidance.host.variety.cads import Cads
from jepa_guidance.host.variety.patch import apply_boost, apply_cads
from jepa_guidance.nodes.boost_and_skip import JEPABoostAndSkip
from jepa_guidance.nodes.cads import JEPACads
from jepa_guidance.nodes.input_checks import inputs_of

from jepa_core import RarityGradient
from tests.host.guide import guide_model
from tests.host.search.test_search import row_by_row

STEPS = 10
STRONG = Cads(scale=0.5)
PATCHES = {
    "boost": lambda model: apply_boost(model, 1.5),
    "cads": lambda model: apply_cads(model, STRONG, 3),
}


def listening(model, seen: list):
    """A clone of the MODEL that notes (sigma, x, tokens) of each call of its network."""

    def listen(apply, arguments):
        sigma, x = arguments["timestep"], arguments["input"]
        seen.append((float(sigma[0]), x.clone(), arguments["c"]["c_crossattn"].clone()))
        return apply(x, sigma, **arguments["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(listen)
    return clone


def guided(tiny, model):
    return guide_model(
        model,
        tiny.vae,
        tiny.encoder,
        Schedule(strength=2.0, end_percent=1.0),
        RarityGradient(k=3, oversample=2, power_iterations=1),
        through_denoiser=True,
    )


def searching(tiny, model, **settings):
    return apply_search(
        model, tiny.vae, tiny.encoder, SearchConfig(**{"candidates": 4, "count": 2} | settings)
    )


# --- Boost-and-Skip -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.parametrize(("skip", "left_out"), [(0, 1), (3, 3)])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
def test_the_start_has_gamma_times_the_deviation_and_the_first_steps_are_left_out(
    tiny, stock, kind, skip, left_out, sampler
):
    seen: list = []
    model = tiny.make_model(kind)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    empty = {"samples": torch.zeros(8, 4, 16, 16)}
    patched = apply_boost(listening(model, seen), 2.5, skip)
    result = stock(
        patched, tiny, steps=STEPS, sampler_name=sampler, scheduler="simple", latent_image=empty, cfg=1.0
    )
    assert result.isfinite().all()
    sigma, x, _ = seen[0]
    assert sigma == pytest.approx(float(sigmas[left_out]))
    # by the paper: gamma in the variance-preserving scale; a flow's x has latents' share (1 - t) and noise t
    wanted = math.hypot(1 - sigma, sigma) if kind == "FLOW" else math.hypot(1, sigma)
    assert x.std().item() == pytest.approx(2.5 * wanted, rel=0.03)


def test_a_boosted_run_is_the_stock_one_from_the_boosted_start(tiny):
    """SamplerCustomAdvanced on the patched model, and the host's Euler on a start written out by hand."""
    with torch.inference_mode():
        (sigmas,) = BasicScheduler.execute(tiny.model, "simple", STEPS, 1.0).result
        latent = {"samples": torch.zeros(2, 4, 8, 8)}
        (noise,) = RandomNoise.execute(7).result

        def drawn(model, noise, sigmas):
            (guider,) = CFGGuider.execute(model, tiny.positive, tiny.negative, 3.0).result
            sampler = comfy.samplers.sampler_object("euler")
            return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]

        boosted = drawn(apply_boost(tiny.model, 2.0, 2), noise, sigmas)

        class Own:
            seed = 7

            def generate_noise(self, latent):
                # the host multiplies by sigma at a sigma below the largest
                start = noise.generate_noise(latent)
                return start * 2.0 * math.hypot(1, float(sigmas[2])) / float(sigmas[2])

        expected = drawn(tiny.model, Own(), sigmas[2:])
    torch.testing.assert_close(boosted, expected, rtol=1e-4, atol=1e-4)


def test_a_run_that_goes_on_with_a_latent_is_left_alone(tiny, stock):
    """The second sampler of a graph in two parts adds no noise."""
    import nodes as host_nodes

    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}

    def drawn(model):
        with torch.inference_mode():
            return (
                host_nodes.KSamplerAdvanced()
                .sample(
                    *(model, "disable", 5, STEPS, 3.0, "euler", "normal", tiny.positive, tiny.negative),
                    *(latent, 4, STEPS, "disable"),
                )[0]["samples"]
                .clone()
            )

    assert torch.equal(drawn(apply_boost(tiny.model, 3.0)), drawn(tiny.model))


def test_a_skip_of_all_steps_is_refused_with_the_number_that_fits(tiny, stock):
    with pytest.raises(ValueError, match=r"skip cannot leave out 5 of 5 steps; set it to 4 or less"):
        stock(apply_boost(tiny.model, 1.5, 5), tiny, steps=5)


# --- CADS -----------------------------------------------------------------------------------------------------


def test_the_prompt_of_every_step_is_the_papers(tiny, stock):
    """What the tokens have beside sqrt(gamma) y, divided by s sqrt(1 - gamma), is standard normal noise."""
    seen: list = []
    settings = Cads(scale=0.3, mix=0.0)
    stock(apply_cads(listening(tiny.model, seen), settings, 3), tiny, steps=STEPS, cfg=1.0)
    clean = tiny.positive[0][0][0].double()
    sampling = tiny.model.get_model_object("model_sampling")
    noises = []
    for sigma, _, tokens in seen:
        t = float(sampling.timestep(torch.tensor(sigma))) / 999
        gamma = 1.0 if t <= 0.6 else 0.0 if t >= 0.9 else (0.9 - t) / 0.3
        left = tokens.double() - math.sqrt(gamma) * clean
        if gamma == 1:
            assert not left.any()
        else:
            noises.append(left / (0.3 * math.sqrt(1 - gamma)))
    assert len(noises) == 4
    found = torch.stack(noises)
    assert found.std().item() == pytest.approx(1.0, abs=0.15)
    # each image and each step has its own
    flat = found.flatten(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.9


def test_the_noise_is_rescaled_with_mix_1(tiny, stock):
    seen: list = []
    stock(apply_cads(listening(tiny.model, seen), STRONG, 3), tiny, steps=STEPS, cfg=1.0)
    clean = tiny.positive[0][0][0]
    for _, _, tokens in seen:
        for row in tokens:
            assert row.std().item() == pytest.approx(clean.std().item(), rel=1e-4)
            assert row.mean().item() == pytest.approx(clean.mean().item(), abs=1e-5)
    assert (seen[0][2][0] - clean).abs().max() > 0.1


def test_scale_0_is_the_model_itself(tiny):
    assert apply_cads(tiny.model, Cads(scale=0.0), 3) is tiny.model


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "uni_pc", "dpmpp_2s_ancestral"]
)
def test_samplers_draw_other_images_and_the_same_ones_again(tiny, stock, sampler):
    how = {"sampler_name": sampler, "steps": 8}
    first, again = (stock(apply_cads(tiny.model, STRONG, 3), tiny, **how) for _ in range(2))
    assert torch.equal(first, again)
    assert first.isfinite().all()
    for other in (tiny.model, apply_cads(tiny.model, STRONG, 4)):
        assert (stock(other, tiny, **how) - first).abs().max() > 1e-3


def test_an_image_alone_is_that_of_its_place_in_the_batch(tiny, stock):
    model = row_by_row(tiny.model)
    both = stock(apply_cads(model, STRONG, 3), tiny, steps=8)
    alone = stock(
        apply_cads(model, STRONG, 3), tiny, steps=8, latent_image={"samples": torch.zeros(1, 4, 8, 8)}
    )
    assert torch.equal(both[:1], alone)
    assert not torch.equal(both[0], both[1])


def test_a_model_without_a_prompt_is_refused(tiny, stock):
    with pytest.raises(ValueError, match="CADS finds nothing in this model's conditioning"):
        stock(apply_cads(tiny.model, STRONG, 3), tiny, positive=[])


# --- with other patches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", PATCHES)
def test_guidance_before_and_after_gives_the_same_image(tiny, stock, patch):
    apply = PATCHES[patch]
    before = stock(guided(tiny, apply(tiny.model)), tiny, steps=6)
    after = stock(apply(guided(tiny, tiny.model)), tiny, steps=6)
    assert torch.equal(before, after)
    assert not torch.equal(before, stock(guided(tiny, tiny.model), tiny, steps=6))
    assert not torch.equal(before, stock(apply(tiny.model), tiny, steps=6))


@pytest.mark.parametrize("patch", PATCHES)
def test_search_drops_candidates_of_the_patched_model(tiny, stock, patch):
    """A kept image does not depend on those that were dropped."""
    model = row_by_row(PATCHES[patch](tiny.model))
    batch = {"latent_image": {"samples": torch.zeros(4, 4, 8, 8)}, "steps": 8}
    searched, record = searching(tiny, model)
    few = stock(searched, tiny, **batch)
    searched, _ = searching(tiny, model, looks=(), count=4, rows_at_once=3)
    everything = stock(searched, tiny, **batch)
    kept = [one.index for one in record.kept]
    assert len(kept) == 2
    assert torch.equal(few[kept], everything[kept])
    assert torch.equal(everything, stock(model, tiny, **batch))


def test_both_together_differ_from_each(tiny, stock):
    both = stock(PATCHES["cads"](PATCHES["boost"](tiny.model)), tiny, steps=8)
    assert torch.equal(both, stock(PATCHES["boost"](PATCHES["cads"](tiny.model)), tiny, steps=8))
    assert all(not torch.equal(both, stock(one(tiny.model), tiny, steps=8)) for one in PATCHES.values())


@pytest.mark.parametrize("patch", PATCHES)
def test_the_given_model_stays_as_it_was(tiny, stock, patch):
    before = stock(tiny.model, tiny)
    state = torch.get_rng_state()
    PATCHES[patch](tiny.model)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(stock(tiny.model, tiny), before)


# --- the nodes ------------------------------------------------------------------------------------------------


def test_the_nodes_patch_with_their_inputs(tiny, stock):
    boosted = JEPABoostAndSkip.execute(model=tiny.model, gamma=2.0, skip=2).result[0]
    assert torch.equal(stock(boosted, tiny), stock(apply_boost(tiny.model, 2.0, 2), tiny))
    settings = {"scale": 0.5, "tau1": 0.5, "tau2": 0.8, "mix": 0.7}
    noisy = JEPACads.execute(model=tiny.model, seed=4, **settings).result[0]
    assert torch.equal(stock(noisy, tiny), stock(apply_cads(tiny.model, Cads(**settings), 4), tiny))


@pytest.mark.parametrize(
    ("node", "inputs", "named"),
    [
        (JEPABoostAndSkip, {"gamma": math.nan}, "gamma nan is outside"),
        (JEPABoostAndSkip, {"gamma": 0.5}, "gamma 0.5 is outside"),
        (JEPACads, {"scale": math.nan}, "scale nan is outside"),
        (JEPACads, {"tau1": 0.9, "tau2": 0.6}, "tau1 0.9 is larger than tau2 0.6; swap them"),
        (JEPACads, {"mix": 1.5}, "mix 1.5 is outside"),
        (JEPACads, {"scale": None}, "scale must be a number"),
    ],
)
def test_values_that_do_not_fit_are_named_before_the_run(tiny, node, inputs, named):
    fitting = {entry.id: entry.default for entry in inputs_of(node) if hasattr(entry, "default")}
    with pytest.raises(ValueError, match=named):
        node.execute(**fitting | {"model": tiny.model} | inputs)
