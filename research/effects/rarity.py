"""Does the JEPA score, or novelty, mean rarity, on real pictures?

    python dev.py run research/effects/rarity.py --folder WORK

Held-out drawings of the world have known frequencies: how does each criterion rank them, beside their frequency, their
distance to other drawings in the features of a network that takes no part, contrast, saturation and edges? How often does
a criterion find a drawing, or a spoiled picture, rarer than a picture of research/harness/pictures.py (AUROC)? Resumable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kornia.augmentation import RandomJigsaw
from kornia.filters import sobel
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2

from jepa_core import Encoder, jepa_score, load_encoder
from jepa_core.novelty import Nearest, embed
from jepa_core.resize import resize
from jepa_core.score import PROJECTION
from research.harness import program
from research.harness.agreement import RESAMPLES
from research.harness.pictures import gallery, photos
from research.harness.program import Row, kept
from research.harness.rarity_figures import APPEARANCE, Columns, agreement, chart, separation, tables
from research.judges.effects import REAL, Judge, has_rare_value
from research.training.pictures import Pictures
from research.world.data import load_pictures
from research.world.labels import log_frequency

PART = 24  # pictures in a file
REFERENCE = 300  # training drawings of a class
SIDE, LARGER = 112, 224  # pixels; at the second, only drawings are told from every second common picture
DRAWINGS, COMMON, EVEN = "drawings", "gallery", "drawings of equal contrast"


def spoilers(side: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to make pictures (B, 3, side, side) uint8 unusual."""
    blur, cell = side / 56, side // 4
    noise = v2.Compose(
        [v2.ToDtype(torch.float32, True), v2.GaussianNoise(sigma=0.15), v2.ToDtype(torch.uint8, True)]
    )
    jigsaw = RandomJigsaw((side // cell, side // cell), p=1)
    return {
        "blurred": v2.GaussianBlur(2 * round(3 * blur) + 1, blur),
        "noisy": noise,
        "JPEG of quality 5": lambda pictures: torch.stack([v2.JPEG(5)(one) for one in pictures]),
        "four levels a colour": v2.RandomPosterize(2, p=1),
        "patches shuffled": lambda pictures: jigsaw(pictures.float()).round().byte(),
        "colours inverted": v2.RandomInvert(p=1),
    }


def appearance(pictures: Tensor) -> dict[str, Tensor]:
    """Contrast, saturation and edges of pictures (B, 3, S, S) in [0, 1], each (B,)."""
    span = pictures.amax(1) - pictures.amin(1)
    found = pictures.flatten(1).std(1), span.flatten(1).mean(1), sobel(pictures).flatten(1).mean(1)
    return dict(zip(APPEARANCE, found, strict=True))


@dataclass(frozen=True)
class Measuring:
    """Measures pictures at a side, and keeps what it measured below a folder."""

    folder: Path
    encoder: Encoder

    def _input(self, pictures: Tensor) -> Tensor:
        return self.encoder.preprocess(pictures.movedim(1, -1))

    def _part(self, pictures: Tensor) -> Row:
        scores = [
            jepa_score(self.encoder, one, projection=PROJECTION) for one in self._input(pictures).split(4)
        ]
        return {
            "score": torch.cat(scores),
            "embedding": embed(self.encoder, self._input(pictures)),
        } | appearance(pictures)

    def __call__(self, name: str, pictures: Tensor) -> dict[str, Tensor]:
        """ "score", "embedding" and appearance of pictures (N, 3, S, S) in [0, 1]."""
        parts = []
        for number, part in enumerate(pictures.split(PART)):
            file = self.folder / str(self.encoder.image_size) / f"{name}-{number:03d}.safetensors"
            parts.append(kept(file, partial(self._part, part)))
            print(f"{self.encoder.image_size} pixels, {name}: {PART * number + len(part)}", flush=True)
        return {key: torch.cat([one[key] for one in parts]) for key in parts[0]}

    def exact(self, name: str, pictures: Tensor) -> Tensor:
        """The exact scores (N,)."""

        def score(picture: Tensor) -> Row:
            return {"score": jepa_score(self.encoder, self._input(picture[None]))}

        files = [
            self.folder / "exact" / f"{name}-{number:03d}.safetensors" for number in range(len(pictures))
        ]
        pairs = zip(files, pictures, strict=True)
        return torch.cat([kept(file, partial(score, picture))["score"] for file, picture in pairs])


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] at another size, as files would hold them."""
    return resize(pictures, (side, side)).mul(255).round().clamp(0, 255) / 255


def equal_contrast(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) whose deviation of pixels is the median of all, each about its own mean."""
    mean = pictures.mean((1, 2, 3), keepdim=True)
    deviation = pictures.std((1, 2, 3), keepdim=True)
    return mean + (pictures - mean) * deviation.median() / deviation


def novelty_of_drawings(encoder: Encoder, world: Pictures, found: Tensor, labels: Tensor) -> Tensor:
    """Novelty (N,) of embeddings (N, d) against REFERENCE training drawings of their class."""
    trained, novelty = world.trained_on(), torch.empty(len(found))
    for label in labels.unique():
        usual = trained.pixels((trained.labels == label).nonzero()[:REFERENCE, 0]).movedim(1, -1)
        points = torch.cat([embed(encoder, encoder.preprocess(some)) for some in usual.split(20)])
        novelty[labels == label] = Nearest(points)(found[labels == label])
    return novelty


def drawings(measure: Measuring, world: Pictures, count: int) -> Row:
    """How criteria rank `count` held-out drawings; the score at equal contrast, the first quarter of them."""
    unseen, rows = world.unseen(), slice(REAL, REAL + count)
    labels, attributes, pictures = unseen.labels[rows], unseen.attributes, unseen.pixels(rows)
    assert attributes is not None
    seen = resized(pictures, measure.encoder.image_size)
    found = measure(DRAWINGS, seen)
    even = measure(EVEN, equal_contrast(seen[: count // 4]))
    judge = Judge(world, measure.folder)
    columns = {name: found[name] for name in APPEARANCE} | {
        "score": -found["score"],
        "score at equal contrast": pad(-even["score"], (0, count - len(even["score"])), value=torch.nan),
        "novelty": novelty_of_drawings(measure.encoder, world, found["embedding"], labels),
        "distance": judge.judge(pictures, labels, judge.features(pictures))["distance"],
        "rarity": -log_frequency(attributes[rows]),
        "minority": has_rare_value(attributes[rows]),
    }
    numbers = {name: value.numpy().astype(np.float64) for name, value in columns.items()}
    return agreement(numbers, [world.classes[label - 1] for label in labels.tolist()])


def exactness(measure: Measuring, world: Pictures, count: int) -> Row:
    """How the exact score ranks the first `count` of the drawings, beside the projected one."""
    seen = resized(world.unseen().pixels(slice(REAL, REAL + count)), measure.encoder.image_size)
    cheap, exact = measure(DRAWINGS, seen)["score"], measure.exact(DRAWINGS, seen)
    return {"pictures": count, "spearman": round(float(spearmanr(exact, cheap)[0]), 3)}


def in_halves(found: dict[str, Tensor], common: Tensor) -> Columns:
    """What may tell pictures from common ones (N, d), whose novelty is against every second of these, not their own."""
    novelty = torch.empty(len(found["embedding"]))
    for half in (0, 1):
        novelty[half::2] = Nearest(common[1 - half :: 2])(found["embedding"][half::2])
    columns = {"score": -found["score"], "novelty": novelty, "contrast": found["contrast"]}
    return {name: value.numpy().astype(np.float64) for name, value in columns.items()}


def sets(measure: Measuring, common: Sequence[Tensor], world: Pictures, spoiled: bool) -> dict[str, Columns]:
    """What is measured of common pictures, of as many drawings, and of the same pictures spoiled."""
    side = measure.encoder.image_size
    pictures = torch.cat([resized(one.movedim(-1, 0)[None], side) for one in common])
    every = {
        COMMON: pictures,
        DRAWINGS: resized(world.unseen().pixels(slice(REAL, REAL + len(pictures))), side),
    }
    torch.manual_seed(0)
    for name, spoil in spoilers(side).items() if spoiled else ():
        every[name] = spoil(pictures.mul(255).round().byte()).float() / 255
    found = {name: measure(name, one) for name, one in every.items()}
    return {name: in_halves(one, found[COMMON]["embedding"]) for name, one in found.items()}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "rarity.json", folder=True)
    parser.add_argument("--drawings", type=int, default=600, help="held-out drawings that are ranked")
    parser.add_argument("--exact", type=int, default=0, help="of these that get an exact score too")
    parser.add_argument(
        "--larger", action="store_true", help=f"also at {LARGER} pixels, where scores take four times as long"
    )
    parser.add_argument("--world", type=Path, help="keeps the world's pictures; WORK by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    encoder = load_encoder(options.encoder)
    world = load_pictures(options.world or options.folder, 6 * REFERENCE, 2 * REAL, processes=1)
    common = [picture for _, picture in (*gallery(), *photos())]
    small, large = (Measuring(options.folder, encoder.at_size(side)) for side in (SIDE, LARGER))
    found: Row = {"drawings": drawings(small, world, options.drawings)}
    found["auroc"] = {str(SIDE): separation(sets(small, common, world, spoiled=True), COMMON)}
    if options.larger:
        found["auroc"][str(LARGER)] = separation(sets(large, common[::2], world, spoiled=False), COMMON)
    if options.exact:
        found["exact"] = exactness(small, world, options.exact)
    more = {"projection": PROJECTION, "gallery": len(common), "resamples": RESAMPLES}
    program.write(options.out, {"settings": program.settings(parser, options, **more), **found}, tables)
    chart(found, options.folder / "rarity_of_score.png")


if __name__ == "__main__":
    main()
