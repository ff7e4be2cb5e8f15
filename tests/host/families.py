"""A tiny random model of every family that the host's users guide, of the host's own classes.

Each comes with the VAE, the conditioning and the empty latent that belong to it. Only the widths and depths are
small: configuration, network, sampling and latent format are the ones that the host picks for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models as supported
import comfy.supported_models_base
import torch
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
        reason: where not, words of its message.
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
    """Give every weight and position table a random value; the host's layers come uninitialised, some as zeros."""
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


# What nodes make, they make under inference mode.
@torch.inference_mode()
def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- parts --------------------------------------------------------------------------------------------------------


def model_of(
    config: type, unet: dict, checkpoint: dict | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """The MODEL that the host builds for a checkpoint of this configuration.

    Args:
        config: one of the host's supported models. unet: what it would detect.
        checkpoint: tensors whose presence tells it more.
    """
    with torch.inference_mode():
        settings = config(dict(unet))
        settings.set_inference_dtype(dtype, None)
        model = settings.get_model(checkpoint or {}, "", device="cpu")
        randomise(model.diffusion_model, seed=1)
        # where the host puts it at the first run: it makes its schedule there, and another device rounds otherwise
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


@torch.inference_mode()
def pair(features: int, pooled: int | None = None, mask: bool = False, **more: Any) -> dict:
    """Positive and negative conditioning, with a pooled output and an attention mask where a family has them."""

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
    # the host knows the v objective by the spread of this tensor
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
    """Stage C. Its own decoder is the small previewer; any of 16 channels will do."""
    sizes = {"c_cond": 16, "c_hidden": [16, 16], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]], "c_r": 8}
    sizes |= {"c_clip_text": 8, "c_clip_text_pooled": 8, "stable_cascade_stage": "c"}
    model = model_of(supported.Stable_Cascade_C, sizes, dtype=dtype)
    return Family("Stable Cascade C", model, image_vae(16, dtype), **pair(8, pooled=8), latent=empty(16))


# --- transformers -------------------------------------------------------------------------------------------------


def pixart(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "pixart_sigma", "input_size": 8, "hidden_size": 24, "depth": 2, "num_heads": 2}
    sizes |= {
        "caption_channels": 8,
        "model_max_length": TOKENS,
        "pe_interpolation": 1.0,
        "micro_condition": True,
    }
    # its position table cannot be made for latents of less than 33 pixels a side
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


def z_image(dtype: torch.dtype = torch.float32) -> Family:
    sizes = LUMINA | {"n_kv_heads": 2, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True}
    sizes |= {"time_scale": 1000.0, "pad_tokens_multiple": 4, "rope_theta": 256.0}
    # its modulation has 256 channels, whatever the width
    sizes |= {"dim": 256, "axes_dims": [32, 48, 48], "n_layers": 1}
    model = model_of(supported.ZImage, sizes, dtype=dtype)
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
    """Its blocks choose experts by the image, so the gradient is that of the experts chosen."""
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


# --- latents with a place for time --------------------------------------------------------------------------------


def qwen_image(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2}
    sizes |= {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 8}
    sizes |= {"axes_dims_rope": (4, 6, 6)}
    model = model_of(supported.QwenImage, sizes, dtype=dtype)
    return Family(
        "Qwen Image", model, video_vae(dtype), **pair(8, mask=True), latent=empty(16, 4, 6, frames=1)
    )


def wan_of(name: str, frames: int, dtype: torch.dtype) -> Family:
    sizes = {"image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 32, "freq_dim": 32}
    sizes |= {
        "text_dim": 8,
        "num_heads": 2,
        "num_layers": 2,
        "patch_size": (1, 2, 2),
        "in_dim": 16,
        "out_dim": 16,
    }
    model = model_of(supported.WAN21_T2V, sizes, dtype=dtype)
    return Family(name, model, video_vae(dtype), **pair(8), latent=empty(16, 4, 6, frames=frames))


def wan_still(dtype: torch.dtype = torch.float32) -> Family:
    return wan_of("Wan, one frame", 1, dtype)


def wan_video(dtype: torch.dtype = torch.float32) -> Family:
    family = wan_of("Wan, video", 3, dtype)
    reason = "(1, 16, 3, 4, 6), a video of 3 latent frames"
    return Family(**{**vars(family), "supported": False, "reason": reason})


def cosmos_predict2(dtype: torch.dtype = torch.float32) -> Family:
    sizes = {"image_model": "cosmos_predict2", "in_channels": 16, "out_channels": 16, "max_img_h": 240}
    sizes |= {"max_img_w": 240, "max_frames": 128, "patch_spatial": 2, "patch_temporal": 1}
    sizes |= {"model_channels": 32, "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 8}
    sizes |= {"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 8}
    model = model_of(supported.CosmosT2IPredict2, sizes, dtype=dtype)
    latent = empty(16, 4, 6, frames=1)
    return Family("Cosmos Predict 2", model, video_vae(dtype), **pair(8), latent=latent)


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


BUILDERS = (
    *(sd15, sd15_inpaint, sd15_v, sd2, sdxl, sdxl_v_zero_snr, sdxl_v_edm, playground, cascade),
    *(pixart, hunyuan_dit, aura_flow, sd3, flux, flux2, chroma, lumina2, z_image),
    *(ernie, omnigen2, hidream, kandinsky5),
    *(qwen_image, wan_still, wan_video, cosmos_predict2, krea2),
)
FAMILIES: dict[str, Callable[..., Family]] = {builder.__name__: builder for builder in BUILDERS}
