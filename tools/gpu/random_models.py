"""Model files with random weights that the host takes for the real ones.

    python dev.py run tools/gpu/random_models.py --models FOLDER --scale full|tiny

The networks are the host's own classes, built without weights; the weights are drawn at random, on the GPU if there
is one. "full" has the published sizes. "tiny" is the smallest that the host still detects as the same families. It
goes by the width of the first layer and the depth of the transformers on the way down, so everything else shrinks, and
SDXL becomes Segmind Vega, which the host runs with the same class.

Prints a JSON line for each file: its name, bytes and seconds, or the error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.harness.checkpoint_sizes import SD15_UNET, SD15_VAE, SDXL_UNET

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
ENCODER = "dinov2-random"
# Tiny decoders stay in this folder until a stage copies them to vae_approx.
PARKED = "parked"
LORA_RANK = 4
# The largest number of float8_e4m3fn.
FLOAT8_MAX = 448.0

# Not in a checkpoint; the host's model class knows it.
HEADS = {"num_head_channels": 64}
SD15 = SD15_UNET | HEADS
SDXL = SDXL_UNET | HEADS
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {"sd15": SD15, "sdxl": SDXL},
    "tiny": {
        "sd15": SD15
        | {
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 1],
            "transformer_depth": [1, 0],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 0, 0],
        },
        "sdxl": SDXL
        | {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 1, 1],
            "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [0, 0, 0, 0, 0, 0, 1, 0, 0],
        },
    },
}
# The host reads the decoder's width from the file; the encoder's is fixed.
DECODER_WIDTH = {"full": 128, "tiny": 32}
DINOV2: dict[str, dict[str, Any]] = {
    "full": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28},
}


def random_weights(shapes: dict[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights, by name, that keep activations near unit size; norms are the identity, biases zero.

    Args:
        shapes: tensors of which only the shape is used.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    made = {}
    for name, like in shapes.items():
        if like.ndim > 1:
            scale = like[0].numel() ** -0.5
            noise = torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32)
            made[name] = (noise * scale).to(dtype)
        else:
            fill = torch.ones if name.endswith("weight") else torch.zeros
            made[name] = fill(like.shape, device=device, dtype=dtype)
    return made


def unet_shapes(config: dict[str, Any]) -> dict[str, Tensor]:
    """The shapes of a denoiser's weights."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return dict(UNetModel(**config, device="meta").state_dict())


def controlnet_shapes(config: dict[str, Any]) -> dict[str, Tensor]:
    """The shapes of the weights of a denoiser's ControlNet."""
    from comfy.cldm.cldm import ControlNet

    own = {name: value for name, value in config.items() if name != "out_channels"}
    return dict(ControlNet(**own, hint_channels=3, device="meta").state_dict())


def vae_shapes(width: int) -> dict[str, Tensor]:
    """The shapes of the weights of SD1.5's and SDXL's KL autoencoder, with a decoder of this width."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=SD15_VAE, embed_dim=4, decoder_ddconfig=SD15_VAE | {"ch": width})
    return dict(vae.state_dict())


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def checkpoint(config: dict[str, Any], width: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A checkpoint in the usual layout, without text encoders."""
    unet = random_weights(unet_shapes(config), seed, dtype)
    vae = random_weights(vae_shapes(width), seed + 1, dtype)
    return prefixed(UNET_PREFIX, unet) | prefixed(VAE_PREFIX, vae)


def scaled_float8(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A denoiser with float8 Linear weights and a scale for each, in the host's first format for them."""
    made: dict[str, Tensor] = {}
    for name, weight in random_weights(unet_shapes(config), seed, torch.float16).items():
        if weight.ndim != 2 or not name.endswith(".weight"):
            made[name] = weight
            continue
        scale = weight.float().abs().max() / FLOAT8_MAX
        made[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        made[name.removesuffix("weight") + "scale_weight"] = scale
    # empty: the host multiplies in float8 where the card can
    made["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return made


def lora(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A LoRA on every attention projection, with generic names."""
    shapes: dict[str, Tensor] = {}
    for name, weight in unet_shapes(config).items():
        if ".to_" in name and name.endswith(".weight"):
            stem = f"diffusion_model.{name.removesuffix('.weight')}"
            shapes[f"{stem}.lora_up.weight"] = torch.empty(weight.shape[0], LORA_RANK, device="meta")
            shapes[f"{stem}.lora_down.weight"] = torch.empty(LORA_RANK, weight.shape[1], device="meta")
    return random_weights(shapes, seed, torch.float16)


def tiny_decoder(seed: int) -> dict[str, Tensor]:
    """A tiny decoder (TAESD) of the host's class."""
    from comfy.taesd.taesd import TAESD

    return random_weights(dict(TAESD().taesd_decoder.state_dict()), seed, torch.float32)


def save_encoder(scale: str, file: Path) -> None:
    """Write a DINOv2 with random weights as transformers does: config.json beside model.safetensors."""
    import transformers

    torch.manual_seed(0)
    model: nn.Module = transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14, **DINOV2[scale]))
    model.save_pretrained(file.parent)  # type: ignore[operator]


def save(make: Callable[[], dict[str, Tensor]], file: Path) -> None:
    """Write what `make` returns."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in make().items()}, file)


def recipes(scale: str) -> dict[str, Callable[[Path], None]]:
    """What writes each file, by path in the models folder, in the order in which the stages need them."""
    sd15, sdxl, width = SHAPES[scale]["sd15"], SHAPES[scale]["sdxl"], DECODER_WIDTH[scale]
    half = torch.float16
    tensors: dict[str, Callable[[], dict[str, Tensor]]] = {
        "checkpoints/sd15.safetensors": lambda: checkpoint(sd15, width, 1, half),
        "checkpoints/sdxl.safetensors": lambda: checkpoint(sdxl, width, 3, half),
        "checkpoints/sd15_float32.safetensors": lambda: checkpoint(sd15, width, 1, torch.float32),
        "diffusion_models/sd15.safetensors": lambda: random_weights(unet_shapes(sd15), 1, half),
        "diffusion_models/sd15_scaled_float8.safetensors": lambda: scaled_float8(sd15, 1),
        "vae/vae_bfloat16.safetensors": lambda: random_weights(vae_shapes(width), 2, torch.bfloat16),
        "controlnet/sd15_control.safetensors": lambda: random_weights(controlnet_shapes(sd15), 5, half),
        "loras/sd15_lora.safetensors": lambda: lora(sd15, 6),
        f"{PARKED}/taesd_decoder.safetensors": lambda: tiny_decoder(7),
    }
    encoder = f"jepa/{ENCODER}/model.safetensors"
    return {
        encoder: partial(save_encoder, scale),
        **{name: partial(save, make) for name, make in tensors.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--scale", choices=SHAPES, required=True)
    options = parser.parse_args()
    # the host parses the command line when it is imported
    sys.argv[1:] = [] if torch.cuda.is_available() else ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    failed = False
    for name, write in recipes(options.scale).items():
        begun, file = time.monotonic(), options.models / name
        row: dict[str, Any] = {"file": name}
        try:
            with contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
                write(file)
            row |= {"bytes": file.stat().st_size, "seconds": round(time.monotonic() - begun, 2)}
        except Exception as error:
            failed = True
            row |= {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(row), flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
