"""Is a generated emoji rare, copied or unrecognisable, by measures that share nothing with the guidance?

None of them is a Jacobian, and most use another network. For images (B, 3, 64, 64) in [0, 1]:

    rarity_classifier  distance to the 5 nearest training images in the feature space of a small classifier
                       that was trained separately on the same emoji (research/judges/train.py)
    rarity_encoder     the same in the embedding space of the guiding encoder
    copy_distance      root mean square pixel difference to the nearest training image, mirrored or not, at
                       32 x 32: near 0 is a memorised image
    recognised         whether the classifier names the class that was asked for
    confidence         its probability of that class

The training images' embeddings and 32 x 32 thumbnails are beside this file, made by research/judges/train.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

HERE = Path(__file__).absolute().parent
CLASSIFIER_FILE = HERE / "classifier64.safetensors"
NEIGHBOURS = 5
THUMBNAIL = 32  # pixels
CLASS_COUNT = 7

Embed = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """A small convolutional classifier of 64 x 64 emoji; class c of the generator is its output c - 1."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 3
        for width in widths:
            for channels in (before, width):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                blocks += [convolution, nn.GroupNorm(8, width), nn.SiLU()]
            blocks.append(nn.MaxPool2d(2))
            before = width
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Linear(before, CLASS_COUNT)

    def features(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, 64, 64) in [0, 1] -> (B, 128), the mean over the last 4 x 4 map."""
        return self.trunk(pixels * 2 - 1).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, 64, 64) in [0, 1] -> logits (B, 7)."""
        return self.head(self.features(pixels))


class Bank(NamedTuple):
    """What is known of the real images: embeddings (N, 384) and features (N, 128), thumbnails (N, 3, 32, 32) in [0, 1],
    labels (N,) in 1..7, and whether nothing was trained on an image. encoder_name has the encoder's sha256.
    """

    encoder: Tensor
    classifier: Tensor
    thumbnails: Tensor
    labels: Tensor
    held_out: Tensor
    encoder_name: str


def load_classifier(file: Path = CLASSIFIER_FILE) -> Classifier:
    """Load the committed classifier in float32, for evaluation."""
    model = Classifier()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return model.eval().requires_grad_(False)


def load_bank() -> Bank:
    """Load the committed bank of real images."""
    with safe_open(HERE / "bank.safetensors", framework="pt") as content:
        encoder, classifier = (content.get_tensor(name).float() for name in ("encoder", "classifier"))
        labels, held_out = content.get_tensor("labels").long(), content.get_tensor("held_out")
        encoder_name = content.metadata()["encoder"]
    with Image.open(HERE / "thumbnails.webp") as sheet:
        thumbnails = untile(pil_to_tensor(sheet.convert("RGB")).float() / 255)[: len(labels)]
    return Bank(encoder, classifier, thumbnails, labels, held_out, encoder_name)


def untile(sheet: Tensor) -> Tensor:
    """The thumbnails (N, 3, 32, 32) of a sheet (3, H, W), row by row, white ones at the end included."""
    tiles = sheet.unfold(1, THUMBNAIL, THUMBNAIL).unfold(2, THUMBNAIL, THUMBNAIL)
    return tiles.flatten(1, 2).movedim(0, 1)


def neighbour_distance(query: Tensor, bank: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Mean distance of each query to its nearest bank rows, both scaled to length 1; 0 to 2, larger is rarer.

    query (B, d), bank (N, d) -> (B,)
    """
    distance = torch.cdist(F.normalize(query.float()), F.normalize(bank.float()))
    return distance.topk(neighbours, largest=False).values.mean(1)


def copy_distance(images: Tensor, thumbnails: Tensor) -> Tensor:
    """Root mean square difference to the nearest thumbnail, mirrored or not; 0 to 1.

    images (B, 3, H, W) with H and W multiples of 32, thumbnails (N, 3, 32, 32), all in [0, 1] -> (B,)
    """
    small = F.adaptive_avg_pool2d(images.float(), THUMBNAIL)
    both = torch.cat([thumbnails, thumbnails.flip(-1)]).flatten(1)
    return torch.cdist(small.flatten(1), both).amin(1) / both.shape[1] ** 0.5


def judge(
    images: Tensor, labels: Tensor, bank: Bank, classifier: Classifier, embed: Embed | None
) -> dict[str, Tensor]:
    """All measures of images (B, 3, 64, 64) in [0, 1], each (B,) float32; see the top of this file.

    Args:
        labels: (B,), the class that was asked for, 1..7.
        embed: images like these -> (B, 384), under the bank's encoder; None leaves rarity_encoder out.
    """
    with torch.no_grad():
        features = classifier.features(images.float())
        embeddings = None if embed is None else embed(images)
    return _measures(images, features, embeddings, labels, bank, classifier)


def judge_held_out(bank: Bank, classifier: Classifier) -> dict[str, float]:
    """The means of the same measures over the real images that nothing was trained on, for comparison."""
    held = bank.held_out
    rows = (bank.thumbnails[held], bank.classifier[held], bank.encoder[held], bank.labels[held])
    return {name: value.mean().item() for name, value in _measures(*rows, bank, classifier).items()}


def _measures(
    images: Tensor,
    features: Tensor,
    embeddings: Tensor | None,
    labels: Tensor,
    bank: Bank,
    classifier: Classifier,
) -> dict[str, Tensor]:
    trained, asked = ~bank.held_out, labels - 1
    with torch.no_grad():
        probability = classifier.head(features).softmax(1)
    found = {
        "rarity_classifier": neighbour_distance(features, bank.classifier[trained]),
        "copy_distance": copy_distance(images, bank.thumbnails[trained]),
        "recognised": (probability.argmax(1) == asked).float(),
        "confidence": probability.gather(1, asked[:, None])[:, 0],
    }
    if embeddings is not None:
        found["rarity_encoder"] = neighbour_distance(embeddings, bank.encoder[trained])
    return found
