"""The recorded clean estimates are those that guidance sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from research.harness.images import Sampler
from research.harness.pack_api import ScoreGradient, chain, preset_inputs

STEPS = 5


@pytest.fixture(scope="module")
def sampler(encoder_dir: Path) -> Sampler:
    return Sampler(encoder_dir, STEPS)


def test_estimates_end_on_the_image(sampler: Sampler) -> None:
    images = sampler.estimates(0)["images"]
    assert images.shape == (STEPS, 128, 128, 3)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    # the last step of Euler's method ends on its own clean estimate
    torch.testing.assert_close(images[-1], sampler.sample(sampler.model, 0), rtol=0, atol=1e-5)


def test_estimates_are_what_guidance_sees(sampler: Sampler) -> None:
    seen: list[Tensor] = []

    def record(denoise: Any, x: Tensor, sigma: Tensor, base_model: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            latent = base_model.process_latent_out(denoise(x).clone())
            seen.append(chain.decoded(sampler.vae, latent)[0].clone())
        # a zero gradient shifts by exactly nothing
        return ScoreGradient(torch.zeros(len(x), dtype=torch.float64), torch.zeros_like(x))

    inputs = preset_inputs(changes={"start_percent": 0.0, "end_percent": 1.0})
    final = sampler.sample(sampler.guided(inputs, gradient=record), 0)
    assert torch.equal(final, sampler.sample(sampler.model, 0))
    torch.testing.assert_close(torch.stack(seen), sampler.estimates(0)["images"], rtol=0, atol=1e-5)
