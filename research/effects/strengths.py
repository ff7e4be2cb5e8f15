"""What each strength does to the pictures of the demo generator: a sheet and figures for each gradient path.

    python dev.py run research/effects/strengths.py [--seeds N] [--strengths S ...] [--out FOLDER]

All else is the node's default, with 20 Euler steps and CFG 2. The noise of a seed is the same in every column. A caption
says the picture's JEPA score of 48 fixed outputs under the encoder that guides (lower is rarer) and the mean absolute
change of a pixel from strength 0, of 255. The sheets are PNG files, the figures are in strengths.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from research.effects.evaluate import ROOT, Row, Sampler, class_of, encoder_identity, node_inputs, pack_module
from research.harness.sheet import contact_sheet

STEPS = 20
STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
SIDE = 128  # of a picture on the sheet
PATHS = ("denoiser constant", "through denoiser")


def guided_model(sampler: Sampler, path: str, strength: float) -> Any:
    """The demo generator's MODEL as the node at its defaults guides it, or the stock one at strength 0."""
    if strength == 0:
        return sampler.model
    inputs = pack_module("nodes.guidance_inputs")
    settings = node_inputs() | {"gradient_path": path, "strength": strength}
    chain = inputs.chain_of(settings | {"vae": sampler.vae, "encoder": sampler.encoder})
    return sampler.guidance.apply_guidance(sampler.model, schedule=inputs.schedule_of(settings), **chain)


def row_of(
    sampler: Sampler, path: str, seed: int, strengths: Sequence[float]
) -> tuple[list[Row], list[Tensor]]:
    """One seed at every strength: its figures, and its pictures (H, W, 3) in [0, 1]."""
    score_images = pack_module("host.scoring.scores.scores").score_images
    projection = pack_module("jepa_core.score").PROJECTION
    plain = sampler.sample(sampler.model, seed, STEPS)
    rows, pictures = [], []
    for strength in strengths:
        begun = time.perf_counter()
        picture = sampler.sample(guided_model(sampler, path, strength), seed, STEPS)
        seconds = time.perf_counter() - begun
        (score,) = score_images(picture[None], sampler.encoder, projection=projection)[0]
        rows.append(
            {
                "path": path,
                "seed": seed,
                "class": class_of(seed, sampler.demo.demo_classes()),
                "strength": strength,
                "score": round(score, 3),
                "pixel_change": round((picture - plain).abs().mean().item() * 255, 3),
                "seconds": round(seconds, 2),
            }
        )
        pictures.append(picture)
    return rows, pictures


def draw(path: str, rows: Sequence[Sequence[Row]], pictures: Sequence[Sequence[Tensor]]) -> Image.Image:
    """The sheet of a path: a row for each seed, a column for each strength."""
    return contact_sheet(
        f"Strength from left to right, {path}",
        [f"{row[0]['class']}\nseed {row[0]['seed']}" for row in rows],
        [[to_pil_image(picture.movedim(-1, 0)) for picture in line] for line in pictures],
        [[f"score {one['score']:.1f}\nchange {one['pixel_change']:.1f}" for one in row] for row in rows],
        [f"{one['strength']:+g}" for one in rows[0]],
        side=SIDE,
        notes=[
            "score: JEPA score of 48 fixed outputs under the encoder that guides; lower is rarer. "
            "change: mean absolute change of a pixel from strength 0, of 255.",
        ],
    )


def means(rows: Sequence[Row]) -> dict[str, Row]:
    """{strength: mean score, its change from strength 0, mean pixel change} over seeds."""
    found: dict[str, Row] = {}
    for strength in dict.fromkeys(row["strength"] for row in rows):
        some = [row for row in rows if row["strength"] == strength]
        found[f"{strength:g}"] = {
            name: round(statistics.fmean(row[name] for row in some), 3) for name in ("score", "pixel_change")
        }
    for one in found.values():
        if "0" in found:
            one["score_change"] = round(one["score"] - found["0"]["score"], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "output", help="folder for what is made")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    sampler = Sampler(options.encoder, power_iterations=2)
    options.out.mkdir(parents=True, exist_ok=True)
    record: Row = {
        "settings": {
            "command": "python dev.py run research/effects/strengths.py",
            "steps": STEPS,
            "inputs": node_inputs(),
            "encoder": encoder_identity(options.encoder),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "processor",
        },
        "means": {},
        "images": [],
    }
    for path in options.paths:
        rows, pictures = [], []
        for seed in range(options.seeds):
            row, line = row_of(sampler, path, seed, options.strengths)
            rows.append(row)
            pictures.append(line)
            print(path, row[0]["class"], [(one["strength"], one["score"]) for one in row], flush=True)
        record["images"] += [one for row in rows for one in row]
        record["means"][path] = means([one for row in rows for one in row])
        draw(path, rows, pictures).save(
            options.out / f"strengths-{path.replace(' ', '-')}.png", optimize=True
        )
    (options.out / "strengths.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["means"], indent=1))


if __name__ == "__main__":
    main()
