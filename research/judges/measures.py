"""Is a picture of the demo world rare, and still what was asked for, by measures other than the score that guides?

None of them uses a Jacobian, and most use another network. For images (B, 3, 128, 128) in [0, 1]:

    rarity_world       how rare the picture is in the world that the generator learned: minus the natural logarithm of
                       the frequency of its attributes, as the classifier reads them (research/world/classes.py)
    tail               the same as a share: of all pictures of the class, those that are as rare or rarer; 0 to 1
    rarity_classifier  distance to the 5 nearest training images in the feature space of a small classifier that was
                       trained separately on the same world (research/judges/train.py)
    rarity_encoder     the same in the embedding space of the guiding encoder
    recognised         whether the classifier names the class that was asked for
    confidence         its probability of that class

The embeddings of some real images are beside this file, made by research/judges/train.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from research.judges.classifier import HERE, Classifier
from research.world.labels import log_frequency, tail

BANK = HERE / "bank.safetensors"
NEIGHBOURS = 5

Embed = Callable[[Tensor], Tensor]


class Bank(NamedTuple):
    """What is known of some real images: embeddings (N, 384) and features (N, 160), labels (N,) from 1, and whether nothing
    was trained on an image. encoder_name has the encoder's sha256; image_size is what it saw, in pixels.
    """

    encoder: Tensor
    classifier: Tensor
    labels: Tensor
    held_out: Tensor
    encoder_name: str
    image_size: int


def load_bank() -> Bank:
    """Load the committed bank of real images."""
    with safe_open(BANK, framework="pt") as content:
        encoder, classifier = (content.get_tensor(name).float() for name in ("encoder", "classifier"))
        labels, held_out = content.get_tensor("labels").long(), content.get_tensor("held_out")
        header = content.metadata()
    return Bank(encoder, classifier, labels, held_out, header["encoder"], int(header["image_size"]))


def neighbour_distance(query: Tensor, bank: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Mean distance of each query to its nearest bank rows, both scaled to length 1; 0 to 2, larger is rarer.

    query (B, d), bank (N, d) -> (B,)
    """
    distance = torch.cdist(F.normalize(query.float()), F.normalize(bank.float()))
    return distance.topk(neighbours, largest=False).values.mean(1)


class Reading(NamedTuple):
    """What the classifier reads in B pictures: their classes (B,) from 1, their attributes (B, A) as columns of
    research.world.labels, and of all pictures of the class that was asked for the share that are as rare or rarer (B,).
    """

    named: Tensor
    attributes: Tensor
    tail: Tensor


@torch.no_grad()
def read(images: Tensor, labels: Tensor, classifier: Classifier) -> Reading:
    """What images (B, 3, 128, 128) in [0, 1] show that are meant to be of the classes `labels` (B,)."""
    features = classifier.features(images.float())
    attributes = classifier.values(features, labels)
    return Reading(classifier.probabilities(features).argmax(1) + 1, attributes, tail(labels, attributes))


def judge(
    images: Tensor, labels: Tensor, bank: Bank, classifier: Classifier, embed: Embed | None
) -> dict[str, Tensor]:
    """All measures of images (B, 3, 128, 128) in [0, 1], each (B,) float32; see the top of this file.

    Args:
        labels: (B,), the class that was asked for, from 1.
        embed: images like these -> (B, 384), under the bank's encoder; None leaves rarity_encoder out.
    """
    with torch.no_grad():
        features = classifier.features(images.float())
        embeddings = None if embed is None else embed(images)
    return _measures(features, embeddings, labels, bank, classifier)


def judge_held_out(bank: Bank, classifier: Classifier) -> dict[str, float]:
    """The means of the same measures over the real images that nothing was trained on, for comparison."""
    held = bank.held_out
    found = _measures(bank.classifier[held], bank.encoder[held], bank.labels[held], bank, classifier)
    return {name: value.mean().item() for name, value in found.items()}


@torch.no_grad()
def _measures(
    features: Tensor, embeddings: Tensor | None, labels: Tensor, bank: Bank, classifier: Classifier
) -> dict[str, Tensor]:
    trained = ~bank.held_out
    probability = classifier.probabilities(features)
    attributes = classifier.values(features, labels)
    found = {
        "rarity_world": -log_frequency(attributes).float(),
        "tail": tail(labels, attributes).float(),
        "rarity_classifier": neighbour_distance(features, bank.classifier[trained]),
        "recognised": (probability.argmax(1) + 1 == labels).float(),
        "confidence": probability.gather(1, labels[:, None] - 1)[:, 0],
    }
    if embeddings is not None:
        found["rarity_encoder"] = neighbour_distance(embeddings, bank.encoder[trained])
    return found
