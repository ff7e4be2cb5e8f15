"""How far embeddings of altered copies lie from their picture, and how near those of different pictures: for the default
distance of near-duplicates (jepa_core/duplicates.py).

    python dev.py run research/effects/duplicates.py

Takes the first pictures of the world's held-out split, which differ in single features, and the photos of scikit-image.
Prints JSON: quantiles of 1 - cosine.
"""

import argparse
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from jepa_core import Encoder, load_encoder
from research.harness.pictures import photos
from research.world import data
from tools.environment.components import cache_folder

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def cropped(picture: Image.Image, share: float) -> Image.Image:
    """Without this share of its width and height, half of it at each side."""
    across, down = round(picture.width * share / 2), round(picture.height * share / 2)
    return picture.crop((across, down, picture.width - across, picture.height - down))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 90": lambda one: as_jpeg(one, 90),
    "JPEG 50": lambda one: as_jpeg(one, 50),
    "half size": lambda one: one.resize((one.width // 2, one.height // 2), Image.Resampling.LANCZOS),
    "cropped by 5 %": lambda one: cropped(one, 0.05),
    "cropped by 20 %": lambda one: cropped(one, 0.2),
    "mirrored": ImageOps.mirror,
}


@torch.no_grad()
def embeddings(encoder: Encoder, shown: list[Image.Image]) -> Tensor:
    """Of length 1, (N, d)."""
    found = []
    for picture in shown:
        pixels = pil_to_tensor(picture.convert("RGB")).movedim(0, -1).float()[None] / 255
        found.append(encoder(encoder.preprocess(pixels))[0])
    return torch.nn.functional.normalize(torch.stack(found), dim=1)


def measure(encoder: Encoder, shown: list[Image.Image]) -> dict[str, list[float]]:
    """Quantiles of the distance, for each kind of altered copy and from each picture to the nearest other."""
    plain = embeddings(encoder, shown)
    between = 1 - plain @ plain.T
    between.fill_diagonal_(torch.inf)
    distances = {"nearest other picture": between.amin(1)}
    for name, alter in ALTERED.items():
        copies = embeddings(encoder, [alter(one) for one in shown])
        distances[name] = 1 - (plain * copies).sum(1)
    levels = torch.tensor(QUANTILES)
    return {
        name: [round(one, 5) for one in found.quantile(levels).tolist()] for name, found in distances.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--side", type=int, default=128)
    options = parser.parse_args()
    folder = cache_folder(os.environ, "", Path.home()) / "world"
    data.make(folder, "held_out", options.count, options.side)
    world = [to_pil_image(one) for one in data.read(folder, "held_out", options.count, options.side)]
    real = [to_pil_image(one.movedim(-1, 0)) for _, one in photos()]
    encoder = load_encoder(Path(os.environ["JEPA_ENCODER"]))
    print(
        json.dumps(
            {"quantiles": QUANTILES, "world": measure(encoder, world), "photos": measure(encoder, real)},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
