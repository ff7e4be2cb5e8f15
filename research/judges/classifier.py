"""The network that names classes and attributes of pictures of the demo world; it takes no part in guidance."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from research.world.labels import CLASSES, COLUMNS

HERE = Path(__file__).absolute().parent
FILE = HERE / "classifier128.safetensors"
WIDTHS = (32, 64, 128, 160)
SIZES = [len(found.values) for _, found in COLUMNS]


class Classifier(nn.Module):
    """A small convolutional network with a head for the class and one for each attribute.

    Pictures are (B, 3, 128, 128) in [0, 1]. Classes count from 1; attributes are columns of research.world.labels.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.PixelUnshuffle(2)]
        before = 12
        for width in WIDTHS:
            for channels in (before, width):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                blocks += [convolution, nn.GroupNorm(8, width), nn.SiLU()]
            blocks.append(nn.MaxPool2d(2))
            before = width
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Linear(before, len(CLASSES))
        self.attributes = nn.Linear(before, sum(SIZES))

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 160), the mean over the last 4 x 4 map."""
        return self.trunk(pixels * 2 - 1).mean((2, 3))

    def loss(self, pixels: Tensor, labels: Tensor, attributes: Tensor) -> Tensor:
        """Cross entropy of the class, plus the mean cross entropy of the attributes that pictures of the class have.

        Args:
            labels: (B,) from 1. attributes: (B, A), -1 where a picture has no such attribute.
        """
        features = self.features(pixels)
        found = F.cross_entropy(self.head(features), labels - 1)
        parts = zip(self.attributes(features).split(SIZES, 1), attributes.T, strict=True)
        each = torch.stack(
            [F.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum") for logits, wanted in parts]
        )
        return found + each.sum() / (attributes >= 0).sum()

    def probabilities(self, features: Tensor) -> Tensor:
        """(B, classes), of each class, from features."""
        return self.head(features).softmax(1)

    def values(self, features: Tensor, labels: Tensor) -> Tensor:
        """The attributes (B, A) of pictures of these classes, from features; -1 where a class has no such attribute."""
        logits = self.attributes(features).split(SIZES, 1)
        found = torch.stack([part.argmax(1) for part in logits], 1)
        owners = torch.tensor([number for number, _ in COLUMNS])
        return found.where(owners == labels[:, None], -1)


def save_classifier(model: Classifier, file: Path, notes: dict[str, str]) -> None:
    """Write half-precision weights. notes: more of the header."""
    tensors = {name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(tensors, file, metadata={"attributes": attributes_id()} | notes)


def load_classifier(file: Path = FILE) -> Classifier:
    """Load the committed classifier in float32, for evaluation. Raises ValueError if it is of another world."""
    with safe_open(file, framework="pt") as content:
        known = content.metadata()["attributes"]
    if known != attributes_id():
        raise ValueError(
            f"{file.name} names attributes of another world; train it again with research/judges/train.py"
        )
    model = Classifier()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return model.eval().requires_grad_(False)


def attributes_id() -> str:
    """What the heads' outputs stand for."""
    return json.dumps([[CLASSES[number - 1], found.name, *found.values] for number, found in COLUMNS])
