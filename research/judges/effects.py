"""What a judge that did not guide sees in pictures of the demo world; see Judge for the measures."""

from pathlib import Path

import torch
from torch import Tensor

from research.harness.program import Row, kept
from research.judges.classifier import load_classifier
from research.judges.distances import EfficientNetLite0
from research.training.pictures import Pictures
from research.world.data import world_id
from research.world.labels import COLUMNS, tail

REAL = 2000  # held-out pictures that everything is compared with
NEIGHBOURS = 5
MINORITY = 0.05  # the share of its class that a rare value of an attribute has at most


class Judge:
    """Measures of pictures, each a number for a picture:

    distance    mean distance to the 5 nearest of 2 000 held-out pictures in EfficientNet-Lite0's features
    precise     whether it lies within the distance from some held-out picture to its 5th nearest other (arXiv 1904.06991)
    contrast    standard deviation of its pixels
    saturation  mean of the largest minus the smallest of red, green and blue
    recognised  whether a classifier of the world names the class that was asked for
    minority    whether it shows a value of an attribute that at most a twentieth of its class has
    tail        the share of all pictures of its class that are as rare or rarer
    """

    def __init__(self, world: Pictures, folder: Path) -> None:
        """world: with at least REAL pictures held out. folder: keeps what is fetched."""
        self.classifier, self.network = load_classifier(), EfficientNetLite0(folder)
        unseen = world.unseen()

        def real() -> Row:
            return {"features": self.network.features(unseen.pixels(slice(REAL)))}

        self.real = kept(folder / f"judged-{world_id(128)}.safetensors", real)["features"]
        nearest = torch.cdist(self.real, self.real).topk(NEIGHBOURS + 1, largest=False).values
        self.radius = nearest[:, -1]
        self.real_pictures = unseen.pixels(slice(REAL, 2 * REAL)), unseen.labels[REAL : 2 * REAL]

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Of pictures (B, 3, 128, 128) in [0, 1]: (B, 1280)."""
        return self.network.features(pictures)

    @torch.no_grad()
    def judge(self, pictures: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Measures of pictures (B, 3, 128, 128) in [0, 1] that are meant to be of classes (B,) from 1; each (B,) float32."""
        distances = torch.cdist(features, self.real)
        own = self.classifier.features(pictures)
        attributes = self.classifier.values(own, labels)
        span = pictures.amax(1) - pictures.amin(1)
        found = {
            "distance": distances.topk(NEIGHBOURS, largest=False).values.mean(1),
            "precise": (distances < self.radius).any(1),
            "contrast": pictures.flatten(1).std(1),
            "saturation": span.flatten(1).mean(1),
            "recognised": self.classifier.probabilities(own).argmax(1) + 1 == labels,
            "minority": has_rare_value(attributes),
            "tail": tail(labels, attributes),
        }
        return {name: value.float() for name, value in found.items()}


def has_rare_value(attributes: Tensor) -> Tensor:
    """Whether rows (N, A) show a value whose share of its class is at most MINORITY: (N,) bool."""
    found = torch.zeros(len(attributes), dtype=torch.bool)
    for column, (_, described) in zip(attributes.T, COLUMNS, strict=True):
        rare = torch.tensor([share <= MINORITY for share in described.shares] + [False])
        found |= rare[column]  # -1 is the last
    return found


def vendi(features: Tensor) -> float:
    """The Vendi score (arXiv 2210.02410) of features (n, d), by cosine: 1 if all are the same, n if all are orthogonal."""
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    values = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp(min=1e-15)
    return float((-(values * values.log()).sum()).exp())
