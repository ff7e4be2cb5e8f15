"""What does each published encoder cost as a guide, counted from its sizes, and what does the trained one here take?

    python dev.py run research/costs/guides.py

Weights, operations and kept activations follow from a configuration, so they are counted on meta tensors for every
checkpoint of jepa_core/hub.py, without its weights. Seconds need a machine and scores need trained weights: they are
there for the one trained encoder that dev.py can bring, and null for the others. Some nine minutes on one core, most
of them three exact scores.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedModel

import dev
from jepa_core import Encoder, RarityGradient, has_fast_bfloat16, jepa_score, load_encoder
from jepa_core.architectures import architecture_of
from jepa_core.hub import ENCODERS
from jepa_core.score import PROJECTION
from research.costs.pictures import photos
from research.harness import program
from research.harness.program import Row, markdown
from research.harness.timing import GIB, seconds_of

SIDE = 224
PHOTO = "astronaut"
SCORES = program.FIGURES / "score.json"


def _vit(hidden: int, layers: int, heads: int, patch: int, side: int, **others: Any) -> dict[str, Any]:
    """A vision transformer's configuration."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": side,
        **others,
    }


def _text(hidden: int, layers: int, heads: int, vocabulary: int, act: str, **others: Any) -> dict[str, Any]:
    """A text tower's configuration."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "hidden_act": act,
        **others,
    }


def _clip(vision: dict[str, Any], text_layers: tuple[int, int, int], projection: int) -> dict[str, Any]:
    """A pair of towers with CLIP's vocabulary; they are alike but for their sizes."""
    act, shared = vision["hidden_act"], {"projection_dim": projection}
    text = _text(*text_layers, 49408, act, **shared)
    return {**shared, "vision_config": vision | shared, "text_config": text}


_DINOV2 = {
    "small": _vit(384, 12, 6, 14, 518),
    "base": _vit(768, 12, 12, 14, 518),
    "large": _vit(1024, 24, 16, 14, 518),
    "giant": _vit(1536, 40, 24, 14, 518, use_swiglu_ffn=True),
}
_DINOV3 = {"num_register_tokens": 4, "rope_theta": 100.0, "key_bias": False}
_QUICK = {"hidden_act": "quick_gelu"}

# What the config.json of each checkpoint of ENCODERS says about sizes; the rest is what transformers takes by default.
PUBLISHED: dict[str, dict[str, Any]] = {
    **{f"dinov2-{size}": sizes for size, sizes in _DINOV2.items()},
    **{
        f"dinov2-with-registers-{size}": sizes | {"num_register_tokens": 4} for size, sizes in _DINOV2.items()
    },
    "dinov3-vits16-pretrain-lvd1689m": _vit(384, 12, 6, 16, 224, intermediate_size=1536, **_DINOV3),
    "dinov3-vitb16-pretrain-lvd1689m": _vit(768, 12, 12, 16, 224, intermediate_size=3072, **_DINOV3),
    "dinov3-vitl16-pretrain-lvd1689m": _vit(1024, 24, 16, 16, 224, intermediate_size=4096, **_DINOV3),
    "CLIP-ViT-B-32-laion2B-s34B-b79K": _clip(
        _vit(768, 12, 12, 32, 224, intermediate_size=3072, hidden_act="gelu"), (512, 12, 8), 512
    ),
    "clip-vit-large-patch14": _clip(
        _vit(1024, 24, 16, 14, 224, intermediate_size=4096, **_QUICK), (768, 12, 12), 768
    ),
    "metaclip-h14-fullcc2.5b": _clip(
        _vit(1280, 32, 16, 14, 224, intermediate_size=5120, **_QUICK), (1024, 24, 16), 1024
    ),
    "siglip2-base-patch16-224": {
        "vision_config": _vit(768, 12, 12, 16, 224, intermediate_size=3072, hidden_act="gelu_pytorch_tanh"),
        "text_config": _text(768, 12, 12, 256000, "gelu_pytorch_tanh"),
    },
    "ijepa_vith14_1k": _vit(1280, 32, 16, 14, 224, intermediate_size=5120, layer_norm_eps=1e-6),
    "vjepa2-vitl-fpc64-256": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "crop_size": 256,
        "tubelet_size": 2,
        "mlp_ratio": 4.0,
    },
}


# --- published models, without their weights ----------------------------------------------------------------


def published_model(name: str) -> PreTrainedModel:
    """The whole model of a checkpoint's file, a text tower or a predictor included, with random weights.

    It lies on torch's default device; under `torch.device("meta")` it takes no memory.

    Raises:
        KeyError: a name that is not in PUBLISHED.
    """
    config = AutoConfig.for_model(ENCODERS[name].model_type, **PUBLISHED[name])
    return AutoModel.from_config(config)


def published_encoder(name: str, image_size: int = SIDE) -> Encoder:
    """The image encoder of a checkpoint as load_encoder builds it, on the meta device.

    Raises:
        KeyError: a name that is not in PUBLISHED.
        ValueError: an image_size that is not a multiple of the patch size.
    """
    architecture = architecture_of(ENCODERS[name].model_type)
    assert architecture is not None, name
    sizes = PUBLISHED[name].get("vision_config", PUBLISHED[name])
    config = getattr(transformers, architecture.config_class)(**sizes, **architecture.fixed)
    # as load_encoder does; of a fused kernel the products would not be seen one by one
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = architecture.build_class()(config)
    return Encoder(model.eval().requires_grad_(False), image_size)


# --- counting -----------------------------------------------------------------------------------------------


def flop_of_a_pass(encoder: Encoder) -> int:
    """Floating-point operations of one image's forward pass: of matrix products alone, a multiply-add as two."""
    size = encoder.image_size
    image = torch.zeros(1, 3, size, size, device=encoder.weight.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # not encoder(image): autocast, which it turns off, knows no meta device
        encoder.architecture.embed(encoder.model, image)
    return counter.get_total_flops()


def counted(encoder: Encoder) -> dict[str, Any]:
    """What an encoder's sizes tell.

    Returns:
        {kind, embedding_length, null_directions: see architectures.py; weights_M: of the image encoder alone;
        GFLOP: of a forward pass; kept_GiB: what a gradient keeps, with fused attention; products: vector-Jacobian
        products of an exact score}.
    """
    weights = sum(weight.numel() for weight in encoder.parameters())
    return {
        "kind": encoder.architecture.title,
        "embedding_length": encoder.embed_dim,
        "null_directions": encoder.architecture.null_directions,
        "weights_M": round(weights / 1e6, 1),
        "GFLOP": round(flop_of_a_pass(encoder) / 1e9, 1),
        "kept_GiB": round(encoder.activation_bytes / GIB, 3),
        "products": encoder.embed_dim,
    }


def published(name: str) -> Row:
    """The row of a checkpoint on the hub; nothing of it is measured."""
    source = ENCODERS[name]
    stated = {
        "download_MB": source.megabytes,
        "licence": source.licence,
        "commercial": source.commercial,
        "gated": source.gated,
    }
    return counted(published_encoder(name)) | stated | {"scores": None, "seconds": None}


# --- measuring ----------------------------------------------------------------------------------------------


def measured(encoder: Encoder, x: Tensor) -> dict[str, float]:
    """Seconds an image: of its exact score, of its projected one and of a guided gradient that starts cold."""
    return {
        "exact": seconds_of(partial(jepa_score, encoder, x)),
        "projected": seconds_of(partial(jepa_score, encoder, x, projection=PROJECTION)),
        "gradient": seconds_of(lambda: RarityGradient()(encoder, x)),  # a new one knows no range yet
    }


def spread_of_scores(name: str, file: Path = SCORES) -> dict[str, float] | None:
    """Exact scores of varied pictures as research/costs/score.py found them, or None for an encoder it did not see."""
    figures = json.loads(file.read_text())
    if encoder_name(figures) != name:
        return None
    scores = list(figures["exact_scores"].values())
    return {
        "pictures": len(scores),
        "min": round(min(scores), 1),
        "median": round(statistics.median(scores), 1),
        "max": round(max(scores), 1),
    }


def trained(folder: Path) -> Row:
    """The row of an encoder whose weights are there."""
    encoder = load_encoder(folder, image_size=SIDE)
    stated = dict.fromkeys(("download_MB", "licence", "commercial", "gated"))
    if folder.name == dev.ENCODER_NAME:  # else nobody here knows where it came from
        megabytes = dev.ENCODER_ARCHIVE.megabytes
        stated = {"download_MB": megabytes, "licence": "MIT", "commercial": True, "gated": False}
    photo = dict(photos())[PHOTO]
    x = encoder.preprocess(photo[None])
    figures = {"scores": spread_of_scores(folder.name), "seconds": measured(encoder, x)}
    return counted(encoder) | stated | figures


def encoder_name(figures: Row) -> str:
    """The trained encoder that figures are of."""
    return figures["settings"]["encoder"].split()[0]


def table(figures: Row) -> str:
    """What each published encoder costs as a guide; blank where nothing was measured."""
    rows = []
    for name, one in figures["guides"].items():
        scores, seconds = one["scores"], one["seconds"]
        spread = times = ""
        if scores:
            spread = f"{scores['min']:.0f} to {scores['max']:.0f}, median {scores['median']:.0f}"
        if seconds:
            times = f"{seconds['exact']:.1f} exact, {seconds['projected']:.1f} projected, {seconds['gradient']:.1f} guided"
        sizes = [one["embedding_length"], one["null_directions"], f"{one['weights_M']:.1f}"]
        download = "" if one["download_MB"] is None else one["download_MB"]
        rows.append([name, *sizes, download, _licence(one), f"{one['GFLOP']:.1f}", spread, times])
    head = "guide|embedding length|null directions|encoder weights, M|download, MB|licence|GFLOP a pass|score's spread"
    return markdown([*head.split("|"), "s an image"], rows)


def _licence(row: Row) -> str:
    if row["licence"] is None:
        return ""
    restricted = "" if row["commercial"] else ", **non-commercial**"
    return row["licence"] + restricted + (", gated: by hand" if row["gated"] else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "guides.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    guides = {name: published(name) for name in ENCODERS}
    guides[options.encoder.name] = trained(options.encoder)
    # the projected score takes half precision where it is fast, and is several times slower elsewhere
    more = {"transformers": transformers.__version__, "bfloat16": has_fast_bfloat16(torch.device("cpu"))}
    record = {"settings": program.settings(parser, options, **more), "guides": guides}
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
