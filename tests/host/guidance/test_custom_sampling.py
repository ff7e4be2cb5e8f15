"""Other ways to sample: custom samplers, guiders, parts of a schedule, and patches of other packs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import comfy_extras.nodes_advanced_samplers as advanced_samplers
import comfy_extras.nodes_custom_sampler as custom
import nodes as host_nodes
import pytest
import torch
from comfy_extras import nodes_apg, nodes_cfg, nodes_differential_diffusion, nodes_easycache, nodes_perpneg
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from jepa_guidance.host.gradient.image_gradient import ScoreGradient
from jepa_guidance.host.guidance.schedule import Schedule

from jepa_core import RarityGradient
from tests.combinations import covering
from tests.host.guide import guide_model

STEPS = 6
EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}


def wave_gradient(denoise: Any, x: torch.Tensor, sigma: torch.Tensor, base_model: Any) -> ScoreGradient:
    return ScoreGradient(torch.zeros(len(x)), torch.sin(3 * x) + 0.1 * x)


def guided(tiny: Any, reports: list[Any] | None = None, model: Any = None, **settings: Any) -> Any:
    schedule = settings.pop("schedule", Schedule(end_percent=1.0))
    return guide_model(
        model or tiny.model,
        tiny.vae,
        tiny.encoder,
        schedule,
        RarityGradient(k=3, oversample=2, power_iterations=0),
        report=(reports if reports is not None else []).append,
        **settings,
    )


def result(output: Any) -> Any:
    """The first output of a node, of the old or the new node class."""
    return output.result[0] if hasattr(output, "result") else output[0]


def run(
    guider: Any, sigmas: torch.Tensor, sampler: str | Any = "euler", latent: dict | None = None
) -> torch.Tensor:
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    with torch.inference_mode():
        noise = custom.Noise_RandomNoise(5)
        output = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent or EMPTY)
        return result(output)["samples"].clone()


def sigmas_of(model: Any, steps: int = STEPS) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


# --- the same image in every way of sampling --------------------------------------------------------------------


@pytest.mark.parametrize("through", [False, True])
def test_every_way_to_sample_gives_the_same_guided_image(tiny, stock, through):
    model = guided(tiny, through_denoiser=through)
    sigmas = sigmas_of(tiny.model)
    expected = stock(model, tiny, steps=STEPS, latent_image=EMPTY)
    assert not torch.equal(expected, stock(tiny.model, tiny, steps=STEPS, latent_image=EMPTY))
    guider = result(custom.CFGGuider.execute(model, tiny.positive, tiny.negative, 3.0))
    assert torch.equal(run(guider, sigmas), expected)
    with torch.inference_mode():
        output = custom.SamplerCustom.execute(
            model,
            True,
            5,
            3.0,
            tiny.positive,
            tiny.negative,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            EMPTY,
        )
    assert torch.equal(result(output)["samples"], expected)


GUIDERS: dict[str, Callable[[Any, Any], Any]] = {
    "BasicGuider": lambda tiny, model: custom.BasicGuider.execute(model, tiny.positive),
    "CFGGuider": lambda tiny, model: custom.CFGGuider.execute(model, tiny.positive, tiny.negative, 5.0),
    "CFGGuider, CFG 1": lambda tiny, model: custom.CFGGuider.execute(
        model, tiny.positive, tiny.negative, 1.0
    ),
    "DualCFGGuider": lambda tiny, model: custom.DualCFGGuider.execute(
        model, tiny.positive, tiny.negative, tiny.negative, 3.0, 2.0, "regular"
    ),
    "DualCFGGuider, nested": lambda tiny, model: custom.DualCFGGuider.execute(
        model, tiny.positive, tiny.negative, tiny.positive, 3.0, 2.0, "nested"
    ),
    "PerpNegGuider": lambda tiny, model: nodes_perpneg.PerpNegGuider.execute(
        model, tiny.positive, tiny.negative, tiny.negative, 3.0, 1.0
    ),
}


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_is_guided(tiny, name, through):
    reports: list[Any] = []
    sigmas = sigmas_of(tiny.model)
    plain = run(result(GUIDERS[name](tiny, tiny.model)), sigmas)
    model = guided(tiny, reports, through_denoiser=through)
    found = run(result(GUIDERS[name](tiny, model)), sigmas)
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    assert torch.equal(found, run(result(GUIDERS[name](tiny, model)), sigmas))
    assert [step.step for step in reports[-1].guided_steps] == [2, 3, 4, 5]
    zero = guided(
        tiny, gradient=lambda denoise, x, *_: ScoreGradient(torch.zeros(len(x)), torch.zeros_like(x))
    )
    assert torch.equal(run(result(GUIDERS[name](tiny, zero)), sigmas), plain)


@pytest.mark.skipif(not hasattr(custom, "DualModelGuider"), reason="newer than this ComfyUI")
def test_a_guider_with_a_second_model_is_guided_with_the_denoiser_constant(tiny):
    other = tiny.make_model()
    sigmas = sigmas_of(tiny.model)

    def guider(model: Any) -> Any:
        return result(custom.DualModelGuider.execute(model, tiny.positive, 3.0, other, tiny.negative))

    found = run(guider(guided(tiny)), sigmas)
    assert not torch.equal(found, run(guider(tiny.model), sigmas))
    reports: list[Any] = []
    assert torch.equal(run(guider(guided(tiny, reports, through_denoiser=True)), sigmas), found)
    assert "a second model, a LoRA in bypass mode): denoiser constant" in reports[-1].message()


# --- parts of a schedule ----------------------------------------------------------------------------------------


def test_percentages_refer_to_the_steps_of_this_call(tiny):
    reports: list[Any] = []
    model = guided(tiny, reports, schedule=Schedule(start_percent=0.5, end_percent=1.0))
    guider = result(custom.CFGGuider.execute(model, tiny.positive, tiny.negative, 3.0))
    high, low = custom.SplitSigmas.execute(sigmas_of(tiny.model, 10), 4).result
    first = run(guider, high)
    steps = reports[-1].steps
    assert [step.step for step in steps if step.guided] == [2, 3]
    assert [step.sigma for step in steps] == pytest.approx(high[:-1].tolist())
    with torch.inference_mode():
        second = custom.SamplerCustomAdvanced.execute(
            custom.Noise_EmptyNoise(), guider, comfy.samplers.sampler_object("euler"), low, {"samples": first}
        )
    assert result(second)["samples"].isfinite().all()
    assert [step.step for step in reports[-1].guided_steps] == [3, 4, 5]
    assert len(reports[-1].steps) == 6


def test_ksampler_advanced_counts_its_own_steps(tiny):
    reports: list[Any] = []
    model = guided(tiny, reports, schedule=Schedule(start_percent=0.5, end_percent=1.0))
    with torch.inference_mode():
        host_nodes.KSamplerAdvanced().sample(
            model,
            "enable",
            5,
            10,
            3.0,
            "dpmpp_2m",
            "karras",
            tiny.positive,
            tiny.negative,
            EMPTY,
            2,
            8,
            "enable",
        )
    assert [step.step for step in reports[-1].guided_steps] == [3, 4, 5]
    assert len(reports[-1].steps) == 6


@pytest.mark.parametrize("length", [0, 1])
def test_a_schedule_without_steps_is_the_stock_samplers(tiny, length):
    guider = result(custom.BasicGuider.execute(guided(tiny), tiny.positive))
    plain = result(custom.BasicGuider.execute(tiny.model, tiny.positive))
    sigmas = torch.tensor([3.0][:length])
    assert torch.equal(run(guider, sigmas), run(plain, sigmas))


@pytest.mark.parametrize(
    "sampler", ["euler", "uni_pc", "dpmpp_2m_sde", "dpm_2", "sa_solver", "dpm_fast", "heunpp2"]
)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs(tiny, stock, sampler, steps):
    model = guided(tiny, gradient=wave_gradient, schedule=Schedule(start_percent=0.0, end_percent=1.0))
    plain = stock(tiny.model, tiny, sampler_name=sampler, steps=steps)
    found = stock(model, tiny, sampler_name=sampler, steps=steps)
    assert found.isfinite().all() == plain.isfinite().all()
    assert not torch.equal(found, plain)


# --- samplers with settings -------------------------------------------------------------------------------------

SAMPLERS: dict[str, Callable[[Any], Any]] = {
    "SamplerDPMPP_2M_SDE": lambda _: custom.SamplerDPMPP_2M_SDE.execute("heun", 0.5, 1.1, "cpu"),
    "SamplerDPMPP_3M_SDE": lambda _: custom.SamplerDPMPP_3M_SDE.execute(0.5, 1.0, "cpu"),
    "SamplerDPMPP_SDE": lambda _: custom.SamplerDPMPP_SDE.execute(0.5, 1.0, 0.5, "cpu"),
    "SamplerEulerAncestral": lambda _: custom.SamplerEulerAncestral.execute(0.5, 1.0),
    "SamplerEulerAncestralCFGPP": lambda _: custom.SamplerEulerAncestralCFGPP.execute(0.5, 1.0),
    "SamplerLMS": lambda _: custom.SamplerLMS.execute(2),
    "SamplerER_SDE": lambda _: custom.SamplerER_SDE.execute("ER-SDE", 3, 1.0, 1.0),
    "SamplerSASolver": lambda tiny: custom.SamplerSASolver.execute(
        tiny.model, 1.0, 0.1, 0.9, 1.0, 2, 3, False, False
    ),
    "SamplerSASolver, PECE": lambda tiny: custom.SamplerSASolver.execute(
        tiny.model, 1.0, 0.1, 0.9, 1.0, 3, 4, True, False
    ),
    "SamplerSEEDS2": lambda _: custom.SamplerSEEDS2.execute("phi_2", 1.0, 1.0, 0.5),
    "SamplerLCMUpscale": lambda _: advanced_samplers.SamplerLCMUpscale.execute(1.5, 2, "bilinear"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_with_settings_are_guided(tiny, name):
    sigmas = sigmas_of(tiny.model)
    guider = result(custom.CFGGuider.execute(guided(tiny), tiny.positive, tiny.negative, 3.0))
    plain = result(custom.CFGGuider.execute(tiny.model, tiny.positive, tiny.negative, 3.0))

    def sample(which: Any) -> torch.Tensor:
        torch.manual_seed(0)  # some draw from the global generator
        return run(which, sigmas, result(SAMPLERS[name](tiny)))

    found = sample(guider)
    assert found.isfinite().all()
    assert not torch.equal(found, sample(plain))
    assert torch.equal(found, sample(guider))


def test_a_sampler_node_that_adapts_its_steps_is_refused_by_name(tiny):
    sampler = result(
        custom.SamplerDPMAdaptative.execute(3, 0.05, 0.0078, 0.05, 0.0, 1.0, 0.0, 0.81, 0.0, 1.0)
    )
    guider = result(custom.BasicGuider.execute(guided(tiny), tiny.positive))
    with pytest.raises(ValueError, match="'dpm_adaptive'"):
        run(guider, sigmas_of(tiny.model), sampler)


# --- patches of other nodes -------------------------------------------------------------------------------------

PATCHES: dict[str, Callable[[Any], Any]] = {
    "PerturbedAttentionGuidance": lambda model: PerturbedAttentionGuidance.execute(model, 3.0),
    "RescaleCFG": lambda model: RescaleCFG().patch(model, 0.7),
    "APG": lambda model: nodes_apg.APG.execute(model, 1.0, 5.0, 0.0),
    "APG with momentum": lambda model: nodes_apg.APG.execute(model, 1.0, 5.0, -0.5),
    "CFGZeroStar": lambda model: nodes_cfg.CFGZeroStar.execute(model),
    "EasyCache": lambda model: nodes_easycache.EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False),
    "LazyCache": lambda model: nodes_easycache.LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False),
    "DifferentialDiffusion": lambda model: nodes_differential_diffusion.DifferentialDiffusion.execute(
        model, 1.0
    ),
}

# These return cached outputs in some calls, which have no gradient.
CACHES = {"EasyCache", "LazyCache"}


@pytest.mark.parametrize(("name", "calls", "through"), covering(list(PATCHES), ["one", "two"], [False, True]))
def test_patches_of_other_nodes_work_with_guidance(tiny, stock, name, calls, through):
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    settings = {"steps": STEPS, "latent_image": {**EMPTY, "noise_mask": mask}}
    for before in (True, False):  # before and after the guidance node
        reports: list[Any] = []
        plain = result(PATCHES[name](tiny.model))
        options = {"through_denoiser": through, "one_call": calls == "one"}
        model = (
            guided(tiny, reports, plain, **options)
            if before
            else result(PATCHES[name](guided(tiny, reports, **options)))
        )
        expected = stock(plain, tiny, **settings)
        found = stock(model, tiny, **settings)
        assert any("denoiser constant" in text for text in reports[-1].notices) == (
            through and name in CACHES
        )
        assert found.isfinite().all()
        assert not found.requires_grad
        assert not torch.equal(found, expected)
        assert torch.equal(stock(plain, tiny, **settings), expected)  # nothing is left behind
