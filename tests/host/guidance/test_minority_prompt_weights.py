"""MinorityPrompt with weights that the host streams, and with quantised text encoders."""

from __future__ import annotations

import json
from types import SimpleNamespace

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd1_clip
import pytest
import torch
from jepa_guidance.host.comfy.streaming import is_dynamic
from jepa_guidance.host.guidance import prompt_run

from tests.host.clips import SIZES, clip_of, tiny_clip
from tests.host.conftest import tiny_conditioning, tiny_model
from tests.host.dynamic_vram import CARD, dynamic_vram
from tests.host.families import CPU
from tests.host.guidance.test_minority_prompt import learned


@pytest.fixture
def draw(tiny, stock):
    return lambda patched: stock(patched[0], tiny, positive=patched[1], steps=4)


def test_streamed_models_run_from_copies_that_stay(stock):
    """Models of ComfyUI's dynamic VRAM: the image is that of the same weights in plain patchers."""
    model, clip = tiny_model(), tiny_clip()
    graph = SimpleNamespace(positive=None, negative=tiny_conditioning(11))

    def draw(patched):
        return stock(patched[0], graph, positive=patched[1], steps=4)

    wanted, plain = draw(learned(model, clip)), draw((model, learned(model, clip)[1]))
    management.unload_all_models()
    with dynamic_vram():
        streamed = comfy.model_patcher.ModelPatcherDynamic(model.model, CARD, CPU)
        held = clip.clone()
        held.patcher = comfy.model_patcher.ModelPatcherDynamic(clip.cond_stage_model, CARD, CPU)
        patched = learned(streamed, held)
        assert not is_dynamic(patched[0])
        (attached,) = patched[0].get_additional_models_with_key(prompt_run.KEY)
        assert not is_dynamic(attached)
        found = draw(patched)
        assert torch.equal(draw(patched), found)
        assert (found - wanted).norm() < 1e-3 * (wanted - plain).norm()
        assert torch.equal(draw((streamed, patched[1])), plain)
    management.unload_all_models()


def test_models_too_large_for_the_card_are_refused():
    model, clip = tiny_model(), tiny_clip()
    with dynamic_vram() as card:
        streamed = comfy.model_patcher.ModelPatcherDynamic(model.model, CARD, CPU)
        held = clip.clone()
        held.patcher = comfy.model_patcher.ModelPatcherDynamic(clip.cond_stage_model, CARD, CPU)
        card.total = 1 << 20
        with pytest.raises(
            ValueError, match="MinorityPrompt differentiates the denoiser and the text encoder, and"
        ):
            learned(streamed, held)
    management.unload_all_models()


def test_a_quantised_text_encoder_is_that_of_its_numbers(tiny, draw):
    """Scaled float8, as text encoders are published; the host multiplies them out before each product."""
    values = tiny_clip().cond_stage_model.clip_l.transformer.state_dict()
    quantised, rounded = {}, {}
    for name, weight in values.items():
        quantised[name] = rounded[name] = weight.clone()
        if weight.ndim == 2 and name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
            scale = weight.abs().max() / 400
            small = (weight / scale).to(torch.float8_e4m3fn)
            rounded[name] = small.float() * scale
            layer = name.removesuffix(".weight")
            quantised |= {
                name: small,
                f"{layer}.weight_scale": scale,
                f"{layer}.comfy_quant": describing("float8_e4m3fn"),
            }
    images = []
    for weights, more in ((quantised, {"quantization_metadata": {"mixed_ops": True}}), (rounded, {})):
        parts = comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer
        clip = clip_of(*parts, torch.float32, {"clip_l": SIZES}, weights, **more)
        kinds = {type(one).__name__ for one in clip.cond_stage_model.parameters()}
        assert ("QuantizedTensor" in kinds) == bool(more), kinds
        images.append(draw(learned(tiny.model, clip)))
    plain = draw((tiny.model, learned(tiny.model, clip)[1]))
    assert (images[0] - images[1]).norm() < 1e-2 * (images[1] - plain).norm()


def describing(kind: str) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
