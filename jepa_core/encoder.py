"""Load a DINOv2 encoder from safetensors and prepare images for it."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from .precision import full_precision, half_precision

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FAMILIES = {"dinov2": Dinov2Config, "dinov2_with_registers": Dinov2WithRegistersConfig}
_MAX_CONFIG_BYTES = 1 << 20
# A name costs a file some bytes, building its layer milliseconds; the largest DINOv2 has 40 layers, 800 tensors.
_MAX_LAYERS = 100
_MAX_TENSORS = 10_000
# Attention grows with the fourth power of an image's side in patches: 1-pixel patches of 224 would take gigabytes a head.
_MIN_PATCH = 8
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class EncoderFileError(ValueError):
    """An encoder file is missing, damaged or of a kind that is not supported. The message names the file."""


class _LayerNorm(nn.LayerNorm):
    """LayerNorm from elementary operations, whose derivatives of every order and mode are right.

    A backward pass through torch's own forward-mode derivative of layer_norm leaves out terms, silently: the
    gradient of the guided score then has a cosine of 0.77 with the right one (torch 2.14).
    """

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return centred * scale * self.weight + self.bias


class Encoder(nn.Module):
    """A frozen JEPA encoder f: preprocessed images (B, 3, S, S) -> embeddings (B, d).

    The embedding is the class token after the final LayerNorm. Evaluation never runs below float32.

    Attributes:
        embed_dim: d, the length of an embedding.
        image_size: S in pixels.
        family: the architecture, a key of FAMILIES.
    """

    def __init__(self, model: PreTrainedModel, image_size: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.embed_dim: int = model.config.hidden_size
        self.family: str = model.config.model_type
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.__class__ = _LayerNorm

    @property
    def weight(self) -> Tensor:
        """One of the weights; its dtype and device are the encoder's."""
        return next(self.model.parameters())

    @property
    def activation_bytes(self) -> int:
        """Estimated bytes that one image's forward pass keeps for its backward pass, with fused attention."""
        config: Any = self.model.config
        return config.num_hidden_layers * self._tokens * 16 * config.hidden_size * self.weight.element_size()

    @property
    def layer_bytes(self) -> int:
        """Estimated bytes of one layer's activations, attention weights included."""
        config: Any = self.model.config
        per_token = 16 * config.hidden_size + 3 * config.num_attention_heads * self._tokens
        return self._tokens * per_token * self.weight.element_size()

    @property
    def _tokens(self) -> int:
        return (self.image_size // self.model.config.patch_size) ** 2 + 5

    def forward(self, x: Tensor, *, half: bool = False) -> Tensor:
        """Embed preprocessed images x (B, 3, S, S); returns (B, d) in the encoder's dtype.

        Args:
            half: matrix products in half precision, where the device is fast at it; see half_precision.
        """
        with half_precision(x.device) if half else full_precision(x.device):
            embedding = self.model(pixel_values=x.to(self.weight.dtype)).last_hidden_state[:, 0]
        return embedding.to(self.weight.dtype)

    @contextmanager
    def fused_attention(self) -> Iterator[None]:
        """Attend with torch's fused kernels: less memory, but a plain backward pass is all that they support."""
        config: Any = self.model.config
        before = config._attn_implementation
        self.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def preprocess(self, images: Tensor, *, fit: str = "squash", antialias: bool = True) -> Tensor:
        """Resize and normalise images the way the encoder was trained to see them. Differentiable.

        Args:
            images: (B, H, W, 3) in [0, 1].
            fit: "squash" resizes both sides to S (the paper's choice); "crop" first cuts the centre square.
            antialias: low-pass before shrinking. False is the resize of the authors' code.

        Returns:
            (B, 3, S, S) normalised; float64 stays float64, anything else becomes float32.

        Raises:
            ValueError: images of another shape, or an unknown fit.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (batch, height, width, 3), got {tuple(images.shape)}")
        x = images.movedim(-1, 1)
        x = x if x.dtype == torch.float64 else x.float()
        if fit == "crop":
            height, width = x.shape[-2:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            x = x[..., top : top + side, left : left + side]
        elif fit != "squash":
            raise ValueError(f"fit must be 'squash' or 'crop', got {fit!r}")
        size = (self.image_size, self.image_size)
        with full_precision(x.device):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=antialias)
        mean = torch.tensor(IMAGENET_MEAN, dtype=x.dtype, device=x.device)[:, None, None]
        std = torch.tensor(IMAGENET_STD, dtype=x.dtype, device=x.device)[:, None, None]
        return (x - mean) / std


def load_encoder(
    path: str | os.PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int = 224,
) -> Encoder:
    """Load a DINOv2 encoder (with or without registers) in the Hugging Face safetensors layout.

    Args:
        path: a folder with model.safetensors and config.json, or one .safetensors file. The architecture
            is read from the tensors; a config.json in the same folder says what tensors cannot.
        dtype: float32 or float64. Checkpoints in half precision are widened.
        image_size: S in pixels, a multiple of the patch size, whatever size the checkpoint was trained at.

    Returns:
        The encoder, in evaluation mode and without trainable weights.

    Raises:
        EncoderFileError: a missing, damaged or unsupported file.
        ValueError: an unusable dtype or image_size.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be float32 or float64 (half precision destroys the gradient), got {dtype}"
        )
    file = _weights_file(Path(path))
    tensors = _read_tensors(file)
    config = _architecture(file, tensors)
    if image_size < config.patch_size or image_size % config.patch_size:
        raise ValueError(
            f"image_size must be a multiple of the patch size {config.patch_size}, got {image_size}"
        )
    # Weights made here are normal tensors even when a host calls under inference mode.
    with torch.inference_mode(False):
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        model_class: Any = Dinov2Model if config.model_type == "dinov2" else Dinov2WithRegistersModel
        with torch.device("meta"):
            needed = sum(weight.numel() for weight in model_class(config).parameters())
        held = sum(tensor.numel() for tensor in tensors.values())
        # a few shapes decide the architecture, so a small file could ask for a large model
        if held + config.hidden_size < needed:  # the mask token may be missing
            raise EncoderFileError(
                f"{file} holds {held} weights, its architecture has {needed}; tensors are missing"
            )
        # Eager attention is the one that forward-mode differentiation supports everywhere; scoped to this
        # model, where torch's own switches would be process-wide.
        try:
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                attn_implementation="eager",
                dtype=dtype,
                ignore_mismatched_sizes=True,  # refused below, with the file's name
                output_loading_info=True,
            )
        except RuntimeError as error:
            raise EncoderFileError(f"{file} is not a complete DINOv2 encoder: {error}") from error
        wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        wrong = [key for key in wrong if "mask_token" not in key]
        if wrong:
            raise EncoderFileError(f"{file}: {len(wrong)} tensors missing or misshapen, first {wrong[0]}")
        return Encoder(model.eval().requires_grad_(False).to(device), image_size)


def _weights_file(path: Path) -> Path:
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise EncoderFileError(
            f"{file} does not exist; expected a .safetensors file or a folder with model.safetensors"
        )
    if file.suffix != ".safetensors":
        raise EncoderFileError(f"{file} is not a .safetensors file; no other format is loaded")
    return file


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            if len(names) > _MAX_TENSORS:
                raise EncoderFileError(f"{file} holds {len(names)} tensors; no DINOv2 encoder has so many")
            # Classifier checkpoints keep the encoder under a prefix.
            for prefix in ("", *(f"{family}." for family in FAMILIES)):
                if prefix + "embeddings.patch_embeddings.projection.weight" in names:
                    break
            else:
                some = ", ".join(sorted(names)[:3])
                raise EncoderFileError(
                    f"{file} is not a DINOv2 encoder in the Hugging Face layout (it holds {some} ...)"
                )
            names = [name for name in names if name.startswith(prefix)]
            # An empty tensor may claim any shape, one that torch cannot count too; the bytes of every other one are there.
            for name in names:
                shape = content.get_slice(name).get_shape()
                if 0 in shape:
                    raise EncoderFileError(f"{file}: {name} is empty, its shape is {shape}")
            with torch.inference_mode(False):
                tensors = {name.removeprefix(prefix): content.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise EncoderFileError(
            f"{file} is damaged or not a safetensors file ({error}); download it again"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise EncoderFileError(
                f"{file}: {name} is {tensor.dtype}; only float16, bfloat16 and wider are supported"
            )
        if not tensor.isfinite().all():
            raise EncoderFileError(f"{file}: {name} holds NaN or infinite values; download it again")
    return tensors


def _architecture(file: Path, tensors: dict[str, Tensor]) -> Any:
    """Build the config from tensor shapes, so that a hostile config.json cannot ask for more than the weights hold.

    config.json adds the head count and LayerNorm's epsilon, and is checked for its family and activation.
    """
    registers_name = "embeddings.register_tokens"
    family = "dinov2_with_registers" if registers_name in tensors else "dinov2"
    settings = _config_file(file)
    stated = settings.get("model_type", family)
    if stated != family:
        supported = ", ".join(FAMILIES)
        raise EncoderFileError(
            f"{file.parent / 'config.json'} says model_type {stated!r}, the weights are {family!r}; supported: {supported}"
        )
    try:
        projection = tensors["embeddings.patch_embeddings.projection.weight"]
        hidden, channels, patch, _ = projection.shape
        positions = tensors["embeddings.position_embeddings"].shape[1] - 1
        side = math.isqrt(positions)
        layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")})
        first = "encoder.layer.0.mlp."
        swiglu = first + "weights_in.weight" in tensors
        mlp_ratio = 4 if swiglu else tensors[first + "fc1.weight"].shape[0] // hidden
        registers = tensors[registers_name].shape[1] if registers_name in tensors else None
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise EncoderFileError(f"{file} is not a complete DINOv2 encoder: {error}") from error
    if channels != 3 or side * side != positions or min(hidden, side) < 1 or patch < _MIN_PATCH:
        raise EncoderFileError(
            f"{file}: a width of {hidden}, {channels} colour channels, patches of {patch} pixels and {positions} "
            "positions are not supported"
        )
    if layers > _MAX_LAYERS:
        raise EncoderFileError(f"{file} names {layers} layers; more than {_MAX_LAYERS} are not supported")
    heads = settings.get("num_attention_heads", hidden // 64)
    # a bool is an int to Python
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or hidden % heads:
        raise EncoderFileError(f"{file}: num_attention_heads {heads!r} does not divide the width {hidden}")
    epsilon = settings.get("layer_norm_eps", 1e-6)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise EncoderFileError(
            f"{file.parent / 'config.json'}: layer_norm_eps {epsilon!r} is not between 0 and 1"
        )
    activation = settings.get("hidden_act", "gelu")
    if activation != "gelu":
        raise EncoderFileError(
            f"{file.parent / 'config.json'}: hidden_act {activation!r} is not supported, only 'gelu'"
        )
    return FAMILIES[family](
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_ratio=mlp_ratio,
        use_swiglu_ffn=swiglu,
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=epsilon,
        **({} if registers is None else {"num_register_tokens": registers}),
    )


def _config_file(file: Path) -> dict:
    """Return the config.json beside the weights, or {} where there is none."""
    path = file.parent / "config.json"
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise EncoderFileError(f"{path} is larger than any model's configuration")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EncoderFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise EncoderFileError(f"{path} is not a configuration (a JSON object)")
    return settings
