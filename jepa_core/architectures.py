"""The kinds of encoder that are supported: one row each of how to read, build and ask it.

Adding one is adding a row, and a function where no other row's embedding fits.
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

# Attention grows with the fourth power of an image's side in patches: 1-pixel patches of 224 would take gigabytes a head.
MIN_PATCH = 8
# Building a layer takes milliseconds, naming one costs a file some bytes; the largest known encoder has 48.
MAX_LAYERS = 100


class Pixels(NamedTuple):
    """How an encoder wants its pixels: resized by `interpolation`, then minus `mean`, over `std` (red, green, blue)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
OPENAI = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic")
SYMMETRIC = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


# --- embeddings: (model, images (B, 3, S, S)) -> (B, d) ------------------------------------------------------------


def class_token(model: Any, images: Tensor) -> Tensor:
    """The class token after the final LayerNorm: what the DINO losses compare (and the paper takes)."""
    return model(pixel_values=images).last_hidden_state[:, 0]


def mean_token(model: Any, images: Tensor) -> Tensor:
    """The mean of the patch tokens: I-JEPA has no class token, and its authors average for linear evaluation."""
    return model(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state.mean(1)


def projected_class_token(model: Any, images: Tensor) -> Tensor:
    """The projection that is compared with captions, before its length is normalised to 1.

    That last step would add a null direction and say nothing of the image; the tower's own output is not trained
    but through the projection.
    """
    return model(pixel_values=images, interpolate_pos_encoding=True).image_embeds


def pooled_token(model: Any, images: Tensor) -> Tensor:
    """The attention-pooled token that SigLIP compares with captions, before its length is normalised to 1."""
    return model(pixel_values=images, interpolate_pos_encoding=True).pooler_output


def mean_token_of_still(model: Any, images: Tensor) -> Tensor:
    """The mean token of a clip that shows the image for one tubelet (two frames), the shortest clip there is.

    A longer still clip costs in proportion and shows nothing else.
    """
    return mean_token_of_clip(model, images[:, None])


def mean_token_of_clip(model: Any, clips: Tensor) -> Tensor:
    """The mean of all tokens of clips (B, T, 3, S, S); the last frame stays until its tubelet is full."""
    tubelet = model.config.tubelet_size
    missing = -clips.shape[1] % tubelet
    if missing:
        clips = torch.cat([clips, clips[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
    # The position of a token is its number, and the layers count with the size that the model was built for.
    side = clips.shape[-1] // model.config.patch_size
    for layer in model.encoder.layer:
        layer.attention.grid_size = side
    return model(pixel_values_videos=clips, skip_predictor=True).last_hidden_state.mean(1)


# --- sizes that tensors tell -------------------------------------------------------------------------------------


def dinov2_sizes(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Every size of a DINOv2, so that a file without a configuration can be read; all published heads are 64 wide."""
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
    """As dinov2_sizes, and the number of registers."""
    return dinov2_sizes(shapes, stated) | {"num_register_tokens": shapes["embeddings.register_tokens"][1]}


def projection_size(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The length of CLIP's projection; the vision part of published configurations states another one at times."""
    return {"projection_dim": shapes["visual_projection.weight"][0]}


# --- configurations ----------------------------------------------------------------------------------------------


def _size(low: int, high: int) -> Callable[[Any], str]:
    def message(value: Any) -> str:
        # a bool is an int to Python
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
# What each entry of a configuration may be. Nothing else of a configuration is read.
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


@dataclass(frozen=True)
class Architecture:
    """A kind of encoder.

    Attributes:
        title: its name for people.
        model_type: what config.json calls the encoder alone, and the model that this row builds.
        container: what config.json calls a model that holds the encoder beside a text tower, with its entries under
            vision_config.
        model_class, config_class: names in transformers, which has them from version `since` on.
        entries: of the configuration, all in ENTRIES, that decide what is built.
        fixed: entries that never come from a file.
        sizes: entries that the tensors tell; they overrule the configuration. Raises KeyError, ValueError,
            IndexError or ZeroDivisionError for tensors that do not fit.
        parts: how the names of the needed tensors begin in files.
        patch_embedding: how the name of the first of them ends.
        unneeded: how the names of weights begin that embedding an image does not use.
        width: the entry of the configuration that says how long an embedding is.
        embed: (model, images (B, 3, S, S)) -> embeddings (B, d).
        embed_clip: (model, clips (B, T, 3, S, S)) -> (B, d), for kinds that see motion.
        null_directions: how many left singular vectors have a singular value of zero whatever the image and the
            weights. A LayerNorm leaves two, its outputs over gamma having no mean and a fixed length; of the mean
            of several tokens only the first is left; a projection to fewer dimensions or an MLP on top leaves none.
        pixels: as published with the checkpoints.
        uses_preprocessor_config: whether a preprocessor_config.json overrules `pixels`. Not for DINOv2, which is asked for
            bicubic pixels and gets the paper's bilinear ones; not for I-JEPA, which was published with a mean and a
            deviation of 0.5, but trained with those of ImageNet.
        signature: tensors by which this kind is known where there is no config.json; none where it must be there.
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
        """A configuration of transformers from what config.json states, overruled by what the tensors tell.

        Raises:
            ValueError: an entry that is not supported, by name, or an installed transformers without this kind.
            KeyError, IndexError, ZeroDivisionError: tensors that do not fit.
        """
        told = self.sizes(shapes, stated)
        entries = {name: stated[name] for name in self.entries if name in stated} | told
        for name, value in entries.items():
            if message := ENTRIES[name](value):
                raise ValueError(f"{name} {value!r:.100} {message}")
        width, heads = entries.get("hidden_size", 0), entries.get("num_attention_heads", 1)
        if width % heads:
            raise ValueError(f"num_attention_heads {heads} does not divide the width {width}")
        try:
            return self._of_transformers(self.config_class)(**entries, **self.fixed)
        except Exception as error:  # of which class, depends on the library's version
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
            fixed={"pred_num_hidden_layers": 0},  # the predictor has no part in embedding
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
    """Every model_type of a config.json that is supported."""
    rows = ARCHITECTURES.values()
    return [*ARCHITECTURES, *(row.container for row in rows if row.container)]


def architecture_of(model_type: Any) -> Architecture | None:
    """The row for the model_type of a config.json, or None for an unknown one."""
    for row in ARCHITECTURES.values():
        # compared, since what a file says may have no hash
        if model_type in (row.model_type, row.container) and isinstance(model_type, str):
            return row
    return None
