"""Boosted starts: what the host's own noise scaling makes of them, against numbers written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from jepa_guidance.host.comfy.sampling import wrap_sampler
from jepa_guidance.host.variety.boost import boosted_start, skipped

STEPS = 10
KINDS = ("EPS", "V_PREDICTION", "EDM", "FLOW")


def sigmas_of(sampling, steps: int = STEPS, kind: str = "simple") -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling, kind, steps).cpu()


def host_start(sampling, sigmas: torch.Tensor, noise: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """As the host's KSAMPLER makes the first x."""
    largest, sigma = float(sampling.sigma_max), float(sigmas[0])
    full = math.isclose(largest, sigma, rel_tol=1e-5) or sigma > largest
    return sampling.noise_scaling(sigmas[0], noise.clone(), latent, full)


def deviation(kind: str, sigma: float) -> float:
    """Of x at sigma, in a model whose latents have deviation 1."""
    return math.sqrt((1 - sigma) ** 2 + sigma**2) if kind == "FLOW" else math.sqrt(1 + sigma**2)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)


@pytest.mark.parametrize(
    ("steps", "left_out"), [(250, 3), (1000, 12), (100, 1), (20, 1), (14, 1), (2, 1), (1, 0)]
)
def test_the_papers_share_of_the_steps_is_left_out_and_at_least_one(steps, left_out):
    assert skipped(steps) == left_out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("gamma", "skip"), [(2.5, 1), (4.0, 3), (1.0, 2), (2.5, 0)])
def test_the_start_is_gamma_times_the_deviation_at_the_later_sigma(tiny, pair, kind, gamma, skip):
    sampling = tiny.make_model(kind).model.model_sampling.cpu()
    sigmas = sigmas_of(sampling)
    noise, latent = pair
    boosted, later = boosted_start(sampling, sigmas, noise, gamma, skip)
    assert torch.equal(later, sigmas[skip:])
    sigma = float(later[0])
    share = 1 - sigma if kind == "FLOW" else 1.0
    expected = gamma * deviation(kind, sigma) * noise + share * latent
    torch.testing.assert_close(host_start(sampling, later, boosted, latent), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 4], ids=["from noise", "from a picture"])
def test_gamma_1_without_skipping_is_the_stock_start(tiny, pair, kind, first):
    sampling = tiny.make_model(kind).model.model_sampling.cpu()
    sigmas = sigmas_of(sampling)[first:]
    noise, latent = pair
    boosted, later = boosted_start(sampling, sigmas, noise, 1.0, 0)
    stock_start = host_start(sampling, sigmas, noise, latent)
    torch.testing.assert_close(
        host_start(sampling, later, boosted, latent), stock_start, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_a_picture_has_gamma_times_its_own_noise(tiny, pair, kind):
    sampling = tiny.make_model(kind).model.model_sampling.cpu()
    sigmas = sigmas_of(sampling)[4:]
    noise, latent = pair
    boosted, later = boosted_start(sampling, sigmas, noise, 1.5, 1)
    share = 1 - float(later[0]) if kind == "FLOW" else 1.0
    expected = 1.5 * float(later[0]) * noise + share * latent
    torch.testing.assert_close(host_start(sampling, later, boosted, latent), expected, rtol=1e-5, atol=1e-5)


def test_what_a_mask_keeps_has_the_stock_noise(tiny, pair):
    sampling = tiny.make_model("EPS").model.model_sampling.cpu()
    noise, mask = pair[0], torch.zeros(1, 1, 8, 8)
    mask[..., :3] = 1
    sigmas = sigmas_of(sampling)
    boosted, _ = boosted_start(sampling, sigmas, noise, 2.0, 1, mask)
    whole, _ = boosted_start(sampling, sigmas, noise, 2.0, 1)
    assert torch.equal(boosted[..., 3:], noise[..., 3:])
    assert torch.equal(boosted[..., :3], whole[..., :3])


def test_a_skip_that_leaves_no_step_is_refused(tiny, pair):
    sampling = tiny.make_model("EPS").model.model_sampling.cpu()
    with pytest.raises(ValueError, match="10 of 10 steps"):
        boosted_start(sampling, sigmas_of(sampling), pair[0], 2.0, STEPS)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_run_starts_with_the_stated_deviation(tiny, stock, kind, sampler):
    """The host's sampler, from the node to the first x that its step sees."""
    model, seen = tiny.make_model(kind), []
    sampling = model.get_model_object("model_sampling")

    def wrapper(executor, guider, sigmas, extra_args, callback, noise, *rest, **others):
        noise, later = boosted_start(sampling, sigmas, noise, 2.5, skipped(len(sigmas) - 1))
        plain = guider.predict_noise

        def predict(x, sigma, *args, **kwargs):
            seen.append((float(sigma[0]), x.clone()))
            return plain(x, sigma, *args, **kwargs)

        guider.predict_noise = predict
        return executor(guider, later, extra_args, callback, noise, *rest, **others)

    wrap_sampler(model, "test", wrapper)
    empty = {"samples": torch.zeros(8, 4, 16, 16)}
    result = stock(model, tiny, steps=STEPS, sampler_name=sampler, scheduler="simple", latent_image=empty)
    assert result.isfinite().all()
    sigma, x = seen[0]
    assert len(seen) == STEPS - 1
    assert sigma == pytest.approx(float(sigmas_of(sampling)[1]))
    assert x.std().item() == pytest.approx(2.5 * deviation(kind, sigma), rel=0.03)
