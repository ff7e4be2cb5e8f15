"""The plain loop that the D-JEPA benchmark times gives the tokens that it is compared with."""

from __future__ import annotations

import pytest
import torch

from jepa_core.djepa import sample_tokens
from research.costs import djepa
from tests.core.conftest import random_djepa


@pytest.mark.parametrize("denoiser", ["diffusion", "flow"])
def test_the_plain_loop_draws_the_same_tokens(denoiser):
    model = random_djepa(denoiser=denoiser)
    settings = {"steps": 5, "denoising_steps": 4, "cfg": 2.0}
    labels, seeds = torch.tensor([0, 1, 0]), [3, 4, 5]
    plain = djepa.plain_sample(model, labels, seeds, **settings)
    ours = sample_tokens(model, labels, seeds, **settings)
    torch.testing.assert_close(ours / plain.abs().max(), plain / plain.abs().max(), atol=1e-5, rtol=0)
    row = djepa.measure(model, 3, settings)
    assert row["times_faster"] > 0
    assert row["largest_difference"] < 1e-5


def test_counted_operations_grow_with_sets_and_denoising_steps():
    few, more = djepa.counted("B", steps=2, denoising_steps=1), djepa.counted("B", steps=4, denoising_steps=2)
    # guidance asks twice, of 320 tokens at most; a multiplication and an addition for each weight
    most = 2 * 2 * 320 * 170e6 * 4 * 1.3 / 1e12
    assert 0 < few["transformers_TFLOP"] < more["transformers_TFLOP"] < most
    assert more["head_TFLOP"] == pytest.approx(2 * few["head_TFLOP"], abs=0.011)
    assert few["weights_M"] == pytest.approx(207.7, abs=0.1)
