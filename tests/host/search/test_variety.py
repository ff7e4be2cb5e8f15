"""Variety in a search: noise on the conditioning and a boosted start, of each candidate alone."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from jepa_guidance.host.options import BOOSTED_START, CONDITIONING_NOISE
from jepa_guidance.host.search.config import SearchConfig

from tests.host.search.conftest import SAMPLING
from tests.host.search.test_search import batch, row_by_row


@pytest.mark.parametrize("variety", [CONDITIONING_NOISE, BOOSTED_START])
def test_an_amount_of_zero_draws_what_the_stock_sampler_does(tiny, stock, search, variety):
    """The boost still leaves out its first step, so only the conditioning's noise is off entirely."""
    model = row_by_row(tiny.model)
    kept, _ = search(model, variety=variety, amount=0.0)
    sampling = dict(SAMPLING)
    drawn = stock(model, tiny, latent_image=batch(), **sampling)
    same = torch.equal(kept["samples"], drawn[kept["batch_index"]])
    assert same == (variety == CONDITIONING_NOISE)


@pytest.mark.parametrize("variety", [CONDITIONING_NOISE, BOOSTED_START])
def test_a_kept_image_does_not_depend_on_the_others(tiny, search, variety):
    """Neither on how many are left, nor on how many go through the denoiser at once."""
    model = row_by_row(tiny.model)
    how = {"variety": variety, "amount": 2.0}
    kept, _ = search(model, **how)
    everything, _ = search(model, **how, looks=(), count=6, rows_at_once=2)
    found = dict(zip(everything["batch_index"], everything["samples"], strict=True))
    for place, row in zip(kept["batch_index"], kept["samples"], strict=True):
        assert torch.equal(row, found[place])


@pytest.mark.parametrize("variety", [CONDITIONING_NOISE, BOOSTED_START])
def test_variety_changes_the_images_more_with_its_amount(tiny, stock, search, variety):
    drawn = stock(tiny.model, tiny, latent_image=batch(), **SAMPLING)
    changes = []
    for amount in (0.5, 3.0):
        kept, _ = search(variety=variety, amount=amount, looks=(), count=6)
        rows = torch.stack([row for _, row in sorted(zip(kept["batch_index"], kept["samples"], strict=True))])
        changes.append((rows - drawn).abs().mean().item())
    assert 0 < changes[0] < changes[1]


def test_noise_on_the_conditioning_is_gone_in_the_later_steps(tiny, search):
    """CADS anneals: the last calls see the prompt itself."""
    seen = []

    def listen(apply, arguments):
        seen.append(arguments["c"]["c_crossattn"].clone())
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(listen)
    search(model, variety=CONDITIONING_NOISE, amount=2.0, looks=())
    clean = tiny.positive[0][0]
    changed = [
        not all(torch.equal(row, clean[0]) or torch.equal(row, tiny.negative[0][0][0]) for row in one)
        for one in seen
    ]
    assert changed == sorted(changed, reverse=True)
    assert changed[0]
    assert not changed[-1]
    # the negative one never carries noise
    assert all(any(torch.equal(row, tiny.negative[0][0][0]) for row in one) for one in seen)


def test_a_boosted_start_leaves_out_the_first_step(tiny, search):
    sigmas = []

    def listen(apply, arguments):
        sigmas.append(float(arguments["timestep"][0]))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(listen)
    _, record = search(model, variety=BOOSTED_START)
    sampling = tiny.model.get_model_object("model_sampling")
    schedule = comfy.samplers.calculate_sigmas(sampling, "normal", SAMPLING["steps"])
    assert record.steps == SAMPLING["steps"] - 1
    torch.testing.assert_close(torch.tensor(sigmas), schedule[1:-1])


def test_a_conditioning_without_tokens_is_refused(tiny, search):
    with pytest.raises(ValueError, match="finds nothing in this model's conditioning"):
        search(sampling={"positive": [], "negative": []}, variety=CONDITIONING_NOISE)


def test_amounts_in_the_methods_own_units():
    config = SearchConfig(4, 2, amount=2.0)
    assert config.noise_scale == pytest.approx(0.2)
    assert config.boost == pytest.approx(2.0)
