"""The demo generator as a model of the host: small enough to come with the pack, sampled by stock nodes.

A class-conditional UNet, an instance of the host's class, that makes 64 x 64 pixel emoji. Trained by
research/training/emoji/train.py. Its latents are pixels in [-1, 1] folded 4 x 4 into channels (48 x 16 x 16), so the VAE
only folds and unfolds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..comfy.required import (
    VAE,
    BaseModel,
    LatentFormat,
    ModelConfig,
    ModelPatcher,
    ModelType,
    PixelspaceConversionVAE,
    get_torch_device,
    unet_offload_device,
)
from .autoencoder import small_vae

WEIGHTS = Path(__file__).absolute().parents[2] / "assets" / "emoji64.safetensors"
MAX_BYTES = 20_000_000
FORMAT = "jepa-demo-generator-1"
FOLD = 4
CHANNELS = 3 * FOLD * FOLD
# The names of the rows of the class table. They must not change: saved workflows contain them.
CLASSES = ("any", "face", "person", "heart", "hand", "sky", "fruit", "clock")

Conditioning = list[list[Any]]


class DemoFileError(ValueError):
    """The demo generator's file is missing, damaged or of another model. The message names the file."""


class FoldedPixels(LatentFormat):
    """Pixels in [-1, 1] folded 4 x 4 into channels, unscaled."""

    latent_channels = CHANNELS
    spacial_downscale_ratio = FOLD
    # The preview is the mean of each fold. Channels are ordered by colour, then by position in the fold.
    latent_rgb_factors = [
        [float(colour == channel // FOLD**2) / FOLD**2 for colour in range(3)] for channel in range(CHANNELS)
    ]


class DemoConfig(ModelConfig):
    """What the host needs to know about a model besides its weights."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = FoldedPixels
    supported_inference_dtypes = [torch.float32]
    # For the host's estimate of working memory; its own UNets, with three times the channels, use 2.
    memory_usage_factor = 0.4


class FoldingVAE(PixelspaceConversionVAE):
    """Folds pixels into latents and back, losslessly."""

    def encode(self, pixels: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 48, H/4, W/4). H and W must be multiples of 4."""
        return F.pixel_unshuffle(pixels, FOLD)

    def decode(self, samples: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """(B, 48, H, W) -> (B, 3, 4H, 4W), the inverse of encode."""
        return F.pixel_shuffle(samples, FOLD)


def load_demo_generator() -> tuple[ModelPatcher, VAE]:
    """Load the demo generator and its VAE for the host's samplers, in float32.

    Raises:
        DemoFileError: the weights are missing, damaged or of another model.
    """
    settings, tensors = _read(WEIGHTS)
    load_device = get_torch_device()
    offload_device = unet_offload_device()
    del tensors["classes.weight"]
    weights = {name.removeprefix("unet."): tensor.float() for name, tensor in tensors.items()}
    # The host calls this under inference mode, but the parameters must be normal tensors to be differentiated.
    with torch.inference_mode(False):
        try:
            config = DemoConfig(settings)
            config.set_inference_dtype(torch.float32, None)
            kind = ModelType.V_PREDICTION
            model = BaseModel(config, kind, device=offload_device)
            model.diffusion_model.load_state_dict(weights)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DemoFileError(f"{WEIGHTS}: weights and header do not fit each other ({error})") from error
    # A plain patcher: guidance differentiates this model, and so few weights need no streaming.
    patcher = ModelPatcher(model, load_device=load_device, offload_device=offload_device)
    with torch.inference_mode(False):
        autoencoder = FoldingVAE()
    return patcher, small_vae(autoencoder, stride=FOLD, channels=CHANNELS)


def demo_classes() -> list[str]:
    """The names of the classes; the first, "any", is the unconditional one."""
    return list(CLASSES)


def demo_conditioning(name: str) -> Conditioning:
    """Return the conditioning for a class: one context token (1, 1, 128), float32.

    Raises:
        ValueError: no such class.
        DemoFileError: the weights are missing, damaged or of another model.
    """
    if name not in CLASSES:
        raise ValueError(f"the demo generator has no class {name!r}; it has {', '.join(CLASSES)}")
    _, tensors = _read(WEIGHTS)
    row = tensors["classes.weight"][CLASSES.index(name)]
    return [[row.float()[None, None], {}]]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the UNet's configuration and all tensors, as stored. Raises DemoFileError if anything is wrong."""
    if not file.is_file():
        raise DemoFileError(f"{file} does not exist; it is part of this pack, so install the pack again")
    if file.stat().st_size > MAX_BYTES:
        raise DemoFileError(f"{file} is larger than {MAX_BYTES // 10**6} MB; install the pack again")
    try:
        with torch.inference_mode(False), safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DemoFileError(f"{file} is damaged ({error}); install the pack again") from error
    if header.get("format") != FORMAT:
        raise DemoFileError(f"{file} has format {header.get('format')!r}, expected {FORMAT!r}")
    try:
        settings = json.loads(header["unet"])
        classes, fold = json.loads(header["classes"]), int(header["fold"])
        shape = (settings["in_channels"], settings["out_channels"], fold)
        table = (len(CLASSES), settings["context_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise DemoFileError(f"{file} has an incomplete header ({error!r})") from error
    if tuple(classes) != CLASSES or shape != (CHANNELS, CHANNELS, FOLD):
        raise DemoFileError(f"{file} is a generator with other classes or another fold")
    if "classes.weight" not in tensors or tuple(tensors["classes.weight"].shape) != table:
        raise DemoFileError(f"{file} has no class table of shape {table}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise DemoFileError(f"{file} is damaged (some weights are not finite); install the pack again")
    return settings, tensors
