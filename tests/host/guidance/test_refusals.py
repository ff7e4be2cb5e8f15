"""Models that make no pictures, or mix the images of a batch, are refused before anything is sampled."""

from __future__ import annotations

from typing import Any

import comfy.ldm.models.autoencoder
import comfy.supported_models
import comfy.utils
import pytest
import torch
from jepa_guidance.host.guidance.refusals import check_frames, check_vae_fits
from jepa_guidance.host.guidance.schedule import Schedule

from jepa_core import RarityGradient
from tests.host.families import model_of, unet
from tests.host.guide import guide_model

ADVICE = r"Connect a text-to-image or text-to-video model and its VAE\."


def video_unet(config: type, **sizes: Any) -> Any:
    """A small MODEL of a video UNet, which treats a batch as one video."""
    time = {"use_temporal_attention": True, "use_temporal_resblock": True, "video_kernel_size": [3, 1, 1]}
    time |= {"extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images"}
    heads = {"num_head_channels": 16, "num_heads": -1}
    return model_of(config, unet(64, heads, in_channels=8, num_classes="sequential", **time, **sizes))


def video_decoder() -> Any:
    """The host's autoencoder for such a model, small."""
    sizes = {"double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    sizes |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    regulariser = "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"
    with torch.inference_mode():
        return comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={"target": regulariser},
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": sizes},
            decoder_config={
                "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
                "params": sizes | {"video_kernel_size": [3, 1, 1], "alpha": 0.0},
            },
        )


@pytest.mark.parametrize(("name", "length"), [("SVD_img2vid", 768), ("SV3D_u", 256), ("SV3D_p", 1280)])
def test_a_unet_that_mixes_the_frames_of_a_batch_is_refused(tiny, name, length):
    model = video_unet(getattr(comfy.supported_models, name), adm_in_channels=length)
    with pytest.raises(
        ValueError, match=rf"this model treats the batch as the frames of one video.*{ADVICE}"
    ):
        guide_model(model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3))


def test_a_decoder_that_mixes_the_frames_of_a_batch_is_refused(tiny):
    tiny.vae.first_stage_model = video_decoder()
    with pytest.raises(ValueError, match=rf"this VAE treats the batch as the frames of one video.*{ADVICE}"):
        guide_model(tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3))


def test_a_model_without_pictures_is_refused_with_what_to_connect(tiny):
    check_vae_fits(tiny.vae, tiny.model)
    tiny.vae.output_channels = 2
    with pytest.raises(ValueError, match=rf"this VAE decodes to 2 channels, not to a picture\. {ADVICE}"):
        check_vae_fits(tiny.vae, tiny.model)
    tiny.vae.output_channels = 3
    sound = type("Sound", (type(tiny.model.model.latent_format),), {"latent_dimensions": 1})()
    tiny.model.add_object_patch("latent_format", sound)
    with pytest.raises(ValueError, match=rf"this model's latents have 1 dimension\(s\)\. {ADVICE}"):
        check_vae_fits(tiny.vae, tiny.model)


def test_a_latent_of_several_parts_is_refused_as_such(tiny):
    """The host packs a video and its sound like this for a sampler."""
    parts = [torch.zeros(1, 8, 2, 4, 4), torch.zeros(1, 8, 10, 4)]
    packed = torch.cat([part.reshape(1, 1, -1) for part in parts], -1)
    if hasattr(comfy.utils, "pack_latents"):
        assert torch.equal(packed, comfy.utils.pack_latents(parts)[0])
    with pytest.raises(ValueError, match="images and videos alone; this latent has several parts"):
        check_frames(packed, tiny.encoder)
    with pytest.raises(ValueError, match=r"this latent has shape \(1, 64, 100\)"):
        check_frames(torch.zeros(1, 64, 100), tiny.encoder)
