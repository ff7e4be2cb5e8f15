"""JEPAPromptReference: a prompt's own pictures, bit for bit those of the host's KSampler, without any guidance."""

from __future__ import annotations

from typing import Any

import nodes as host_nodes
import pytest
import torch
from jepa_guidance.nodes.guidance import JEPAGuidance
from jepa_guidance.nodes.prompt_reference import JEPAPromptReference

from tests.host.scoring.test_references import CLOSE, SETTINGS, embedded

SAMPLING = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}


def run(tiny: Any, **changes: Any) -> tuple:
    values = {"model": tiny.model, "vae": tiny.vae, "positive": tiny.positive, "negative": tiny.negative}
    values |= {"latent_image": LATENT, "encoder": tiny.encoder, "first_seed": 5, "count": 3}
    values |= SAMPLING | SETTINGS | {"mode": "no scores"} | changes
    with torch.inference_mode():
        return JEPAPromptReference.execute(**values).args


def decoded(tiny: Any, latent: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return host_nodes.VAEDecode().decode(tiny.vae, {"samples": latent})[0]


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_picture_i_is_the_stock_samplers_of_the_seed_plus_i(tiny, stock, sampler_name):
    reference, images, seeds = run(tiny, sampler_name=sampler_name)
    assert images.shape == (3, 16, 16, 3)
    assert seeds == [5, 6, 7]
    for seed, image in zip(seeds, images, strict=True):
        own = stock(
            tiny.model,
            tiny,
            **SAMPLING | {"sampler_name": sampler_name},
            seed=seed,
            latent_image=LATENT,
        )
        assert torch.equal(image[None], decoded(tiny, own))
    torch.testing.assert_close(reference.parts[0].embeddings, embedded(tiny.encoder, images), **CLOSE)
    assert reference.parts[0].scores is None


def test_only_the_size_of_the_latent_counts(tiny):
    full = {"samples": torch.randn(2, 4, 8, 8), "noise_mask": torch.ones(2, 1, 8, 8), "batch_index": [3, 4]}
    assert torch.equal(run(tiny, latent_image=full)[1], run(tiny)[1])
    assert run(tiny, latent_image={"samples": torch.zeros(1, 4, 8, 16)})[1].shape == (3, 16, 32, 3)


def test_a_guided_model_draws_as_if_it_were_not(tiny, stock):
    guidance = {"strength": 2.0, "preset": "subtle", "start_percent": 0.0, "end_percent": 1.0}
    with torch.inference_mode():
        guided = JEPAGuidance.execute(
            model=tiny.model, vae=tiny.vae, encoder=tiny.encoder, target="none", apart=False, **guidance
        ).args[0]
    assert torch.equal(run(tiny, model=guided)[1], run(tiny)[1])
    # the model that was given stays guided
    assert not torch.equal(stock(guided, tiny), stock(tiny.model, tiny))


def test_the_last_seed_is_followed_by_the_first(tiny, stock):
    _, images, seeds = run(tiny, first_seed=2**64 - 1, count=2)
    assert seeds == [2**64 - 1, 0]
    own = stock(tiny.model, tiny, **SAMPLING, seed=0, latent_image=LATENT)
    assert torch.equal(images[1:], decoded(tiny, own))


def test_scores_are_those_of_the_pictures(tiny):
    reference, *_ = run(tiny, mode="exact", count=2)
    assert len(reference.parts[0].scores) == 2
    assert reference.how["mode"] == "exact"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count 0 is outside 1 to 4096"),
        ({"first_seed": -1}, "first_seed -1 is outside"),
        ({"steps": 0}, "steps 0 is outside"),
        ({"cfg": float("nan")}, "cfg nan is outside"),
        ({"sampler_name": "best"}, "sampler_name must be one of"),
        ({"model": "text"}, "model must be of type MODEL"),
        ({"vae": "text"}, "vae must be of type VAE"),
        ({"encoder": None}, "encoder must be of type JEPA_ENCODER"),
        ({"latent_image": {}}, "latent_image must be of type LATENT"),
        ({"latent_image": {"samples": torch.zeros(1, 4, 5, 8, 8)}}, "latent_image must be of pictures"),
        ({"latent_image": {"samples": torch.zeros(1, 4, 8)}}, "latent_image must be of pictures"),
    ],
)
def test_values_that_do_not_fit_are_refused_before_anything_is_drawn(tiny, monkeypatch, changes, message):
    monkeypatch.setattr("jepa_guidance.host.scoring.prompt_pictures.stock_sample", None)
    with pytest.raises(ValueError, match=message):
        run(tiny, **changes)


def test_a_vae_of_another_model_is_refused_before_anything_is_drawn(tiny, monkeypatch):
    monkeypatch.setattr("jepa_guidance.host.scoring.prompt_pictures.stock_sample", None)
    with pytest.raises(ValueError, match="Connect the VAE that belongs to the model"):
        run(tiny, vae=tiny.make_vae(channels=16))
