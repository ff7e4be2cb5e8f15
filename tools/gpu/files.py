"""Model files with random weights that a host detects as the real ones, for tools/gpu/run.py.

    python dev.py run tools/gpu/files.py --models FOLDER --scale full|tiny

The networks are the host's own classes, built without weights; every weight is then drawn on the device that there is
and saved. "full" has the published sizes. "tiny" is what the host still detects as the same families: its table goes
by the width of the first layer and the depth of the transformers on the way down, so the rest is what shrinks, and
SDXL becomes Segmind Vega, which the host runs with the same class.

Prints a JSON line for each file: its name, bytes and seconds, or the error that left it out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.harness.checkpoint_sizes import SD15_UNET, SD15_VAE, SDXL_UNET

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
ENCODER = "dinov2-random"
# Below this folder the files of tiny decoders wait until a stage wants them in vae_approx.
PARKED = "parked"
LORA_RANK = 4
# The largest number of float8_e4m3fn.
FLOAT8_MAX = 448.0

# A model's class in the host knows this, not its file.
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
# The decoder's width; the host reads it from the file, the encoder's is fixed.
DECODER_WIDTH = {"full": 128, "tiny": 32}
DINOV2: dict[str, dict[str, Any]] = {
    "full": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28},
}


def random_weights(shapes: dict[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights that keep activations of ordinary size, by name; norms are the identity, biases zero.

    Args:
        shapes: tensors of which only the shape is read.
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


def unet_shapes(config: dict[str, Any], kind: str = "UNetModel") -> dict[str, Tensor]:
    """The weights' shapes of a denoiser of the host's class, or of the ControlNet that belongs to it."""
    import comfy.cldm.cldm
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel

    if kind == "UNetModel":
        return dict(openaimodel.UNetModel(**config, device="meta").state_dict())
    own = {name: value for name, value in config.items() if name != "out_channels"}
    return dict(comfy.cldm.cldm.ControlNet(**own, hint_channels=3, device="meta").state_dict())


def vae_shapes(width: int) -> dict[str, Tensor]:
    """The weights' shapes of the KL autoencoder of SD1.5 and SDXL with a decoder of this width."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=SD15_VAE, embed_dim=4, decoder_ddconfig=SD15_VAE | {"ch": width})
    return dict(vae.state_dict())


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def checkpoint(config: dict[str, Any], width: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A checkpoint as people share them, without text encoders."""
    unet = random_weights(unet_shapes(config), seed, dtype)
    vae = random_weights(vae_shapes(width), seed + 1, dtype)
    return prefixed(UNET_PREFIX, unet) | prefixed(VAE_PREFIX, vae)


def scaled_float8(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A denoiser whose Linear weights are float8 with a scale each, in the format that the host's files had first."""
    made: dict[str, Tensor] = {}
    for name, weight in random_weights(unet_shapes(config), seed, torch.float16).items():
        if weight.ndim != 2 or not name.endswith(".weight"):
            made[name] = weight
            continue
        scale = weight.float().abs().max() / FLOAT8_MAX
        made[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        made[name.removesuffix("weight") + "scale_weight"] = scale
    # empty: products are computed in float8 where the card can
    made["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return made


def lora(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A LoRA of every attention projection, in the generic naming."""
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


def save_encoder(folder: Path, scale: str) -> None:
    """Write a DINOv2 with random weights as transformers does: config.json and model.safetensors."""
    import transformers

    torch.manual_seed(0)
    model: nn.Module = transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14, **DINOV2[scale]))
    model.save_pretrained(folder)  # type: ignore[operator]


def recipes(scale: str) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
    """(path below the models folder, what makes its tensors), in the order in which the stages need them."""
    shapes, width = SHAPES[scale], DECODER_WIDTH[scale]
    half = torch.float16
    yield "checkpoints/sd15.safetensors", lambda: checkpoint(shapes["sd15"], width, 1, half)
    yield "checkpoints/sdxl.safetensors", lambda: checkpoint(shapes["sdxl"], width, 3, half)
    yield (
        "checkpoints/sd15_float32.safetensors",
        lambda: checkpoint(shapes["sd15"], width, 1, torch.float32),
    )
    yield (
        "diffusion_models/sd15.safetensors",
        lambda: random_weights(unet_shapes(shapes["sd15"]), 1, half),
    )
    yield "diffusion_models/sd15_scaled_float8.safetensors", lambda: scaled_float8(shapes["sd15"], 1)
    yield "vae/vae_bfloat16.safetensors", lambda: random_weights(vae_shapes(width), 2, torch.bfloat16)
    yield (
        "controlnet/sd15_control.safetensors",
        lambda: random_weights(unet_shapes(shapes["sd15"], "ControlNet"), 5, half),
    )
    yield "loras/sd15_lora.safetensors", lambda: lora(shapes["sd15"], 6)
    yield f"{PARKED}/taesd_decoder.safetensors", lambda: tiny_decoder(7)


def save(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--scale", choices=SHAPES, required=True)
    options = parser.parse_args()
    # the host reads the command line when it is imported
    sys.argv[1:] = [] if torch.cuda.is_available() else ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    folder = options.models / "jepa" / ENCODER
    jobs: list[tuple[Path, Callable[[], object]]] = [
        (folder / "model.safetensors", lambda: save_encoder(folder, options.scale))
    ]
    for name, make in recipes(options.scale):
        file = options.models / name
        jobs.append((file, lambda file=file, make=make: save(file, make())))  # type: ignore[misc]
    failed = False
    for file, job in jobs:
        begun = time.monotonic()
        row: dict[str, Any] = {"file": str(file.relative_to(options.models))}
        try:
            with contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
                job()
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
