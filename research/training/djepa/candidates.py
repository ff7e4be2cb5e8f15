"""Can the JEPA score choose tokens? Redrawing parts of the rarest image against drawing as many whole ones.

    python dev.py run research/training/djepa/candidates.py --folder WORK

For each of a few images, three ways of spending the same twelve draws and scores, whose rarest image is kept:

    first      one draw, no score
    best       twelve whole images
    redrawn    four whole images; then twice four images in which a random half of the rarest one's tokens is redrawn

The guide scores at 112 pixels; images are judged by its score at 224 and by what research/judges say. Figures go
to candidates.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from torch import Tensor

from jepa_core import Encoder, jepa_score, load_encoder
from jepa_core.djepa import LoadedDJEPA, load_djepa, sample_tokens, to_latents
from research.judges.measures import judge, load_bank, load_classifier, mean_and_error

HERE = Path(__file__).resolve().parent
SETTINGS = {"steps": 16, "denoising_steps": 25, "cfg": 2.0}
CANDIDATES, ROUNDS, KEPT = 4, 3, 0.5
OUTPUTS = 48


def pixels_of(loaded: LoadedDJEPA, tokens: Tensor) -> Tensor:
    """(B, 3, 64, 64) in [0, 1]."""
    assert loaded.tokenizer is not None
    return loaded.tokenizer.decode(to_latents(tokens, 1)).add(1).div(2).clamp(0, 1)


def scores_of(encoder: Encoder, pixels: Tensor) -> list[float]:
    """The projected score of each image."""
    inputs = (encoder.preprocess(one.movedim(1, -1)) for one in pixels.split(1))
    return [jepa_score(encoder, x, projection=OUTPUTS).item() for x in inputs]


def rarest(loaded: LoadedDJEPA, guide: Encoder, label: int, seed: int, *, redraw: bool) -> Tensor:
    """The tokens (1, N, w) of the image with the lowest score of all that were drawn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((CANDIDATES,), label)
    best, lowest = None, float("inf")
    for turn in range(ROUNDS):
        seeds = [10_000 * seed + 100 * turn + candidate for candidate in range(CANDIDATES)]
        known, given = None, None
        if redraw and best is not None:
            order = torch.randperm(loaded.model.config.tokens, generator=generator)
            known = order < KEPT * len(order)
            given = best.expand(CANDIDATES, -1, -1)
        tokens = sample_tokens(loaded.model, labels, seeds, **SETTINGS, given=given, known=known)
        scores = scores_of(guide, pixels_of(loaded, tokens))
        if min(scores) < lowest:
            lowest = min(scores)
            best = tokens[scores.index(lowest)][None]
    assert best is not None
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the images go")
    parser.add_argument("--images", type=int, default=21)
    options = parser.parse_args()
    loaded = load_djepa(HERE.parents[2] / "assets" / "djepa64.safetensors")
    path = Path(os.environ["JEPA_ENCODER"])
    guide, eye = load_encoder(path, image_size=112), load_encoder(path, image_size=224)
    bank, classifier = load_bank(), load_classifier()
    rows: dict[str, dict[str, list[float]]] = {}
    for image in range(options.images):
        label = image % loaded.model.config.classes
        ways = {
            "first": sample_tokens(loaded.model, torch.tensor([label]), [10_000 * image], **SETTINGS),
            "best": rarest(loaded, guide, label, image, redraw=False),
            "redrawn": rarest(loaded, guide, label, image, redraw=True),
        }
        for way, tokens in ways.items():
            pixels = pixels_of(loaded, tokens)
            found = judge(pixels, torch.tensor([label + 1]), bank, classifier, None)
            found["guide_score"] = torch.tensor(scores_of(guide, pixels))
            found["score"] = torch.tensor(scores_of(eye, pixels))
            for name, value in found.items():
                rows.setdefault(way, {}).setdefault(name, []).append(value.item())
        print(
            image,
            {way: round(statistics.fmean(found["score"]), 2) for way, found in rows.items()},
            flush=True,
        )
    table = {
        way: {name: mean_and_error(values) for name, values in found.items()} for way, found in rows.items()
    }
    for name in ("guide_score", "score", "rarity_classifier"):
        pairs = zip(rows["redrawn"][name], rows["best"][name], strict=True)
        table["redrawn"][f"{name}_minus_best"] = mean_and_error([a - b for a, b in pairs])
    record = {"settings": SETTINGS, "images": options.images, "outputs": OUTPUTS, "table": table}
    (HERE / "candidates.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
