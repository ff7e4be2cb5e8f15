"""Compare generators of the demo world: their pictures beside real ones, by judges that took no part in training them."""

import json
from pathlib import Path

import torch
from torch import Tensor

from jepa_core.djepa import Tokenizer
from research.harness.program import Row, sha256
from research.judges.classifier import FILE, load_classifier
from research.judges.distances import EfficientNetLite0, copy_distance, frechet_distance, thumbnails
from research.training.pictures import Pictures
from research.world.data import world_id
from research.world.labels import COLUMNS, NAMES

REAL = 2000  # held-out pictures that everything is compared with
# Heading of a table -> a figure of Judges.judge.
MEASURES = {
    "recognised": "{recognised:.3f}",
    "total variation, mean": "{variation_mean:.3f}",
    "worst": "{variation_worst:.3f}",
    "Frechet": "{frechet:.1f}",
    "distance to nearest training picture, median": "{copy_median:.4f}",
    "of these below 0.01": "{copies:.0%}",
}
COPY = 0.01  # a picture that is nearer than that to one that was trained on shows the same drawing


class Judges:
    """What pictures are compared with, and by what."""

    def __init__(self, world: Pictures, folder: Path) -> None:
        """world: with more than REAL pictures held out. folder: keeps what is fetched."""
        self.world, self.folder = world, folder
        self.classifier, self.network = load_classifier(), EfficientNetLite0(folder)
        self.unseen = self.network.features(world.unseen().pixels(slice(REAL)))
        self.trained = thumbnails(world.trained_on())

    @torch.no_grad()
    def judge(self, pictures: Tensor, labels: Tensor) -> Row:
        """Figures of pictures (B, 3, 128, 128) in [0, 1] that are meant to be of these classes (B,), from 1."""
        features = torch.cat([self.classifier.features(part) for part in pictures.split(256)])
        named = self.classifier.probabilities(features).argmax(1) + 1
        distances = variations(self.classifier.values(features, labels))
        worst = max(distances, key=lambda name: distances[name])
        nearest = copy_distance(pictures, self.trained)
        found = self.network.features(pictures)
        return {
            "images": len(pictures),
            "recognised": round((named == labels).float().mean().item(), 4),
            "variation_mean": round(sum(distances.values()) / len(distances), 4),
            "variation_worst": round(distances[worst], 4),
            "worst": worst,
            "frechet": round(frechet_distance(found, self.unseen, self.folder), 2),
            "copy_median": round(nearest.median().item(), 4),
            "copies": round((nearest < COPY).float().mean().item(), 4),
        }

    @torch.no_grad()
    def real(self, count: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
        """Held-out pictures (B, 3, 128, 128) in [0, 1] other than the REAL ones, the same through the tokenizer, labels."""
        part = slice(REAL, REAL + count)
        real, labels = self.world.unseen().pixels(part), self.world.unseen().labels[part]
        through = [tokenizer.decode(tokenizer.encode(some * 2 - 1)) for some in real.split(64)]
        return real, torch.cat(through).add(1).div(2).clamp(0, 1), labels


class Comparison:
    """The rows of a comparison, kept in its file: those that were made of another world or by other judges are dropped.

    rows: name -> figures.
    """

    def __init__(self, out: Path, judges: Judges, tokenizer: Path, count: int) -> None:
        """count: pictures in a row. tokenizer: the file that generators decode with."""
        self.judges = judges
        self.identity: Row = {"world": world_id(128), "tokenizer": sha256(tokenizer), "judge": sha256(FILE)}
        self.identity["images"] = count
        found = json.loads(out.read_text()) if out.exists() else {}
        self.rows: dict[str, Row] = found["rows"] if found.get("compared") == self.identity else {}

    def add(self, name: str, pictures: Tensor, labels: Tensor, more: Row) -> None:
        """Judge pictures (B, 3, 128, 128) in [0, 1] of classes (B,); more: other figures of the row."""
        self.rows[name] = more | self.judges.judge(pictures, labels)
        print(name, json.dumps(self.rows[name]), flush=True)

    def add_real(self, tokenizer: Tokenizer) -> None:
        """The rows of held-out pictures, and of the same through the tokenizer, unless they are there."""
        if "real" not in self.rows:
            real, through, labels = self.judges.real(self.identity["images"], tokenizer)
            self.add("real", real, labels, {})
            self.add("tokenizer", through, labels, {})

    def record(self) -> Row:
        """What the file keeps."""
        return {"compared": self.identity, "rows": self.rows}


def variations(attributes: Tensor) -> dict[str, float]:
    """Total variation distance between the values seen (N, A) and the written frequencies, of each attribute; 0 to 1."""
    found = {}
    for name, column, (_, described) in zip(NAMES, attributes.T, COLUMNS, strict=True):
        values = column[column >= 0]
        seen = values.bincount(minlength=len(described.shares)) / len(values)
        found[name] = (seen - torch.tensor(described.shares)).abs().sum().item() / 2
    return found
