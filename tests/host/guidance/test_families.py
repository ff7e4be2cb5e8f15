"""Every model family, guided in the host's sampler: parity, gradients, the size of the shift, refusals."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import nodes as host_nodes
import pytest
import torch
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import LatentDecoder, choose_decoder, decoded
from jepa_guidance.host.gradient.estimate import dx0_dx
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient, ScoreGradient
from jepa_guidance.host.gradient.ways import Way
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.options import ENCODER_RESOLUTION, TINY, TINY_OR_SMALL
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from torch import Tensor

from jepa_core import JacobianOperator, RarityGradient, differentiable
from tests.host.conftest import tiny_encoder
from tests.host.families import FAMILIES, REFUSED, Family
from tests.host.guide import guide_model

SUPPORTED = [name for name in FAMILIES if name not in ("wan_video", *REFUSED)]
# The host's fused rotary embeddings do not support float64.
FLOAT32_ONLY = {"flux", "flux2", "chroma", "lumina2", "z_image", "qwen_image", "wan_still", "cosmos_predict2"}
FLOAT32_ONLY |= {
    "wan_video",
    "ernie",
    "omnigen2",
    "hidream",
    "kandinsky5",
    "krea2",
    "long_cat",
    "lens",
    "boogu",
}
FLOAT32_ONLY |= {
    "hunyuan_image",
    "ideogram4",
    "mage_flow",
    "anima",
    "joy_image",
    "chroma_radiance",
    "pixel_dit",
}
FLOAT32_ONLY |= {"z_image_pixels", "pid", "hidream_o1", "hunyuan_still", "hunyuan15_still", "mochi_still"}
FLOAT32_ONLY |= {"cosmos_still", "wan22_still", "ltx_still"}
# Families with slow gradient checks, or with the network of another family and another sampling class.
LONG = {"sdxl_v_zero_snr", "pixart", "flux2", "cascade", "omnigen2", "hidream", "kandinsky5"}
LONG |= {"wan22_still", "hunyuan_still", "hunyuan15_still", "mochi_still", "pid", "cascade_b"}
# With the denoiser held constant, families differ only by sampling class and decoder.
HELD_CONSTANT = ("sd15", "sd2", "playground", "flux", "wan_still", "cosmos_predict2")
QUICK = {"k": 3, "oversample": 2, "power_iterations": 0}
EXACT = {"k": 3, "oversample": 4, "power_iterations": 6, "tolerance": 0.0}


@functools.cache
def family_of(name: str, dtype: torch.dtype = torch.float32) -> Family:
    try:
        return FAMILIES[name](dtype)
    except AttributeError as error:
        if "comfy.supported_models" not in str(error):
            raise
        pytest.skip(f"this host is older than the family {name}")


# shared by all tests, which do not change it
encoder_of = functools.cache(tiny_encoder)


@functools.cache
def exact_family(name: str) -> Family:
    """The family in float64, as far as the host's code supports that."""
    exact = family_of(name, torch.float64)
    return replace(exact, model=family_of(name).model) if name in FLOAT32_ONLY else exact


def with_long(names: list[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in names]


def sample(family: Family, model: Any = None, **changes: Any) -> Tensor:
    """Run the host's KSampler node under inference mode, as the executor does."""
    settings = {"seed": 5, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    settings |= {"positive": family.positive, "negative": family.negative, "latent_image": family.latent}
    with torch.inference_mode():
        run = host_nodes.KSampler().sample(model or family.model, **settings | {"denoise": 1.0} | changes)
        return run[0]["samples"].clone()


def guided(
    family: Family, encoder: Any, schedule: Schedule | None = None, model: Any = None, **settings: Any
) -> Any:
    """The family's MODEL, guided; settings are those of apply_guidance."""
    rarity = settings.pop("rarity", None) or RarityGradient(**QUICK)
    schedule = schedule or Schedule(end_percent=1.0)
    return guide_model(model or family.model, family.vae, encoder, schedule, rarity, **settings)


def wave_gradient(denoise: Callable, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
    return ScoreGradient(torch.zeros(len(x)), torch.sin(3 * x) + 0.1 * x)


def zero_gradient(denoise: Callable, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
    return ScoreGradient(torch.zeros(len(x)), torch.zeros_like(x))


# --- parity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_node_guides_nothing_at_strength_zero_and_in_an_empty_range(name):
    family = family_of(name)
    settings = {
        entry.id: entry.default
        for entry in JEPAGuidedKSampler.define_schema().inputs
        if getattr(entry, "default", None) is not None
    }
    settings |= {"vae": family.vae, "encoder": encoder_of(), "model": family.model}
    settings |= {"positive": family.positive, "negative": family.negative, "latent_image": family.latent}
    settings |= {"seed": 5, "steps": 3, "cfg": 3.0, "scheduler": "simple"}
    plain = sample(family, steps=3)
    for change in ({"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}):
        with torch.inference_mode():
            latent, trace = JEPAGuidedKSampler.execute(**settings | change).result
        assert torch.equal(latent["samples"], plain)
        assert trace.steps == []


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_zero_gradient_is_bit_identical_to_the_stock_sampler(name):
    family = family_of(name)
    plain = sample(family, steps=3)
    for through, calls in ((False, "two"), (True, "two"), (False, "one")):
        settings = {"gradient": zero_gradient, "through_denoiser": through, "one_call": calls == "one"}
        assert torch.equal(sample(family, guided(family, encoder_of(), **settings), steps=3), plain)


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "through"),
    [
        case if case[1] or case[0] in HELD_CONSTANT else pytest.param(*case, marks=pytest.mark.long)
        for case in itertools.product(SUPPORTED, (False, True))
    ],
)
def test_a_guided_run_is_finite_repeatable_and_not_the_stock_samplers(name, through):
    family = family_of(name)
    reports: list[Any] = []
    model = guided(family, encoder_of(), through_denoiser=through, report=reports.append)
    image = sample(family, model, steps=3)
    plain = sample(family, steps=3)
    assert image.shape == plain.shape
    assert image.isfinite().all()
    assert (image - plain).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(image, sample(family, model, steps=3))
    steps = reports[-1].guided_steps
    assert [step.step for step in steps] == [1, 2]
    assert all(torch.tensor([*step.score, *step.shift]).isfinite().all() for step in steps)
    assert all(shift > 0 for step in steps for shift in step.shift)


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_largest_change_of_the_latent_in_its_own_scale_is_the_strength(name):
    family = family_of(name)
    reports: list[Any] = []
    schedule = Schedule(strength=0.3, end_percent=1.0)
    sample(family, guided(family, encoder_of(), schedule, gradient=wave_gradient, report=reports.append))
    guided_steps = reports[-1].guided_steps
    assert len(guided_steps) == 3
    for step in guided_steps:
        unit = torch.ones_like(family.latent["samples"])
        scale = family.model.model.model_sampling.calculate_input(torch.tensor([step.sigma]), unit)
        assert [shift * scale.max().item() for shift in step.shift] == pytest.approx([0.3], rel=1e-5)


# --- gradients ----------------------------------------------------------------------------------------------------


def dense_score(encoder: Any, x: Tensor) -> float:
    """Sum of the logs of the three largest singular values of the dense Jacobian at x (1, 3, S, S)."""
    with differentiable(encoder):
        rows = JacobianOperator(encoder, x[0]).vjp(torch.eye(encoder.embed_dim))
    return torch.linalg.svdvals(rows)[:3].log().sum().item()


def image_by_the_host(vae: Any, latent: Tensor) -> Tensor:
    """The image of a latent as the host decodes it, (1, H, W, 3)."""
    with torch.inference_mode():
        image = vae.decode(latent)
        return (image[:, 0] if image.ndim == 5 else image).clone()


def check_inside(
    family: Family, encoder: Any, through: bool, cfg: float, model: Any = None, **settings: Any
) -> list[Tensor]:
    """Compare the gradient at each guided step of a real run with finite differences; return the gradients.

    Args:
        settings: of the sampler; checkpointing and start_percent are guidance's.
    """
    checkpointing = settings.pop("checkpointing", False)
    first_step = settings.pop("start_percent", 0.4)
    chain = LatentGradient(
        LatentDecoder(family.vae),
        ImageGradient([Guide(encoder.encoder)], RarityGradient(**EXACT)),
        Way(through, checkpointing=checkpointing),
    )
    # The host's models return float32 whatever the dtype of their weights, so the steps are large.
    step, tolerance = (3e-4, 1e-2) if through else (1e-5, 5e-4)
    gradients = []

    def check(denoise: Callable, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        at_x = chain(denoise, x, sigma, base_model)
        with torch.inference_mode(False), torch.no_grad():
            x, clean = x.detach().clone(), denoise(x).detach().clone().double()
            per_x = dx0_dx(base_model.model_sampling, sigma)

            def score(point: Tensor) -> float:
                # as each path is defined: the network runs again, or its output is held constant
                moved = clean + per_x * (point - x)
                estimate = denoise(point.to(x.dtype)).detach().clone().double() if through else moved
                image = decoded(family.vae, base_model.process_latent_out(estimate[:1])).double()
                seen = encoder.encoder
                if len(image) > 1:
                    seen, image = seen.of_clips(len(image)), image[None]
                return dense_score(seen, seen.preprocess(image))

            gradient = at_x.gradient.double()
            random = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(gradient)
            random[1:] = 0
            # along the gradient itself, where the change is largest, and along a random direction
            steepest = torch.zeros_like(gradient)
            steepest[0] = gradient[0]
            for direction in (steepest, random):
                direction = direction / direction.square().mean().sqrt() * x[:1].std()
                ends = [score(x.double() + sign * step * direction) for sign in (1, -1)]
                expected = (ends[0] - ends[1]) / (2 * step)
                # along a random direction the change is about the product of the norms over sqrt(entries)
                usual = (gradient[:1].norm() * direction.norm()).item() / direction[:1].numel() ** 0.5
                found = (gradient * direction).sum().item()
                assert found == pytest.approx(expected, abs=tolerance * max(abs(expected), usual))
            assert gradient[:1].norm() > 0
        gradients.append(at_x.gradient)
        return at_x

    schedule = Schedule(start_percent=first_step, end_percent=0.6)
    patched = guided(
        family,
        encoder,
        schedule,
        model=model,
        gradient=check,
        through_denoiser=through,
        checkpointing=checkpointing,
    )
    sample(family, patched, cfg=cfg, **settings)
    assert gradients
    return gradients


def gradient_cases() -> list:
    """(family, through the denoiser, CFG) for all families; most are marked long."""
    quick = {(name, True, 4.0) for name in set(SUPPORTED) - LONG}
    # the held-constant path differs only by sampling class and decoder; CFG 1 leaves out half of the call
    quick |= {
        (name, False, 4.0) for name in ("sd15", "sd2", "playground", "flux", "wan_still", "cosmos_predict2")
    }
    quick |= {(name, True, 1.0) for name in ("sd15", "flux", "qwen_image")}
    cases = [(name, through, cfg) for name in SUPPORTED for through in (False, True) for cfg in (1.0, 4.0)]
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.long) for case in cases]


@pytest.mark.parametrize(("name", "through", "cfg"), gradient_cases())
def test_the_gradient_inside_a_run_is_the_finite_difference(name, through, cfg, record_property):
    """A cell of the support matrix."""
    check_inside(exact_family(name), encoder_of(torch.float64), through, cfg)
    path = "through denoiser" if through else "denoiser constant"
    record_property("support", ["family", family_of(name).name, path, "works"])


@pytest.mark.parametrize("name", with_long(SUPPORTED))
def test_checkpointing_changes_no_gradient(name):
    family = family_of(name)
    gradients = []
    for checkpointing in (False, True):
        chain = LatentGradient(
            LatentDecoder(family.vae),
            ImageGradient([Guide(encoder_of().encoder)], RarityGradient(**QUICK)),
            Way(True, checkpointing=checkpointing),
        )

        def keep(
            denoise: Callable, x: Tensor, sigma: Tensor, base_model: Any, chain: Any = chain
        ) -> ScoreGradient:
            at_x = chain(denoise, x, sigma, base_model)
            gradients.append(at_x.gradient)
            return ScoreGradient(at_x.score, torch.zeros_like(at_x.gradient))

        settings = {"through_denoiser": True, "checkpointing": checkpointing, "gradient": keep}
        sample(family, guided(family, encoder_of(), Schedule(start_percent=0.4, end_percent=0.6), **settings))
    assert len(gradients) == 2
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-3 * gradients[0].abs().max()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_state_that_a_network_keeps_between_calls_changes_no_gradient(checkpointing, monkeypatch):
    """Compared with the same network without that state, from the first step on."""
    family = family_of("hidream_o1")
    network = family.model.model.diffusion_model
    forward = network._forward

    def forgetful(*args: Any, **kwargs: Any) -> Tensor:
        network.clear_kv_cache()
        return forward(*args, **kwargs)

    network.clear_kv_cache()
    found = gradients_of_a_run(family, checkpointing)
    kept = [tensor for entry in network._kv_cache_entries for pair in entry["kv"] for tensor in pair]
    assert kept
    assert not any(tensor.requires_grad for tensor in kept)
    monkeypatch.setattr(network, "_forward", forgetful)
    expected = gradients_of_a_run(family, checkpointing)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max() > 0


def gradients_of_a_run(family: Family, checkpointing: bool) -> list[Tensor]:
    """Gradients through the denoiser at each of three steps, without any shift."""
    settings = {"through_denoiser": True, "checkpointing": checkpointing}
    chain = LatentGradient(
        LatentDecoder(family.vae),
        ImageGradient([Guide(encoder_of().encoder)], RarityGradient(**QUICK)),
        Way(True, checkpointing=checkpointing),
    )
    gradients = []

    def keep(denoise: Callable, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        at_x = chain(denoise, x, sigma, base_model)
        gradients.append(at_x.gradient)
        return ScoreGradient(at_x.score, torch.zeros_like(at_x.gradient))

    schedule = Schedule(start_percent=0.0, end_percent=1.0)
    sample(family, guided(family, encoder_of(), schedule, gradient=keep, **settings), steps=3)
    return gradients


@pytest.mark.parametrize("through", [False, True])
def test_checkpointing_runs_the_decoder_twice_and_the_encoder_no_more_often(through, monkeypatch):
    """A decoder that keeps less without it is not checkpointed, see test_lean.py."""
    family, encoder = family_of("sd15"), encoder_of()
    monkeypatch.setattr("jepa_guidance.host.gradient.lean._is_plain_block", lambda block: False)
    calls: dict[str, int] = {}

    def count(name: str, module: torch.nn.Module) -> None:
        forward = type(module).forward

        def counted(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls[name] += not x.is_meta  # memory is counted without data
            return forward(block, x, *args, **kwargs)

        monkeypatch.setattr(type(module), "forward", counted)

    count("decoder", family.vae.first_stage_model.decoder.mid.block_1)
    count("encoder", encoder.encoder.model.encoder.layer[0])
    found = []
    # the first run also checks the gradients
    for checkpointing in (False, False, True):
        calls |= {"decoder": 0, "encoder": 0}
        settings = {"through_denoiser": through, "checkpointing": checkpointing}
        sample(family, guided(family, encoder, Schedule(start_percent=0.4, end_percent=0.6), **settings))
        found.append(dict(calls))
    found.pop(0)
    assert found[1]["encoder"] == found[0]["encoder"]
    assert found[1]["decoder"] == 2 * found[0]["decoder"]


# --- latents with a time axis -------------------------------------------------------------------------------------


def test_an_image_of_a_video_model_is_decoded_as_the_host_does():
    family = family_of("wan_still")
    latent = torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(False), torch.no_grad():
        image = decoded(family.vae, latent)
    assert image.shape == (1, 32, 48, 3)
    assert torch.allclose(image, image_by_the_host(family.vae, latent), atol=1e-6)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_an_image_latent_with_a_time_axis_is_shrunk_like_one_without(fit):
    family = family_of("wan_still")
    decoder = choose_decoder(ENCODER_RESOLUTION, family.vae, None, 28, fit)
    latent = torch.randn(1, 16, 9, 7, generator=torch.Generator().manual_seed(1))
    small = decoder.prepare(latent.unsqueeze(2))
    assert small.shape == (1, 16, 1, 4, 4)
    assert torch.equal(small[:, :, 0], decoder.prepare(latent))


def test_an_image_of_a_video_model_is_guided_at_the_encoders_resolution():
    family = family_of("qwen_image")
    image = sample(family, guided(family, encoder_of(), decoder=ENCODER_RESOLUTION), steps=2)
    assert image.isfinite().all()
    assert not torch.equal(image, sample(family, steps=2))


def test_there_is_no_tiny_decoder_for_a_video_model(monkeypatch):
    """For some, the host has small decoders with similar names, which are other networks."""
    family = family_of("wan_still")
    latent_format = family.model.get_model_object("latent_format")
    monkeypatch.setattr(latent_format, "taesd_decoder_name", "lighttaew2_1")
    with pytest.raises(ValueError, match="no tiny autoencoder for this model's latents"):
        choose_decoder(TINY, family.vae, latent_format, 28, "squash")
    chosen = choose_decoder(TINY_OR_SMALL, family.vae, latent_format, 28, "squash")
    assert chosen.description.endswith("(no tiny one exists)")


def test_transparent_pixels_are_composited_over_white():
    vae = SimpleNamespace(
        vae_dtype=torch.float32, device=torch.device("cpu"), process_output=lambda image: image
    )
    vae.first_stage_model = SimpleNamespace(decode=lambda latent: latent)
    latent = torch.rand(1, 4, 1, 3, 2)
    colours, alpha = latent[:, :3, 0].movedim(1, -1), latent[:, 3:, 0].movedim(1, -1)
    assert torch.allclose(decoded(vae, latent), colours * alpha + (1 - alpha))


def test_a_video_is_refused_before_any_step(record_property):
    family = family_of("wan_video")
    calls = []

    def count(denoise: Callable, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        calls.append(1)
        return zero_gradient(denoise, x, sigma, base_model)

    with pytest.raises(
        ValueError, match=r"\(1, 16, 3, 4, 6\), a video of 3 latent frames, and tiny sees still images"
    ):
        sample(family, guided(family, encoder_of(), gradient=count))
    assert calls == []
    for path in ("denoiser constant", "through denoiser"):
        record_property(
            "support", ["family", family.name, path, "refused with a guide of stills; V-JEPA 2 guides it"]
        )


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_guided_is_refused_before_anything_runs(name, monkeypatch, record_property):
    family = family_of(name)
    assert not family.supported

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("the denoiser was called")

    monkeypatch.setattr(family.model.model.diffusion_model, "forward", run)
    for through in (False, True):
        with pytest.raises(ValueError, match=re.escape(family.reason)):
            guided(family, encoder_of(), through_denoiser=through)
        path = "through denoiser" if through else "denoiser constant"
        record_property("support", ["family", family.name, path, f"refused: {family.reason}"])
