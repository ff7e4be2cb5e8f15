"""Ranked images with what is known of each: as lines below a picture, as CSV and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .rarity import Rarity
from .spreadsheet import csv_text

NAME_LENGTH = 28  # characters of a name on a sheet


@dataclass(frozen=True)
class RankedImage:
    """An image of a ranking.

    Attributes:
        rank: from 1; None if it is not kept. index: its position among all images.
        name: "" if none is known. value: its score or novelty. rarer_than: percent of the reference.
        quality, seed: None if none is known, as rarer_than. seed_words: what a sheet says of the seed.
    """

    rank: int | None
    index: int
    name: str
    value: float
    rarer_than: float | None
    quality: float | None
    seed: int | None
    seed_words: str

    def label(self, by: str) -> str:
        """What a sheet says below the image, the most telling first."""
        measured = f"{by} {self.value:.2f}"
        lines = [measured] if self.rarer_than is None else [f"rarer than {self.rarer_than:.0f} %"]
        lines.append(f"{self.rank}. image {self.index}")
        if self.name:
            lines.append(shortened(self.name))
        if self.rarer_than is not None:
            lines.append(measured)
        if self.quality is not None:
            lines.append(f"quality {self.quality:.4g}")
        if self.seed_words:
            lines.append(self.seed_words)
        return "\n".join(lines)


def ranked_images(
    rarity: Rarity,
    kept: Sequence[int],
    names: Sequence[str] = (),
    qualities: Sequence[float] = (),
    seeds: Sequence[int] = (),
    seed_words: Sequence[str] = (),
) -> list[RankedImage]:
    """All images: the kept ones in their order, then the others in theirs.

    Args:
        kept: indices. names, qualities, seeds, seed_words: one for each image, or none.
    """
    ranks = {index: rank for rank, index in enumerate(kept, 1)}
    rest = [index for index in range(len(rarity.values)) if index not in ranks]
    return [
        RankedImage(
            ranks.get(index),
            index,
            names[index] if names else "",
            rarity.values[index],
            rarity.rarer_than[index] if rarity.rarer_than else None,
            float(qualities[index]) if qualities else None,
            seeds[index] if seeds else None,
            seed_words[index] if seed_words else "",
        )
        for index in (*kept, *rest)
    ]


def shortened(name: str) -> str:
    """A name on one line, without its middle if it is long."""
    line = " ".join(name.split())
    if len(line) <= NAME_LENGTH:
        return line
    half = (NAME_LENGTH - 3) // 2
    return f"{line[:half]}...{line[-half:]}"


def as_csv(images: Sequence[RankedImage], by: str) -> str:
    """A line for each image under a line of names; what is not known is empty."""
    header = ("rank", "index", "name", "kept", by, "rarer_than", "quality", "seed")
    rows = (
        (
            one.rank,
            one.index,
            one.name,
            "no" if one.rank is None else "yes",
            one.value,
            one.rarer_than,
            one.quality,
            one.seed,
        )
        for one in images
    )
    return csv_text(header, rows)


def as_json(images: Sequence[RankedImage], by: str, **about: str) -> str:
    """An object with the settings and a list of the images; numbers that are not finite become null."""
    entries = [
        {
            "rank": one.rank,
            "index": one.index,
            "name": one.name or None,
            "kept": one.rank is not None,
            by: _finite(one.value),
            "rarer_than": _finite(one.rarer_than),
            "quality": _finite(one.quality),
            "seed": one.seed,
        }
        for one in images
    ]
    return json.dumps({"by": by, **about, "images": entries}, indent=1)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
