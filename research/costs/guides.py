"""What does each published encoder cost as a guide, counted from its sizes, and what does the trained one here take?

    python dev.py run research/costs/guides.py

Weights, operations and kept activations are counted on meta tensors for every checkpoint of jepa_core/hub.py, from
what its config.json says about sizes (published.json; the rest is what transformers takes by default). Seconds and
scores need trained weights: they are there for the one encoder that dev.py can bring, and null for the others. Some
nine minutes on one core, most of them three exact scores.
"""

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

from jepa_core import Encoder, RarityGradient, has_fast_bfloat16, jepa_score, load_encoder
from jepa_core.architectures import architecture_of
from jepa_core.encoder import PLAIN_ATTENTION, register_attention
from jepa_core.hub import ENCODERS
from jepa_core.score import PROJECTION
from research.harness import program
from research.harness.pictures import photos
from research.harness.program import Row, markdown
from research.harness.timing import GIB, seconds_of
from tools.environment import pinned

SIDE = 224
PHOTO = "astronaut"
PUBLISHED: dict[str, Row] = json.loads((Path(__file__).parent / "published.json").read_text())


def published_model(name: str) -> PreTrainedModel:
    """The whole model of a checkpoint's file, a text tower or a predictor included, with random weights.

    Under `torch.device("meta")` it takes no memory.
    """
    config = AutoConfig.for_model(ENCODERS[name].model_type, **PUBLISHED[name])
    return AutoModel.from_config(config)


def published_encoder(name: str) -> Encoder:
    """The image encoder of a checkpoint as load_encoder builds it, on the meta device."""
    architecture = architecture_of(ENCODERS[name].model_type)
    assert architecture is not None, name
    sizes = PUBLISHED[name].get("vision_config", PUBLISHED[name])
    config = getattr(transformers, architecture.config_class)(**sizes, **architecture.fixed)
    # as load_encoder does; of a fused kernel the products would not be seen one by one
    register_attention()
    config._attn_implementation = PLAIN_ATTENTION
    with torch.device("meta"):
        model = architecture.build_class()(config)
    return Encoder(model.eval().requires_grad_(False), SIDE)


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

    Weights are of the image encoder alone, GFLOP of a forward pass, kept_GiB what a gradient keeps with fused attention,
    products the vector-Jacobian products of an exact score.
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
    stated = {name: getattr(source, name) for name in ("licence", "commercial", "gated")}
    unknown = {"scores": None, "seconds": None}
    return counted(published_encoder(name)) | {"download_MB": source.megabytes} | stated | unknown


def measured(encoder: Encoder, x: Tensor) -> dict[str, float]:
    """Seconds an image: of its exact score, of its projected one and of a guided gradient that starts cold."""
    return {
        "exact": seconds_of(partial(jepa_score, encoder, x)),
        "projected": seconds_of(partial(jepa_score, encoder, x, projection=PROJECTION)),
        "gradient": seconds_of(lambda: RarityGradient()(encoder, x)),  # a new one knows no range yet
    }


def spread_of_scores(name: str) -> dict[str, float] | None:
    """Exact scores of varied pictures as research/costs/score.py found them, or None for an encoder it did not see."""
    figures = json.loads((program.FIGURES / "score.json").read_text())
    if encoder_name(figures) != name:
        return None
    scores = figures["exact_scores"].values()
    found = {"min": min(scores), "median": statistics.median(scores), "max": max(scores)}
    return {"pictures": len(scores)} | {name: round(value, 1) for name, value in found.items()}


def trained(folder: Path) -> Row:
    """The row of an encoder whose weights are there."""
    encoder = load_encoder(folder, image_size=SIDE)
    stated = dict.fromkeys(("download_MB", "licence", "commercial", "gated"))
    if folder.name == pinned.ENCODER_NAME:  # else nobody here knows where it came from
        megabytes = pinned.ENCODER_ARCHIVE.megabytes
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
    columns = {
        "guide": "{name}",
        "embedding length": "{embedding_length}",
        "null directions": "{null_directions}",
        "encoder weights, M": "{weights_M:.1f}",
        "download, MB": "{download_MB:d}",
        "licence": "{terms}",
        "GFLOP a pass": "{GFLOP:.1f}",
        "score's spread": "{scores[min]:.0f} to {scores[max]:.0f}, median {scores[median]:.0f}",
        "s an image": "{seconds[exact]:.1f} exact, {seconds[projected]:.1f} projected, {seconds[gradient]:.1f} guided",
    }
    rows = [{"name": name, "terms": _terms(one), **one} for name, one in figures["guides"].items()]
    return markdown(columns, rows)


def _terms(row: Row) -> str:
    restricted = "" if row["commercial"] else ", **non-commercial**"
    return (
        f"{row['licence']}{restricted}{', gated: by hand' if row['gated'] else ''}" if row["licence"] else ""
    )


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
