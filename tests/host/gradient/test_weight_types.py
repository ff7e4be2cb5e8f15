"""Denoisers and VAEs with weights stored in fewer bits: the gradient is that of the same numbers in float32."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_patcher
import pytest
import torch
from jepa_guidance.host.guidance.schedule import Schedule

from jepa_core import RarityGradient
from tests.host.conftest import CPU, DEVICE, UNET, TinyConfig, randomise
from tests.host.guide import guide_model

STORED = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def model_of(stored: torch.dtype, kept: torch.dtype) -> Any:
    """A tiny MODEL with weights rounded to `stored` and kept as `kept`; it computes in float32."""
    with torch.inference_mode():
        config = TinyConfig(dict(UNET))
        config.set_inference_dtype(kept, None if kept == torch.float32 else torch.float32)
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu")
        values = comfy.model_base.BaseModel(
            TinyConfig(dict(UNET)), comfy.model_base.ModelType.EPS, device="cpu"
        )
        randomise(values.diffusion_model, seed=1)
        weights = {
            name: weight.to(stored).to(kept) for name, weight in values.diffusion_model.state_dict().items()
        }
        model.diffusion_model.load_state_dict(weights)
        return comfy.model_patcher.ModelPatcher(model, DEVICE, CPU)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_gradient_through_a_denoiser_in_fewer_bits(tiny, stock, stored):
    images, norms = [], []
    for kept in (stored, torch.float32):
        model = model_of(stored, kept)
        reports: list[Any] = []
        patched = guide_model(
            model,
            tiny.vae,
            tiny.encoder,
            Schedule(end_percent=1.0),
            RarityGradient(k=3, oversample=2, power_iterations=0),
            through_denoiser=True,
            # weights in fewer bits are checkpointed anyway, and a block's second run rounds in another order
            checkpointing=True,
            report=reports.append,
        )
        images.append(stock(patched, tiny, steps=3))
        norms.append([step.gradient_norm for step in reports[-1].guided_steps])
        assert not torch.equal(images[-1], stock(model, tiny, steps=3))
        assert all(
            weight.dtype == kept for weight in model.model.diffusion_model.parameters() if weight.ndim > 1
        )
    for found, expected in zip(*norms, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert (images[0] - images[1]).norm() < 1e-3 * images[1].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vae_in_half_precision_guides(tiny, stock, dtype):
    reports: list[Any] = []
    patched = guide_model(
        tiny.model,
        tiny.make_vae(dtype),
        tiny.encoder,
        Schedule(end_percent=1.0),
        RarityGradient(k=3, oversample=2, power_iterations=0),
        report=reports.append,
    )
    found = stock(patched, tiny, steps=3)
    assert found.isfinite().all()
    assert not torch.equal(found, stock(tiny.model, tiny, steps=3))
    assert not any("skipped" in report.message() for report in reports)
