"""Tiny random CLIPs of the host's own classes, with its own tokenisers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd3_clip
import torch

from tests.host.families import DEVICE, randomise

# As wide as the prompts of the tiny UNet.
SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}


def tiny_clip(dtype: torch.dtype = torch.float32) -> comfy.sd.CLIP:
    """The CLIP of SD 1.5 with 3 layers of width 8, made under inference mode as loaders do."""
    return clip_of(comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer, dtype, {"clip_l": SIZES})


def tiny_sdxl_clip(wide: int, dtype: torch.dtype = torch.float32) -> comfy.sd.CLIP:
    """The CLIP of SDXL: encoders l and g of widths 8 and `wide`."""
    sizes = {"clip_l": SIZES, "clip_g": SIZES | {"hidden_size": wide}}
    return clip_of(comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, dtype, sizes)


def tiny_sd3_clip(wide: int) -> comfy.sd.CLIP:
    """The CLIP of SD3 without its T5: encoders l and g of widths 8 and `wide`."""
    sizes = {"clip_l": SIZES, "clip_g": SIZES | {"hidden_size": wide}}
    model = comfy.text_encoders.sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False)
    return clip_of(model, comfy.text_encoders.sd3_clip.SD3Tokenizer, torch.float32, sizes)


def clip_of(
    model: Any, tokenizer: Any, dtype: torch.dtype, sizes: dict, weights: dict | None = None, **options: Any
) -> comfy.sd.CLIP:
    """The CLIP of these classes.

    Args:
        sizes: {text encoder: what differs from its published configuration}.
        weights: random ones if None. options: of the host's constructor.
    """
    options |= {"dtype": dtype, "load_device": DEVICE}
    options |= {f"{name}_model_config": own for name, own in sizes.items()}
    with torch.inference_mode():
        target = SimpleNamespace(clip=model, tokenizer=tokenizer, params={})
        clip = comfy.sd.CLIP(target, model_options=options, state_dict=[weights] if weights else [])
        if weights is None:
            randomise(clip.cond_stage_model, seed=4)
    return clip
