"""Tiny random models of the host's own classes, built the way the host builds them: under inference mode."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import pytest
import torch
from comfy_api.latest import io
from comfy_api.latest._io import HiddenHolder
from transformers import Dinov2Config, Dinov2Model

from jepa_core import Encoder
from tests.host.families import CPU, DEVICE, randomise

UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 8,
    "use_linear_in_transformer": True,
    "legacy": False,
}


class TinyConfig(comfy.supported_models_base.BASE):
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 1.0


def tiny_model(kind: str = "EPS", dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """A UNet MODEL of 4 x 8 x 8 latents, predicting eps, v or flow velocity."""
    with torch.inference_mode():
        config = TinyConfig(dict(UNET))
        config.set_inference_dtype(dtype, None)
        model = comfy.model_base.BaseModel(config, getattr(comfy.model_base.ModelType, kind), device="cpu")
        randomise(model.diffusion_model, seed=1)
        # moved to the device first, as in a run: the schedule is computed there, and rounding depends on the device
        model.model_sampling.to(DEVICE)
        return comfy.model_patcher.ModelPatcher(model, DEVICE, CPU)


def tiny_vae(dtype: torch.dtype = torch.float32, channels: int = 4) -> comfy.sd.VAE:
    """A KL autoencoder whose decoder doubles each side."""
    sizes = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    sizes |= {"double_z": True, "z_channels": channels, "resolution": 16, "in_channels": 3, "out_ch": 3}
    with torch.inference_mode():
        config = {"params": {"ddconfig": sizes, "embed_dim": channels}}
        vae = comfy.sd.VAE(sd={}, config=config, dtype=dtype, device=DEVICE)
        vae.latent_channels = channels
        vae.upscale_ratio = vae.downscale_ratio = 2
        randomise(vae.first_stage_model, seed=2)
        vae.first_stage_model.to(DEVICE)
    return vae


def tiny_encoder(dtype: torch.dtype = torch.float32) -> Any:
    """A HostEncoder of a random DINOv2 with 28 x 28 pixel input and embeddings of length 16."""
    from jepa_guidance.host.encoders.host_encoder import HostEncoder

    torch.manual_seed(3)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, attn_implementation="eager"
    )
    with torch.inference_mode():
        model = Dinov2Model(config).eval()
        randomise(model, seed=3)
        encoder = Encoder(model.to(DEVICE, dtype), 28)
    patcher = comfy.model_patcher.ModelPatcher(encoder, DEVICE, CPU)
    return HostEncoder("tiny", patcher, 28)


def tiny_conditioning(seed: int) -> list:
    return [[torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(seed)), {}]]


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes run without a page; the host sets their `hidden` before it executes them."""
    monkeypatch.setattr(io.ComfyNode, "hidden", HiddenHolder.from_dict(None))


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    """Tests that count or interrupt an encoder's passes begin without the answers of other tests."""
    from jepa_guidance.host.scoring.answers import known

    known.clear()


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The builders above, and one model of each kind in float32."""
    return SimpleNamespace(
        make_model=tiny_model,
        make_vae=tiny_vae,
        make_encoder=tiny_encoder,
        randomise=randomise,
        model=tiny_model(),
        vae=tiny_vae(),
        encoder=tiny_encoder(),
        positive=tiny_conditioning(10),
        negative=tiny_conditioning(11),
    )


@pytest.fixture
def stock() -> Callable[..., torch.Tensor]:
    """Sample with the host's KSampler node under inference mode, as its executor does."""
    import nodes as host_nodes

    def run(model: Any, tiny: SimpleNamespace, **changes: Any) -> torch.Tensor:
        settings = {"seed": 5, "steps": 5, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
        settings |= {"denoise": 1.0, "positive": tiny.positive, "negative": tiny.negative}
        settings["latent_image"] = {"samples": torch.zeros(2, 4, 8, 8)}
        settings |= changes
        with torch.inference_mode():
            return host_nodes.KSampler().sample(model, **settings)[0]["samples"].clone()

    return run
