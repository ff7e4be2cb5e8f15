"""A tiny random model of every family, built from the host's own classes.

Each comes with its VAE, conditioning and empty latent. Only widths and depths are small: configuration, network,
sampling and latent format are those that the host picks for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.ldm.lightricks.vae.causal_video_autoencoder as ltx
import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models as supported
import comfy.supported_models_base
import torch
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams
from torch import Tensor, nn

CPU = torch.device("cpu")
DEVICE = comfy.model_management.get_torch_device()
TOKENS = 3


@dataclass(frozen=True)
class Family:
    """What a user connects to a sampler.

    Attributes:
        model: MODEL. vae: the VAE that decodes its latents.
        positive, negative: CONDITIONING. latent: LATENT, empty, a batch of one.
        supported: whether guidance accepts this combination.
        reason: if not, a part of the message.
    """

    name: str
    model: Any
    vae: Any
    positive: list
    negative: list
    latent: dict
    supported: bool = True
    reason: str = ""


# --- weights ------------------------------------------------------------------------------------------------------


def randomise(module: nn.Module, seed: int, size: float = 0.3) -> None:
    """Fill all weights and position tables with random values; the host's layers are uninitialised, some zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * size
            if parameter.ndim > 1:
                values = values / parameter[0].numel() ** 0.5 * 3
            is_scale = name.endswith(("norm.weight", "gamma")) or ("norm" in name and name.endswith("weight"))
            parameter.copy_(values + (1.0 if is_scale and parameter.squeeze().ndim == 1 else 0.0))
        for name, buffer in module.named_buffers():
            if name.endswith("pos_embed"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))


# Nodes create tensors under inference mode.
@torch.inference_mode()
def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- parts --------------------------------------------------------------------------------------------------------


def model_of(
    config: type,
    unet: dict,
    checkpoint: dict | None = None,
    dtype: torch.dtype = torch.float32,
    shrink: Callable[[Any], None] = lambda network: None,
) -> Any:
    """The MODEL that the host builds for a checkpoint of this configuration.

    Args:
        config: one of the host's supported models. unet: the configuration that it would detect.
        checkpoint: tensors from which it detects more.
        shrink: reduces parts whose size is not configurable.
    """
    with torch.inference_mode():
        settings = config(dict(unet))
        settings.unet_config.update(unet)  # the configuration adds some sizes
        settings.set_inference_dtype(dtype, None)
        model = settings.get_model(checkpoint or {}, "", device="cpu")
        shrink(model.diffusion_model)
        randomise(model.diffusion_model, seed=1)
        # moved to the device first, as in a run: the schedule is computed there, and rounding depends on the device
        model.model_sampling.to(DEVICE)
        return comfy.model_patcher.ModelPatcher(model, DEVICE, CPU)


def image_vae(channels: int, dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
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


def video_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The autoencoder of Wan and Qwen Image: 16 channels, 8 pixels a side for each latent pixel."""
    with torch.inference_mode():
        sizes = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
        network = comfy.ldm.wan.vae.WanVAE(**sizes, temperal_downsample=[False, True, True])
        randomise(network, seed=2)
        vae = comfy.sd.VAE(sd=network.state_dict(), dtype=dtype, device=DEVICE)
        vae.first_stage_model.to(DEVICE)
        return vae


def vae_around(
    network: nn.Module, channels: int, ratio: int, dtype: torch.dtype, frames: int | None = None
) -> comfy.sd.VAE:
    """The host's VAE around a small network, for classes with sizes fixed in the host's code.

    Args:
        ratio: pixels a side for each latent pixel. frames: video frames for each latent frame; None for images.
    """
    with torch.inference_mode():
        vae = pixel_vae(dtype)
        randomise(network, seed=2)
        vae.first_stage_model = network.eval().to(DEVICE, dtype)
        vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, DEVICE, CPU)
        vae.latent_channels = channels
        vae.upscale_ratio = vae.downscale_ratio = ratio
        if frames is not None:
            vae.latent_dim = 3
            vae.upscale_ratio = (lambda count: (count - 1) * frames + 1, ratio, ratio)
            vae.upscale_index_formula = vae.downscale_index_formula = (frames, ratio, ratio)
        return vae


def hunyuan_video_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The KL autoencoder with convolutions over time: 16 channels, and here 4 pixels a side for each latent pixel."""
    sizes = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    sizes |= {"double_z": True, "z_channels": 16, "resolution": 16, "in_channels": 3, "out_ch": 3}
    sizes |= {"conv3d": True, "time_compress": 4}
    with torch.inference_mode():
        network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=sizes, embed_dim=16)
    return vae_around(network, 16, 4, dtype, frames=4)


def hunyuan15_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The autoencoder of Hunyuan Video 1.5: 32 channels, and here 4 pixels a side for each latent pixel."""
    sizes = {"block_out_channels": [32, 32, 32], "in_channels": 3, "out_channels": 3, "num_res_blocks": 1}
    sizes |= {"ffactor_spatial": 4, "ffactor_temporal": 2, "z_channels": 32}
    with torch.inference_mode():
        network = comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"},
            encoder_config={"target": "comfy.ldm.hunyuan_video.vae_refiner.Encoder", "params": sizes},
            decoder_config={"target": "comfy.ldm.hunyuan_video.vae_refiner.Decoder", "params": sizes},
        )
    return vae_around(network, 32, 4, dtype, frames=2)


def wan22_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The autoencoder of Wan 2.2 5B: 48 channels, 16 pixels a side for each latent pixel."""
    import comfy.ldm.wan.vae2_2

    sizes = {"dim": 8, "dec_dim": 8, "z_dim": 48, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    with torch.inference_mode():
        network = comfy.ldm.wan.vae2_2.WanVAE(**sizes, temperal_downsample=[False, True, True])
    return vae_around(network, 48, 16, dtype, frames=4)


def mochi_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The decoder alone: 12 channels, 8 pixels a side for each latent pixel."""
    import comfy.ldm.genmo.vae.model as mochi

    with torch.inference_mode():
        network = mochi.VideoVAE.__new__(mochi.VideoVAE)
        nn.Module.__init__(network)
        sizes = {
            "out_channels": 3,
            "base_channels": 32,
            "channel_multipliers": [1, 1, 1, 1],
            "latent_dim": 12,
        }
        sizes |= {
            "temporal_expansions": [1, 2, 3],
            "spatial_expansions": [2, 2, 2],
            "num_res_blocks": [1] * 5,
        }
        sizes |= {"has_attention": [False] * 5, "padding_mode": "replicate", "output_norm": False}
        network.decoder = mochi.Decoder(**sizes)
    return vae_around(network, 12, 8, dtype, frames=6)


def cosmos_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """16 channels, 8 pixels a side for each latent pixel."""
    import comfy.ldm.cosmos.vae

    sizes = {"z_channels": 16, "latent_channels": 16, "z_factor": 1, "resolution": 64, "in_channels": 3}
    sizes |= {"out_channels": 3, "channels": 8, "channels_mult": [1, 2, 2], "num_res_blocks": 1}
    sizes |= {"attn_resolutions": [], "dropout": 0.0, "patch_size": 4, "num_groups": 1}
    sizes |= {"temporal_compression": 8, "spacial_compression": 8}
    with torch.inference_mode():
        network = comfy.ldm.cosmos.vae.CausalContinuousVideoTokenizer(**sizes)
    return vae_around(network, 16, 8, dtype, frames=8)


def cascade_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """Stage A, whose output the host takes as the image: 4 pixels a side for each latent pixel."""
    from comfy.ldm.cascade.stage_a import StageA

    with torch.inference_mode():
        vae = vae_around(StageA(bottleneck_blocks=1, c_hidden=16, codebook_size=8), 4, 4, dtype)
        vae.process_input = vae.process_output = lambda image: image
        return vae


def pixel_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The host's placeholder VAE for networks that work on pixels."""
    with torch.inference_mode():
        return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=dtype, device=DEVICE)


def hunyuan_image_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The autoencoder of Hunyuan Image 2.1: 64 channels, and here 2 pixels a side for each latent pixel."""
    sizes = {"block_out_channels": [32, 64], "in_channels": 3, "out_channels": 3, "num_res_blocks": 1}
    sizes |= {"ffactor_spatial": 2, "z_channels": 64}
    with torch.inference_mode():
        network = comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": "comfy.ldm.hunyuan_video.vae.Encoder", "params": sizes},
            decoder_config={"target": "comfy.ldm.hunyuan_video.vae.Decoder", "params": sizes},
        )
    return vae_around(network, 64, 2, dtype)


def mage_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """The autoencoder of Mage Flow: 128 channels, 16 pixels a side for each latent pixel."""
    import comfy.ldm.mage_flow.vae as mage  # newer than the oldest host

    with torch.inference_mode():
        network = mage.MageVAE.__new__(mage.MageVAE)
        nn.Module.__init__(network)
        sizes = {"hidden_size": 32, "hidden_size_x": 8, "num_blocks": 3, "num_cond_blocks": 2}
        network.decoder_model = mage.DConvDenoiser(**sizes)
    return vae_around(network, 128, 16, dtype)


@torch.inference_mode()
def pair(features: int, pooled: int | None = None, mask: bool = False, **more: Any) -> dict:
    """Positive and negative conditioning, with a pooled output and an attention mask if the family has them."""

    def one(seed: int) -> list:
        extra = dict(more)
        if pooled is not None:
            extra["pooled_output"] = numbers(seed + 100, 1, pooled)
        if mask:
            extra["attention_mask"] = torch.tensor([[1] * (TOKENS - 1) + [0]])
        return [[numbers(seed, 1, TOKENS, features), extra]]

    return {"positive": one(10), "negative": one(11)}


@torch.inference_mode()
def empty(channels: int, height: int = 8, width: int = 8, frames: int | None = None) -> dict:
    between = () if frames is None else (frames,)
    return {"samples": torch.zeros(1, channels, *between, height, width)}


# --- UNets --------------------------------------------------------------------------------------------------------


def unet(
    channels: int = 32, heads: dict | None = None, in_channels: int = 4, context: int = 8, **more: Any
) -> dict:
    sizes = {"image_size": 8, "in_channels": in_channels, "out_channels": 4, "model_channels": channels}
    sizes |= {"num_res_blocks": [1], "channel_mult": [1], "use_spatial_transformer": True, "legacy": False}
    sizes |= {"transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1}
    sizes |= {"context_dim": context, "use_linear_in_transformer": True}
    return sizes | (heads or {}) | more


def sd15(dtype: torch.dtype = torch.float32) -> Family:
    model = model_of(supported.SD15, unet(use_linear_in_transformer=False), dtype=dtype)
    return Family("SD1.5", model, image_vae(4, dtype), **pair(8), latent=empty(4))


def sd15_inpaint(dtype: torch.dtype = torch.float32) -> Family:
    """Nine channels: the latent, the mask and the masked picture."""
    model = model_of(supported.SD15, unet(use_linear_in_transformer=False, in_channels=9), dtype=dtype)
    more = {"concat_latent_image": numbers(12, 1, 4, 8, 8), "concat_mask": half_mask()}
    return Family("SD1.5 inpaint", model, image_vae(4, dtype), **pair(8, **more), latent=empty(4))


@torch.inference_mode()
def half_mask() -> Tensor:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    return mask


class SD15V(supported.SD15):
    """SD1.5 with the v objective, as the host's ModelSamplingDiscrete node sets it, and zero terminal SNR."""

    sampling_settings = {"zsnr": True}

    def model_type(self, state_dict: dict, prefix: str = "") -> Any:
        return comfy.model_base.ModelType.V_PREDICTION


def sd15_v(dtype: torch.dtype = torch.float32) -> Family:
    model = model_of(SD15V, unet(use_linear_in_transformer=False), dtype=dtype)
    return Family("SD1.5 v, zero SNR", model, image_vae(4, dtype), **pair(8), latent=empty(4))


def sd2(dtype: torch.dtype = torch.float32) -> Family:
    # the host detects the v objective by the standard deviation of this tensor
    tell = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([0.0, 1.0])}
    model = model_of(supported.SD20, unet(64), tell, dtype)
    return Family("SD2 v", model, image_vae(4, dtype), **pair(8), latent=empty(4))


def sdxl_of(name: str, checkpoint: dict, dtype: torch.dtype) -> Family:
    sizes = unet(64, num_classes="sequential", adm_in_channels=16 + 6 * 256)
    model = model_of(supported.SDXL, sizes, checkpoint, dtype)
    return Family(name, model, image_vae(4, dtype), **pair(8, pooled=16), latent=empty(4))


def sdxl(dtype: torch.dtype = torch.float32) -> Family:
    return sdxl_of("SDXL", {}, dtype)


def sdxl_v_zero_snr(dtype: torch.dtype = torch.float32) -> Family:
    return sdxl_of("SDXL v, zero SNR", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, dtype)


def sdxl_v_edm(dtype: torch.dtype = torch.float32) -> Family:
    return sdxl_of("SDXL v, EDM", {"edm_vpred.sigma_max": torch.tensor(120.0)}, dtype)


def playground(dtype: torch.dtype = torch.float32) -> Family:
    return sdxl_of("Playground 2.5 (EDM)", {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, dtype)


def cascade(dtype: torch.dtype = torch.float32) -> Family:
    """Stage C. Its own decoder is the small previewer; any decoder with 16 channels will do."""
    sizes = {"c_cond": 16, "c_hidden": [16, 16], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]], "c_r": 8}
    sizes |= {"c_clip_text": 8, "c_clip_text_pooled": 8, "stable_cascade_stage": "c"}
    model = model_of(supported.Stable_Cascade_C, sizes, dtype=dtype)
    return Family("Stable Cascade C", model, image_vae(16, dtype), **pair(8, pooled=8), latent=empty(16))


def cascade_b(dtype: torch.dtype = torch.float32) -> Family:
    """Stage B, which refines the result of stage C."""
    sizes = {"c_cond": 16, "c_hidden": [16, 16], "nhead": [-1, 2], "blocks": [[1, 1], [1, 1]], "c_r": 8}
    sizes |= {
        "block_repeat": [[1, 1], [1, 1]],
        "level_config": ["CT", "CTA"],
        "c_clip": 8,
        "dropout": [0.0, 0.0],
    }
    sizes |= {"stable_cascade_stage": "b"}
    model = model_of(supported.Stable_Cascade_B, sizes, dtype=dtype)
    prior = {"stable_cascade_prior": numbers(18, 1, 16, 4, 4)}
    return Family(
        "Stable Cascade B", model, cascade_vae(dtype), **pair(8, pooled=8, **prior), latent=empty(4)
    )


# --- transformers -------------------------------------------------------------------------------------------------


def pixart(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "pixart_sigma", "input_size": 8, "hidden_size": 24, "depth": 2, "num_heads": 2}
    sizes |= {
        "caption_channels": 8,
        "model_max_length": TOKENS,
        "pe_interpolation": 1.0,
        "micro_condition": True,
    }
    # its position table needs latents of at least 33 pixels a side
    sizes |= {"patch_size": 8}
    model = model_of(supported.PixArtSigma, sizes, dtype=dtype)
    return Family(
        "PixArt", model, image_vae(4, dtype), **pair(8, width=80, height=80), latent=empty(4, 40, 40)
    )


def hunyuan_dit(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "hydit", "hidden_size": 32, "depth": 4, "num_heads": 2, "text_states_dim": 8}
    sizes |= {"text_states_dim_t5": 16, "text_len": TOKENS, "text_len_t5": TOKENS, "size_cond": True}
    model = model_of(supported.HunyuanDiT, sizes, dtype=dtype)
    more = {"conditioning_mt5xl": numbers(13, 1, TOKENS, 16)}
    more |= {"attention_mask_mt5xl": (numbers(14, 1, TOKENS) > -9).float()}
    return Family("HunyuanDiT", model, image_vae(4, dtype), **pair(8, mask=True, **more), latent=empty(4))


def aura_flow(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"cond_seq_dim": 8, "dim": 32, "n_layers": 2, "n_double_layers": 1, "n_heads": 2}
    sizes |= {"global_conddim": 32, "max_seq": 64}
    model = model_of(supported.AuraFlow, sizes, dtype=dtype)
    return Family("AuraFlow", model, image_vae(4, dtype), **pair(8), latent=empty(4))


def sd3(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"in_channels": 16, "depth": 2, "patch_size": 2, "adm_in_channels": 16, "num_patches": 64}
    sizes |= {"pos_embed_max_size": 8, "pos_embed_scaling_factor": None, "qk_norm": "rms"}
    sizes |= {"x_block_self_attn_layers": [0], "input_size": None}
    into = {"in_features": 8, "out_features": 128}
    sizes |= {"context_embedder_config": {"target": "torch.nn.Linear", "params": into}}
    model = model_of(supported.SD3, sizes, dtype=dtype)
    return Family("SD3", model, image_vae(16, dtype), **pair(8, pooled=16), latent=empty(16))


FLUX = {"in_channels": 16, "out_channels": 16, "context_in_dim": 8, "hidden_size": 32, "mlp_ratio": 2.0}
FLUX |= {"num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000}
FLUX |= {"patch_size": 2, "qkv_bias": True, "txt_ids_dims": []}


def flux(dtype: torch.dtype = torch.float32) -> Family:
    sizes = FLUX | {"image_model": "flux", "guidance_embed": True, "vec_in_dim": 16}
    model = model_of(supported.Flux, sizes, dtype=dtype)
    return Family("Flux", model, image_vae(16, dtype), **pair(8, pooled=16, guidance=3.5), latent=empty(16))


def flux2(dtype: torch.dtype = torch.float32) -> Family:
    sizes = FLUX | {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1}
    sizes |= {"guidance_embed": True, "vec_in_dim": None, "axes_dim": [4, 4, 4, 4], "txt_ids_dims": [3]}
    sizes |= {"global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False}
    sizes |= {"default_ref_method": "index", "ref_index_scale": 10.0}
    model = model_of(supported.Flux2, sizes, dtype=dtype)
    return Family("Flux 2", model, image_vae(128, dtype), **pair(8, pooled=16), latent=empty(128, 4, 4))


def chroma(dtype: torch.dtype = torch.float32) -> Family:
    sizes = FLUX | {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64}
    sizes |= {"out_dim": 32, "hidden_dim": 16, "n_layers": 1, "vec_in_dim": None}
    model = model_of(supported.Chroma, sizes, dtype=dtype)
    return Family("Chroma", model, image_vae(16, dtype), **pair(8, pooled=16), latent=empty(16))


LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 32, "cap_feat_dim": 8}
LUMINA |= {"n_layers": 2, "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "multiple_of": 16}
LUMINA |= {"axes_dims": [4, 6, 6], "axes_lens": [32, 32, 32], "rope_theta": 10000.0}


def lumina2(dtype: torch.dtype = torch.float32) -> Family:
    sizes = LUMINA | {"n_kv_heads": 1, "ffn_dim_multiplier": 4.0}
    model = model_of(supported.Lumina2, sizes, dtype=dtype)
    whole = pair(8, attention_mask=torch.ones(1, TOKENS, dtype=torch.long))
    return Family("Lumina 2", model, image_vae(16, dtype), **whole, latent=empty(16))


Z_IMAGE = LUMINA | {"n_kv_heads": 2, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True}
Z_IMAGE |= {"time_scale": 1000.0, "pad_tokens_multiple": 4, "rope_theta": 256.0}
# its modulation has 256 channels, whatever the width
Z_IMAGE |= {"dim": 256, "axes_dims": [32, 48, 48], "n_layers": 1}


def z_image(dtype: torch.dtype = torch.float32) -> Family:
    model = model_of(supported.ZImage, dict(Z_IMAGE), dtype=dtype)
    return Family("Z-Image", model, image_vae(16, dtype), **pair(8), latent=empty(16))


def ernie(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "ernie", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2}
    sizes |= {"ffn_hidden_size": 32, "text_in_dim": 8, "rope_axes_dim": (4, 6, 6)}
    model = model_of(supported.ErnieImage, sizes, dtype=dtype)
    return Family("Ernie Image", model, image_vae(128, dtype), **pair(8), latent=empty(128, 4, 4))


def omnigen2(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "omnigen2", "hidden_size": 32, "num_attention_heads": 2, "num_kv_heads": 1}
    sizes |= {"num_layers": 1, "num_refiner_layers": 1, "multiple_of": 16, "axes_dim_rope": [4, 6, 6]}
    sizes |= {"axes_lens": [32, 32, 32], "text_feat_dim": 8, "timestep_scale": 1000.0}
    model = model_of(supported.Omnigen2, sizes, dtype=dtype)
    whole = pair(8, attention_mask=torch.ones(1, TOKENS, dtype=torch.long))
    return Family("OmniGen 2", model, image_vae(16, dtype), **whole, latent=empty(16))


def hidream(dtype: torch.dtype = torch.float32) -> Family:
    """Its blocks choose experts by the image, so the gradient is that of the chosen experts."""
    sizes = {"image_model": "hidream", "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6]}
    sizes |= {"caption_channels": [8, 8], "num_attention_heads": 2, "llama_layers": [0, 1], "num_layers": 1}
    sizes |= {
        "num_single_layers": 1,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "text_emb_dim": 16,
    }
    model = model_of(supported.HiDream, sizes, dtype=dtype)
    more = {"conditioning_llama3": numbers(15, 1, 2, TOKENS, 8)}
    return Family("HiDream", model, image_vae(16, dtype), **pair(8, pooled=16, **more), latent=empty(16))


def kandinsky5(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "kandinsky5", "model_dim": 32, "ff_dim": 32, "visual_embed_dim": 64}
    sizes |= {"in_text_dim": 8, "in_text_dim2": 16, "time_dim": 32, "axes_dims": (4, 6, 6)}
    sizes |= {"num_text_blocks": 1, "num_visual_blocks": 1}
    model = model_of(supported.Kandinsky5Image, sizes, dtype=dtype)
    return Family("Kandinsky 5 Image", model, image_vae(16, dtype), **pair(8, pooled=16), latent=empty(16))


def long_cat(dtype: torch.dtype = torch.float32) -> Family:
    sizes = FLUX | {
        "image_model": "flux",
        "guidance_embed": False,
        "vec_in_dim": None,
        "txt_ids_dims": [1, 2],
    }
    model = model_of(supported.LongCatImage, sizes, dtype=dtype)
    return Family("LongCat Image", model, image_vae(16, dtype), **pair(8), latent=empty(16))


def hunyuan_image(dtype: torch.dtype = torch.float32) -> Family:
    sizes = HUNYUAN_VIDEO | {"patch_size": [1, 1], "in_channels": 64, "out_channels": 64, "axes_dim": [8, 8]}
    sizes |= {"byt5": True, "guidance_embed": True, "meanflow": True}
    model = model_of(supported.HunyuanImage21, sizes, dtype=dtype)
    more = {"conditioning_byt5small": numbers(16, 1, TOKENS, 1472), "guidance": 3.5}
    return Family("Hunyuan Image 2.1", model, hunyuan_image_vae(dtype), **pair(8, **more), latent=empty(64))


HUNYUAN_VIDEO = {"image_model": "hunyuan_video", "vec_in_dim": None, "context_in_dim": 8, "hidden_size": 32}
HUNYUAN_VIDEO |= {"mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "theta": 256}
HUNYUAN_VIDEO |= {"qkv_bias": True, "meanflow": False, "byt5": False, "guidance_embed": False}
HUNYUAN_VIDEO |= {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}


def lens(dtype: torch.dtype = torch.float32) -> Family:
    """Its text features come from several layers, concatenated."""
    sizes = {"image_model": "lens", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"enc_hidden_dim": 8, "axes_dims_rope": (4, 6, 6), "selected_layer_index": (5, 11)}
    model = model_of(supported.Lens, sizes, dtype=dtype)
    return Family("Lens", model, image_vae(128, dtype), **pair(16, mask=True), latent=empty(128, 4, 4))


def ideogram4(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "ideogram4", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    sizes |= {"intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 8, "mrope_section": [4, 2, 2]}
    model = model_of(supported.Ideogram4, sizes, dtype=dtype)
    return Family("Ideogram 4", model, image_vae(128, dtype), **pair(8, mask=True), latent=empty(128, 4, 4))


def boogu(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "boogu", "hidden_size": 32, "num_layers": 1, "num_double_stream_layers": 1}
    sizes |= {"num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16}
    sizes |= {"axes_dim_rope": (4, 6, 6), "axes_lens": (32, 32, 32), "instruction_feat_dim": 8}
    model = model_of(supported.Boogu, sizes, dtype=dtype)
    whole = pair(8, attention_mask=torch.ones(1, TOKENS, dtype=torch.long))
    return Family("Boogu Image", model, image_vae(16, dtype), **whole, latent=empty(16))


def mage_flow(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "mage_flow", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"joint_attention_dim": 8, "axes_dims_rope": (4, 6, 6)}
    model = model_of(supported.MageFlow, sizes, dtype=dtype)
    return Family("Mage Flow", model, mage_vae(dtype), **pair(8, mask=True), latent=empty(128, 3, 2))


# --- pixels -------------------------------------------------------------------------------------------------------


def chroma_radiance(dtype: torch.dtype = torch.float32) -> Family:
    sizes = FLUX | {"image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4}
    sizes |= {"in_dim": 64, "out_dim": 32, "hidden_dim": 16, "n_layers": 1, "vec_in_dim": None}
    sizes |= {"nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 2}
    sizes |= {"nerf_tile_size": 4, "nerf_final_head_type": "conv", "nerf_embedder_dtype": None}
    sizes |= {"use_x0": True}
    if "use_sequential_txt_ids" in ChromaRadianceParams.__annotations__:  # newer than the oldest host
        sizes["use_sequential_txt_ids"] = True
    model = model_of(supported.ChromaRadiance, sizes, dtype=dtype)
    return Family("Chroma Radiance", model, pixel_vae(dtype), **pair(8, pooled=16), latent=empty(3, 16, 12))


def z_image_pixels(dtype: torch.dtype = torch.float32) -> Family:
    sizes = Z_IMAGE | {"image_model": "zimage_pixel", "in_channels": 3, "patch_size": 4}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_res_blocks": 1, "decoder_max_freqs": 2}
    sizes |= {"decoder_in_channels": 48, "use_x0": True}
    model = model_of(supported.ZImagePixelSpace, sizes, dtype=dtype)
    return Family("Z-Image, pixels", model, pixel_vae(dtype), **pair(8), latent=empty(3, 16, 12))


PIXEL_DIT = {"num_groups": 2, "hidden_size": 32, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 16}
PIXEL_DIT |= {"pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "patch_size": 4}
PIXEL_DIT |= {"txt_embed_dim": 8, "txt_max_length": 4}


def pixel_dit(dtype: torch.dtype = torch.float32) -> Family:
    model = model_of(supported.PixelDiTT2I, PIXEL_DIT | {"image_model": "pixeldit_t2i"}, dtype=dtype)
    return Family("PixelDiT", model, pixel_vae(dtype), **pair(8), latent=empty(3, 16, 12))


def pid(dtype: torch.dtype = torch.float32) -> Family:
    """It decodes a latent that comes with the prompt to pixels."""
    sizes = PIXEL_DIT | {"image_model": "pid", "lq_latent_channels": 4, "lq_hidden_dim": 8}
    sizes |= {"lq_num_res_blocks": 1, "sr_scale": 2, "latent_spatial_down_factor": 4}
    model = model_of(supported.PiD, sizes, dtype=dtype)
    more = {"lq_latent": numbers(17, 1, 4, 2, 2), "degrade_sigma": torch.tensor([0.1])}
    return Family("PiD", model, pixel_vae(dtype), **pair(8, **more), latent=empty(3, 16, 12))


def hidream_o1(dtype: torch.dtype = torch.float32) -> Family:
    """A language model that makes patches of 32 pixels a side, and caches the keys and values of the prompt."""
    language = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    language |= {"num_key_value_heads": 1, "head_dim": 8, "rope_dims": [2, 1, 1]}
    sight = {
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "depth": 1,
        "num_position_embeddings": 4,
    }
    sizes = {"image_model": "hidream_o1"}
    sizes |= {"text_config_overrides": language, "vision_config_overrides": sight}
    model = model_of(supported.HiDreamO1, sizes, dtype=dtype)
    with torch.inference_mode():
        # smooth like a picture, and rarely clipped at black and white
        pixels = model.model.diffusion_model.final_layer2.linear.weight.view(3, 32, 32, -1)
        pixels.copy_(0.5 * pixels[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))

    @torch.inference_mode()
    def prompt(word: int) -> list:
        ids = torch.tensor([[151644, 872, 198, word, 151645, 198, 151644, 77091, 198, 151669, 151673]])
        return [[ids.unsqueeze(-1).float(), {"text_input_ids": ids}]]

    both = {"positive": prompt(1000), "negative": prompt(2000)}
    return Family("HiDream O1", model, pixel_vae(dtype), **both, latent=empty(3, 32, 64))


# --- latents with a time axis -------------------------------------------------------------------------------------


def qwen_image(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2}
    sizes |= {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 8}
    sizes |= {"axes_dims_rope": (4, 6, 6)}
    model = model_of(supported.QwenImage, sizes, dtype=dtype)
    return Family(
        "Qwen Image", model, video_vae(dtype), **pair(8, mask=True), latent=empty(16, 4, 6, frames=1)
    )


WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 32, "freq_dim": 32, "text_dim": 8}
WAN |= {"num_heads": 2, "num_layers": 2, "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16}


def wan_of(name: str, frames: int, dtype: torch.dtype) -> Family:
    model = model_of(supported.WAN21_T2V, dict(WAN), dtype=dtype)
    return Family(name, model, video_vae(dtype), **pair(8), latent=empty(16, 4, 6, frames=frames))


def wan_still(dtype: torch.dtype = torch.float32) -> Family:
    return wan_of("Wan, one frame", 1, dtype)


def wan22_still(dtype: torch.dtype = torch.float32) -> Family:
    sizes = WAN | {"in_dim": 48, "out_dim": 48}
    model = model_of(supported.WAN22_T2V, sizes, dtype=dtype)
    return Family("Wan 2.2, one frame", model, wan22_vae(dtype), **pair(8), latent=empty(48, 2, 2, frames=1))


def wan_video(dtype: torch.dtype = torch.float32) -> Family:
    family = wan_of("Wan, video", 3, dtype)
    reason = "(1, 16, 3, 4, 6), a video of 3 latent frames"
    return Family(**{**vars(family), "supported": False, "reason": reason})


COSMOS_PREDICT2 = {"image_model": "cosmos_predict2", "in_channels": 16, "out_channels": 16, "max_img_h": 240}
COSMOS_PREDICT2 |= {"max_img_w": 240, "max_frames": 128, "patch_spatial": 2, "patch_temporal": 1}
COSMOS_PREDICT2 |= {"model_channels": 32, "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 8}
COSMOS_PREDICT2 |= {"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True}
COSMOS_PREDICT2 |= {"adaln_lora_dim": 8}


def cosmos_predict2(dtype: torch.dtype = torch.float32) -> Family:
    model = model_of(supported.CosmosT2IPredict2, dict(COSMOS_PREDICT2), dtype=dtype)
    latent = empty(16, 4, 6, frames=1)
    return Family("Cosmos Predict 2", model, video_vae(dtype), **pair(8), latent=latent)


def anima(dtype: torch.dtype = torch.float32) -> Family:
    """Cosmos Predict 2 with an adapter that combines two texts."""

    def small_adapter(network: Any) -> None:
        old = network.llm_adapter
        settings = {"dtype": dtype, "device": CPU, "operations": comfy.ops.disable_weight_init}
        sizes = {"source_dim": 8, "target_dim": 8, "model_dim": 16, "num_layers": 1, "num_heads": 2}
        network.llm_adapter = type(old)(**sizes, **settings)

    model = model_of(
        supported.Anima, COSMOS_PREDICT2 | {"image_model": "anima"}, dtype=dtype, shrink=small_adapter
    )
    words = {"t5xxl_ids": torch.tensor([3, 5, 1]), "t5xxl_weights": torch.ones(3)}
    return Family("Anima", model, video_vae(dtype), **pair(8, **words), latent=empty(16, 4, 6, frames=1))


def joy_image(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "joyimage", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2}
    sizes |= {"text_dim": 8, "mlp_width_ratio": 2.0, "rope_dim_list": [4, 6, 6]}
    model = model_of(supported.JoyImage, sizes, dtype=dtype)
    return Family("JoyImage", model, video_vae(dtype), **pair(8), latent=empty(16, 4, 6, frames=1))


def hunyuan_still(dtype: torch.dtype = torch.float32) -> Family:
    sizes = HUNYUAN_VIDEO | {"patch_size": [1, 2, 2], "in_channels": 16, "out_channels": 16}
    sizes |= {"axes_dim": [4, 6, 6], "vec_in_dim": 16, "guidance_embed": True}
    model = model_of(supported.HunyuanVideo, sizes, dtype=dtype)
    more = pair(8, pooled=16, guidance=6.0)
    return Family(
        "Hunyuan Video, one frame", model, hunyuan_video_vae(dtype), **more, latent=empty(16, 4, 6, frames=1)
    )


def hunyuan15_still(dtype: torch.dtype = torch.float32) -> Family:
    """Latent, start image and mask, as 65 channels; the network takes three kinds of text."""
    sizes = HUNYUAN_VIDEO | {"patch_size": [1, 1, 1], "in_channels": 65, "out_channels": 32, "byt5": True}
    sizes |= {
        "axes_dim": [4, 6, 6],
        "use_cond_type_embedding": True,
        "vision_in_dim": 8,
        "meanflow_sum": True,
    }
    model = model_of(supported.HunyuanVideo15, sizes, dtype=dtype)
    more = pair(8, pooled=16, conditioning_byt5small=numbers(16, 1, TOKENS, 1472))
    return Family(
        "Hunyuan Video 1.5, one frame", model, hunyuan15_vae(dtype), **more, latent=empty(32, 4, 6, frames=1)
    )


def mochi_still(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "in_channels": 12}
    sizes |= {"hidden_size_x": 32, "hidden_size_y": 16, "mlp_ratio_x": 384.0, "mlp_ratio_y": 2.0}
    sizes |= {"learn_sigma": False, "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0}
    sizes |= {"posenc_preserve_area": True, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 8}
    sizes |= {"t5_token_length": TOKENS}
    model = model_of(supported.GenmoMochi, sizes, dtype=dtype)
    latent = empty(12, 4, 6, frames=1)
    return Family("Mochi, one frame", model, mochi_vae(dtype), **pair(8, mask=True), latent=latent)


def ltx_video_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """128 channels, and here 4 pixels a side for each latent pixel."""
    sizes = {"dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "patch_size": 2}
    sizes |= {"blocks": [["res_x", 1], ["compress_all", 1]], "norm_layer": "pixel_norm"}
    sizes |= {"latent_log_var": "uniform", "encoder_base_channels": 16, "decoder_base_channels": 16}
    with torch.inference_mode():
        network = ltx.VideoVAE(config=sizes)
        network.per_channel_statistics.get_buffer("mean-of-means").zero_()
        network.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    return vae_around(network, 128, 4, dtype, frames=2)


def ltx_still(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"cross_attention_dim": 32, "caption_channels": 8}
    model = model_of(supported.LTXV, sizes, dtype=dtype)
    more = pair(8, mask=True, frame_rate=25)
    return Family(
        "LTX Video, one frame", model, ltx_video_vae(dtype), **more, latent=empty(128, 4, 6, frames=1)
    )


def cosmos_still(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {
        "image_model": "cosmos",
        "in_channels": 16,
        "out_channels": 16,
        "max_img_h": 240,
        "max_img_w": 240,
    }
    sizes |= {"max_frames": 128, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 32}
    sizes |= {"num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 8, "pos_emb_cls": "rope3d"}
    sizes |= {
        "block_x_format": "THWBD",
        "affline_emb_norm": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
    }
    sizes |= {"extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"}
    model = model_of(supported.CosmosT2V, sizes, dtype=dtype)
    latent = empty(16, 4, 6, frames=1)
    return Family("Cosmos, one frame", model, cosmos_vae(dtype), **pair(8, mask=True), latent=latent)


def krea2(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {
        "image_model": "krea2",
        "features": 32,
        "tdim": 32,
        "txtdim": 8,
        "heads": 2,
        "kvheads": 1,
        "layers": 2,
    }
    sizes |= {"txtlayers": 2, "txtheads": 2, "txtkvheads": 2, "channels": 16, "patch": 2}
    model = model_of(supported.Krea2, sizes, dtype=dtype)
    return Family("Krea 2", model, video_vae(dtype), **pair(16), latent=empty(16, 4, 6, frames=1))


# --- what guidance refuses ----------------------------------------------------------------------------------------


def lotus(dtype: torch.dtype = torch.float32) -> Family:
    """It turns an image into its depth map in one step, without noise."""
    model = model_of(
        supported.LotusD,
        unet(64, {"num_head_channels": 16}, num_classes="sequential", adm_in_channels=4),
        dtype=dtype,
    )
    refused = {"supported": False, "reason": "models that sample by IMG_TO_IMG"}
    return Family("Lotus", model, image_vae(4, dtype), **pair(8), latent=empty(4), **refused)


def cog_video(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "cogvideox", "num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1}
    sizes |= {"time_embed_dim": 16, "text_embed_dim": 8, "use_rotary_positional_embeddings": False}
    sizes |= {"sample_width": 6, "sample_height": 4, "sample_frames": 1, "max_text_seq_length": TOKENS}
    model = model_of(supported.CogVideoX_T2V, sizes, dtype=dtype)
    refused = {"supported": False, "reason": "models that sample by V_PREDICTION_DDPM"}
    latent = empty(16, 4, 6, frames=1)
    return Family("CogVideoX", model, video_vae(dtype), **pair(8), latent=latent, **refused)


def hunyuan_3d(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": 8, "hidden_size": 32}
    sizes |= {"mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1}
    model = model_of(supported.Hunyuan3Dv2, sizes, dtype=dtype)
    with torch.inference_mode():
        shapes, latent = image_vae(64, dtype), {"samples": torch.zeros(1, 64, 12)}
    shapes.latent_dim = 1
    refused = {"supported": False, "reason": "this model's latents have 1 dimension"}
    return Family("Hunyuan 3D", model, shapes, **pair(8), latent=latent, **refused)


def ace_step(dtype: torch.dtype = torch.float32) -> Family:
    """Music, with latents that have the shape of an image's."""
    sizes = {"audio_model": "ace", "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"mlp_ratio": 2.0, "text_embedding_dim": 8, "lyric_encoder_vocab_size": 8, "max_position": 64}
    sizes |= {"ssl_encoder_depths": [1], "ssl_names": ["mert"], "ssl_latent_dims": [8]}

    def no_verses(network: Any) -> None:
        network.lyric_encoder.encoders = nn.ModuleList()

    model = model_of(supported.ACEStep, sizes, dtype=dtype, shrink=no_verses)
    with torch.inference_mode():
        sound, lyrics = image_vae(8, dtype), {"conditioning_lyrics": torch.tensor([[1, 2, 3]])}
    sound.output_channels = 2
    refused = {"supported": False, "reason": "this VAE decodes to 2 channels, not to a picture"}
    return Family("ACE Step", model, sound, **pair(8, **lyrics), latent=empty(8, 16, 8), **refused)


BUILDERS = (
    *(sd15, sd15_inpaint, sd15_v, sd2, sdxl, sdxl_v_zero_snr, sdxl_v_edm, playground, cascade, cascade_b),
    *(pixart, hunyuan_dit, aura_flow, sd3, flux, flux2, chroma, lumina2, z_image),
    *(ernie, omnigen2, hidream, kandinsky5, long_cat, hunyuan_image, lens, ideogram4, boogu, mage_flow),
    *(chroma_radiance, z_image_pixels, pixel_dit, pid, hidream_o1),
    *(qwen_image, wan_still, wan22_still, wan_video, cosmos_predict2, anima, joy_image, krea2),
    *(hunyuan_still, hunyuan15_still, mochi_still, cosmos_still, ltx_still),
)
# Models that no encoder can guide, one for each message.
REFUSED_BUILDERS = (lotus, cog_video, hunyuan_3d, ace_step)
FAMILIES: dict[str, Callable[..., Family]] = {
    builder.__name__: builder for builder in (*BUILDERS, *REFUSED_BUILDERS)
}
REFUSED = [builder.__name__ for builder in REFUSED_BUILDERS]
