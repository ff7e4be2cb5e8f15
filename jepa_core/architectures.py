"""The supported encoder architectures: a table of how to read, build and call each.

To add one, add a row, and an embedding function if none of the existing ones fits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

OLDEST_TRANSFORMERS = (4, 56)
if tuple(map(int, transformers.__version__.split(".")[:2])) < OLDEST_TRANSFORMERS:
    raise ImportError(
        f"JEPA Guidance needs transformers 4.56 or newer, {transformers.__version__} is installed: update ComfyUI's "
        "requirements, or run: pip install --upgrade transformers"
    )

Shapes = Mapping[str, tuple[int, ...]]

# Attention grows with the fourth power of the side in patches: 1-pixel patches of 224 would take gigabytes per head.
MIN_PATCH = 8
# A few bytes in a file could ask for layers that take milliseconds each to build; the largest known encoder has 48.
MAX_LAYERS = 100


class Pixels(NamedTuple):
    """How an encoder's pixels are prepared: resized by `interpolation`, minus `mean`, over `std` (red, green, blue)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    def normalised(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) in [0, 1], minus the mean, over the standard deviation."""
        mean, std = (x.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return (x - mean) / std


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
OPENAI = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic")
SYMMETRIC = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


# --- embeddings: (model, images (B, 3, S, S)) -> (B, d) ------------------------------------------------------------


def class_token(model: Any, images: Tensor) -> Tensor:
    """The class token after the final LayerNorm: what the DINO losses compare (and the paper takes)."""
    return model(pixel_values=images).last_hidden_state[:, 0]


def mean_token(model: Any, images: Tensor) -> Tensor:
    """The mean of the patch tokens: I-JEPA has no class token, and its authors average them for linear evaluation."""
    return model(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state.mean(1)


def projected_class_token(model: Any, images: Tensor) -> Tensor:
    """The projection that is compared with captions, before its length is normalised to 1.

    The normalisation would add a null direction without adding information; the tower's output before the
    projection has no training loss of its own.
    """
    return model(pixel_values=images, interpolate_pos_encoding=True).image_embeds


def pooled_token(model: Any, images: Tensor) -> Tensor:
    """The attention-pooled token that SigLIP compares with captions, before its length is normalised to 1."""
    return model(pixel_values=images, interpolate_pos_encoding=True).pooler_output


def mean_token_of_still(model: Any, images: Tensor) -> Tensor:
    """The mean token of the shortest clip: the image repeated for one tubelet (two frames).

    A longer clip of the same image would cost more and show nothing new.
    """
    return mean_token_of_clip(model, images[:, None])


def mean_token_of_clip(model: Any, clips: Tensor) -> Tensor:
    """The mean of all tokens of clips (B, T, 3, S, S); the last frame is repeated to fill its tubelet."""
    tubelet = model.config.tubelet_size
    missing = -clips.shape[1] % tubelet
    if missing:
        clips = torch.cat([clips, clips[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
    # Layers derive positions from token numbers and the grid size that the model was built for.
    side = clips.shape[-1] // model.config.patch_size
    for layer in model.encoder.layer:
        layer.attention.grid_size = side
    return model(pixel_values_videos=clips, skip_predictor=True).last_hidden_state.mean(1)


# --- sizes read from tensor shapes -------------------------------------------------------------------------------


def dinov2_sizes(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Every size of a DINOv2, for files without a configuration; all published attention heads are 64 wide."""
    hidden, channels, patch, _ = shapes["embeddings.patch_embeddings.projection.weight"]
    positions = shapes["embeddings.position_embeddings"][1] - 1
    side = math.isqrt(positions)
    first = "encoder.layer.0.mlp."
    gated = first + "weights_in.weight" in shapes
    ratio = 4 if gated else shapes[first + "fc1.weight"][0] // hidden
    if channels != 3 or side * side != positions:
        raise ValueError(f"{channels} colour channels and {positions} positions are not supported")
    return {
        "patch_size": patch,
        "hidden_size": hidden,
        "num_attention_heads": stated.get("num_attention_heads", hidden // 64),
        "num_hidden_layers": len(
            {name.split(".")[2] for name in shapes if name.startswith("encoder.layer.")}
        ),
        "mlp_ratio": ratio,
        "use_swiglu_ffn": gated,
        "image_size": side * patch,
    }


def dinov2_register_sizes(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """dinov2_sizes, plus the number of registers."""
    return dinov2_sizes(shapes, stated) | {"num_register_tokens": shapes["embeddings.register_tokens"][1]}


def projection_size(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The length of CLIP's projection; some published vision_config entries state a wrong one."""
    return {"projection_dim": shapes["visual_projection.weight"][0]}


# --- configurations ----------------------------------------------------------------------------------------------


def _size(low: int, high: int) -> Callable[[Any], str]:
    def message(value: Any) -> str:
        # bool is a subclass of int
        whole = isinstance(value, int) and not isinstance(value, bool)
        return "" if whole and low <= value <= high else f"is not a whole number from {low} to {high}"

    return message


def _between(low: float, high: float) -> Callable[[Any], str]:
    def message(value: Any) -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number and low < value < high else f"is not between {low:g} and {high:g}"

    return message


def _one_of(*values: Any) -> Callable[[Any], str]:
    def message(value: Any) -> str:
        fits = any(value == known and type(value) is type(known) for known in values)
        return "" if fits else f"is not supported, only {', '.join(map(repr, values))}"

    return message


_flag = _one_of(True, False)
# The allowed values of each configuration entry; other entries are ignored.
ENTRIES: dict[str, Callable[[Any], str]] = {
    "hidden_size": _size(1, 1 << 14),
    "intermediate_size": _size(1, 1 << 16),
    "projection_dim": _size(1, 1 << 14),
    "num_hidden_layers": _size(1, MAX_LAYERS),
    "num_attention_heads": _size(1, 1 << 10),
    "num_register_tokens": _size(0, 64),
    "patch_size": _size(MIN_PATCH, 64),
    "tubelet_size": _size(1, 4),
    "image_size": _size(MIN_PATCH, 1 << 12),
    "vocab_size": _size(1, 1 << 18),
    "max_position_embeddings": _size(3, 1 << 10),
    "num_channels": _one_of(3),
    "in_chans": _one_of(3),
    "mlp_ratio": _between(0, 16),
    "layer_norm_eps": _between(0, 1),
    "rope_theta": _between(1, 1e6),
    "hidden_act": _one_of("gelu", "quick_gelu", "gelu_pytorch_tanh", "silu"),
    "qkv_bias": _flag,
    "query_bias": _flag,
    "key_bias": _flag,
    "value_bias": _flag,
    "proj_bias": _flag,
    "mlp_bias": _flag,
    "use_gated_mlp": _flag,
    "use_swiglu_ffn": _flag,
}
_COMMON = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "layer_norm_eps",
    "hidden_act",
)


def checked_entries(
    stated: Mapping[str, Any], names: tuple[str, ...], told: dict[str, Any]
) -> dict[str, Any]:
    """The entries of these names in a configuration, and `told`, which comes first. Raises ValueError, by name."""
    entries = {name: stated[name] for name in names if name in stated} | told
    for name, value in entries.items():
        if message := ENTRIES[name](value):
            raise ValueError(f"{name} {value!r:.100} {message}")
    width, heads = entries.get("hidden_size", 0), entries.get("num_attention_heads", 1)
    if width % heads:
        raise ValueError(f"num_attention_heads {heads} does not divide the width {width}")
    return entries


@dataclass(frozen=True)
class Architecture:
    """An encoder architecture.

    Attributes:
        title: the display name.
        model_type: the model_type in config.json of the encoder alone; also the model that this row builds.
        container: the model_type of a model that holds the encoder next to a text tower, with the encoder's entries
            under vision_config.
        model_class, config_class: class names in transformers, available from version `since`.
        entries: the configuration entries, all in ENTRIES, that determine the model.
        fixed: entries that never come from a file.
        sizes: reads entries from the tensors' shapes; they override the configuration. Raises KeyError, ValueError,
            IndexError or ZeroDivisionError for tensors that do not fit.
        parts: name prefixes of the needed tensors in files.
        patch_embedding: name suffix of the patch embedding's weight.
        unneeded: name prefixes of weights that embedding an image does not use.
        width: the configuration entry that holds the embedding's length.
        embed: (model, images (B, 3, S, S)) -> embeddings (B, d).
        embed_clip: (model, clips (B, T, 3, S, S)) -> (B, d), for architectures that see motion.
        null_directions: how many singular values are zero whatever the image and the weights. A LayerNorm leaves two,
            since its outputs over gamma have zero mean and a fixed length; the mean of several tokens leaves only the
            first; a projection to fewer dimensions or an MLP on top leaves none.
        pixels: as published with the checkpoints.
        uses_preprocessor_config: whether preprocessor_config.json overrides `pixels`. False for DINOv2, whose file asks
            for bicubic while the paper uses bilinear; false for I-JEPA, which was published with a mean and a standard
            deviation of 0.5 but trained with ImageNet's.
        signature: name suffixes that identify the architecture without a config.json; empty where config.json is
            required.
    """

    title: str
    model_type: str
    model_class: str
    config_class: str
    entries: tuple[str, ...]
    parts: tuple[str, ...]
    patch_embedding: str
    embed: Callable[[Any, Tensor], Tensor]
    null_directions: int
    pixels: Pixels
    since: str = "4.56"
    width: str = "hidden_size"
    container: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sizes: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]] = lambda shapes, stated: {}
    unneeded: tuple[str, ...] = ()
    uses_preprocessor_config: bool = True
    signature: tuple[str, ...] = ()
    embed_clip: Callable[[Any, Tensor], Tensor] | None = None

    def build_class(self) -> Any:
        """The class in transformers. Raises ValueError where the installed version lacks it."""
        return self._of_transformers(self.model_class)

    def configuration(self, stated: Mapping[str, Any], shapes: Shapes) -> Any:
        """The transformers configuration from config.json's entries, overridden by sizes read from the tensors.

        Raises:
            ValueError: an unsupported entry, by name, or a transformers version without this architecture.
            KeyError, IndexError, ZeroDivisionError: tensors that do not fit.
        """
        entries = checked_entries(stated, self.entries, self.sizes(shapes, stated))
        try:
            return self._of_transformers(self.config_class)(**entries, **self.fixed)
        except Exception as error:  # its class depends on the version of transformers
            raise ValueError(str(error)) from error

    def _of_transformers(self, name: str) -> Any:
        found = getattr(transformers, name, None)
        if found is None:
            raise ValueError(
                f"{self.title} needs transformers {self.since} or newer, {transformers.__version__} is installed"
            )
        return found


_CLIP: dict[str, Any] = {
    "entries": (*_COMMON, "intermediate_size", "projection_dim", "image_size", "num_channels"),
    "parts": ("vision_model.", "visual_projection."),
    "patch_embedding": "vision_model.embeddings.patch_embedding.weight",
    "sizes": projection_size,
    "width": "projection_dim",
    "embed": projected_class_token,
    "null_directions": 0,
    "pixels": OPENAI,
}
_DINOV2: dict[str, Any] = {
    "entries": ("layer_norm_eps", "hidden_act"),
    "parts": ("embeddings.", "encoder.", "layernorm."),
    "patch_embedding": "embeddings.patch_embeddings.projection.weight",
    "unneeded": ("embeddings.mask_token",),
    "embed": class_token,
    "null_directions": 2,
    "pixels": IMAGENET,
    "uses_preprocessor_config": False,
}
_CLASS_AND_PATCHES = ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight")

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture(
            title="DINOv2",
            model_type="dinov2",
            model_class="Dinov2Model",
            config_class="Dinov2Config",
            sizes=dinov2_sizes,
            signature=_CLASS_AND_PATCHES,
            **_DINOV2,
        ),
        Architecture(
            title="DINOv2 with registers",
            model_type="dinov2_with_registers",
            model_class="Dinov2WithRegistersModel",
            config_class="Dinov2WithRegistersConfig",
            sizes=dinov2_register_sizes,
            signature=(*_CLASS_AND_PATCHES, "embeddings.register_tokens"),
            **_DINOV2,
        ),
        Architecture(
            title="DINOv3",
            model_type="dinov3_vit",
            model_class="DINOv3ViTModel",
            config_class="DINOv3ViTConfig",
            entries=(
                *_COMMON,
                *("intermediate_size", "image_size", "num_channels", "num_register_tokens", "rope_theta"),
                *("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp"),
            ),
            parts=("embeddings.", "layer.", "model.layer.", "norm."),
            patch_embedding="embeddings.patch_embeddings.weight",
            unneeded=("embeddings.mask_token",),
            embed=class_token,
            null_directions=2,
            pixels=IMAGENET,
        ),
        Architecture(
            title="CLIP (OpenAI, OpenCLIP, MetaCLIP)",
            model_type="clip_vision_model",
            container="clip",
            model_class="CLIPVisionModelWithProjection",
            config_class="CLIPVisionConfig",
            **_CLIP,
        ),
        Architecture(
            title="MetaCLIP 2",
            model_type="metaclip_2_vision_model",
            container="metaclip_2",
            model_class="MetaClip2VisionModelWithProjection",
            config_class="MetaClip2VisionConfig",
            since="4.57",
            **_CLIP,
        ),
        Architecture(
            title="SigLIP and SigLIP 2",
            model_type="siglip_vision_model",
            container="siglip",
            model_class="SiglipVisionModel",
            config_class="SiglipVisionConfig",
            entries=(*_COMMON, "intermediate_size", "image_size", "num_channels"),
            parts=("vision_model.", "embeddings.", "encoder.", "post_layernorm.", "head."),
            patch_embedding="embeddings.patch_embedding.weight",
            embed=pooled_token,
            null_directions=0,
            pixels=SYMMETRIC,
        ),
        Architecture(
            title="I-JEPA",
            model_type="ijepa",
            model_class="IJepaModel",
            config_class="IJepaConfig",
            entries=(*_COMMON, "intermediate_size", "image_size", "num_channels", "qkv_bias"),
            parts=("embeddings.", "encoder.", "layers.", "layernorm."),
            patch_embedding="embeddings.patch_embeddings.projection.weight",
            unneeded=("embeddings.mask_token", "pooler."),
            embed=mean_token,
            null_directions=1,
            pixels=IMAGENET,
            uses_preprocessor_config=False,
        ),
        Architecture(
            title="V-JEPA 2",
            model_type="vjepa2",
            model_class="VJEPA2Model",
            config_class="VJEPA2Config",
            entries=(*_COMMON, "tubelet_size", "in_chans", "mlp_ratio", "qkv_bias"),
            fixed={"pred_num_hidden_layers": 0},  # the predictor is not used for embedding
            parts=("encoder.",),
            patch_embedding="encoder.embeddings.patch_embeddings.proj.weight",
            unneeded=("predictor.",),
            embed=mean_token_of_still,
            embed_clip=mean_token_of_clip,
            null_directions=1,
            pixels=IMAGENET,
        ),
    )
}


def known_model_types() -> list[str]:
    """Every supported model_type of a config.json."""
    rows = ARCHITECTURES.values()
    return [*ARCHITECTURES, *(row.container for row in rows if row.container)]


def architecture_of(model_type: Any) -> Architecture | None:
    """The row for a config.json's model_type, or None if it is unknown."""
    for row in ARCHITECTURES.values():
        # compared one by one, since a value from a file may not be hashable
        if model_type in (row.model_type, row.container) and isinstance(model_type, str):
            return row
    return None
