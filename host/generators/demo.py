"""The demo generator as a model of the host: small enough to come with the pack, sampled by stock nodes.

A class-conditional UNet, an instance of the host's class, that makes 128 x 128 pixel avatars in the latents (16 x 16 x 16)
of the tokenizer that it shares with the small D-JEPA. Trained by research/training/generator/train.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...jepa_core.djepa import DJEPAFileError, load_tokenizer
from ...jepa_core.djepa.tokenizer import CHANNELS, STRIDE
from ...jepa_core.tensors import checked_tensors, unreadable
from ..comfy.required import (
    VAE,
    BaseModel,
    LatentFormat,
    ModelConfig,
    ModelPatcher,
    ModelType,
    get_torch_device,
    unet_offload_device,
)
from .autoencoder import TOKENIZER, WrappedAutoencoder, small_vae

WEIGHTS = Path(__file__).absolute().parents[2] / "assets" / "demo128.safetensors"
MAX_BYTES = 20_000_000
FORMAT = "jepa-demo-generator-2"
SIDE = 128  # pixels of the pictures that it was trained on
# The names of the rows of the class table. They must not change: saved workflows contain them.
CLASSES = ("any", "robot", "pixel face", "bust", "big smile", "comic head", "emoji")
PREDICTIONS = {"v": ModelType.V_PREDICTION, "flow": ModelType.FLOW}

Conditioning = list[list[Any]]


class DemoFileError(ValueError):
    """The demo generator's file is missing, damaged or of another model. The message names the file."""


@dataclass(frozen=True)
class DemoFile:
    """What the file holds.

    Attributes:
        unet: configuration of the host's UNet. weights: of the UNet.
        prediction: a key of PREDICTIONS.
        classes: (7, width) context token of each class.
        preview: (17, 3) that turn latents into colours in [-1, 1]: a factor for each channel, and what is added.
    """

    unet: dict[str, Any]
    weights: dict[str, Tensor]
    prediction: str
    classes: Tensor
    preview: list[list[float]]


class DemoConfig(ModelConfig):
    """What the host needs to know about a model besides its weights."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = LatentFormat
    supported_inference_dtypes = [torch.float32]
    # For the host's estimate of working memory; its own UNets, with three times the channels, use 2.
    memory_usage_factor = 0.4


def load_demo_generator() -> tuple[ModelPatcher, VAE]:
    """Load the demo generator and its VAE for the host's samplers, in float32.

    Raises:
        DemoFileError: the weights are missing, damaged or of another model.
    """
    content = _read(WEIGHTS)
    try:
        patcher = demo_patcher(content.unet, content.weights, content.prediction, content.preview)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DemoFileError(f"{WEIGHTS}: weights and header do not fit each other ({error})") from error
    try:
        tokenizer = load_tokenizer(TOKENIZER)
    except DJEPAFileError as error:
        raise DemoFileError(f"{error}; install the pack again") from error
    with torch.inference_mode(False):
        autoencoder = WrappedAutoencoder(tokenizer, 1.0)
    return patcher, small_vae(autoencoder, stride=STRIDE, channels=CHANNELS)


def demo_patcher(
    unet: dict[str, Any], weights: dict[str, Tensor], prediction: str, preview: list[list[float]]
) -> ModelPatcher:
    """A UNet as a model of the host, in float32.

    Args:
        prediction: "v" on the host's default schedule, or "flow".
        preview: see DemoFile.
    """
    config = DemoConfig(unet)
    config.latent_format.latent_channels = unet["in_channels"]
    config.latent_format.spacial_downscale_ratio = STRIDE
    config.latent_format.latent_rgb_factors = preview[:-1]
    config.latent_format.latent_rgb_factors_bias = preview[-1]
    config.set_inference_dtype(torch.float32, None)
    load_device, offload_device = get_torch_device(), unet_offload_device()
    # The host calls this under inference mode, but the parameters must be normal tensors to be differentiated.
    with torch.inference_mode(False):
        model = BaseModel(config, PREDICTIONS[prediction], device=offload_device)
        model.diffusion_model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    # A plain patcher: guidance differentiates this model, and so few weights need no streaming.
    return ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def demo_classes() -> list[str]:
    """The names of the classes; the first, "any", is the unconditional one."""
    return list(CLASSES)


def demo_conditioning(name: str) -> Conditioning:
    """Return the conditioning for a class: one context token (1, 1, width), float32.

    Raises:
        ValueError: no such class.
        DemoFileError: the weights are missing, damaged or of another model.
    """
    if name not in CLASSES:
        raise ValueError(f"the demo generator has no class {name!r}; it has {', '.join(CLASSES)}")
    row = _read(WEIGHTS).classes[CLASSES.index(name)]
    return [[row.float()[None, None], {}]]


def _read(file: Path) -> DemoFile:
    """Read the file whole. Raises DemoFileError if anything is wrong."""
    if not file.is_file():
        raise DemoFileError(f"{file} does not exist; it is part of this pack, so install the pack again")
    if file.stat().st_size > MAX_BYTES:
        raise DemoFileError(f"{file} is larger than {MAX_BYTES // 10**6} MB; install the pack again")
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            tensors = checked_tensors(file, content, {name: name for name in content.keys()}, DemoFileError)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DemoFileError(unreadable(file, error, "install the pack again")) from error
    if header.get("format") != FORMAT:
        raise DemoFileError(f"{file} has format {header.get('format')!r}, expected {FORMAT!r}")
    return _content(file, header, tensors)


def _content(file: Path, header: dict[str, str], tensors: dict[str, Tensor]) -> DemoFile:
    try:
        unet, classes, preview = (json.loads(header[name]) for name in ("unet", "classes", "preview"))
        prediction = header["prediction"]
        shapes = (unet["in_channels"], unet["out_channels"], len(preview), *{len(row) for row in preview})
        entries = (len(CLASSES), unet["context_dim"])
        finite = all(math.isfinite(number) for row in preview for number in row)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise DemoFileError(f"{file} has an incomplete header ({error!r})") from error
    expected = (CHANNELS, CHANNELS, CHANNELS + 1, 3)
    if classes != list(CLASSES) or shapes != expected or not finite or prediction not in PREDICTIONS:
        raise DemoFileError(f"{file} is a generator with other classes, other latents or another prediction")
    if "classes.weight" not in tensors or tuple(tensors["classes.weight"].shape) != entries:
        raise DemoFileError(f"{file} has no class table of shape {entries}")
    table = tensors.pop("classes.weight")
    weights = {name.removeprefix("unet."): weight for name, weight in tensors.items()}
    return DemoFile(unet, weights, prediction, table, preview)
