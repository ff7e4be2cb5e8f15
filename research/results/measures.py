"""What is measured of each picture of an arm, kept beside the pictures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import kornia
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_contrast, adjust_saturation

from jepa_core import jepa_score
from jepa_core.novelty import Nearest
from jepa_core.score import PROJECTION
from research.harness.batches import REAL, Study
from research.harness.images import UNGUIDED
from research.harness.program import Row, kept
from research.judges.distances import copy_distance, thumbnails
from research.judges.effects import Judge, vendi
from research.results.arms import MATCHED
from research.results.sets import spatial_features

SCORED = 8  # pictures of the first batch of each class that are scored, which takes most of the time
GROUP = 4  # pictures whose diversity is taken together
TENSORS = ("features", "spatial", "attributes")
PER_PICTURE = (
    "distance",
    "minority",
    "tail",
    "recognised",
    "confidence",
    "precise",
    "copy",
    "novelty",
    "score",
    "contrast",
    "saturation",
    "edges",
)


@dataclass
class Measures:
    """Measures of a study's pictures.

    Attributes:
        place: keeps what the judge fetches.
    """

    study: Study
    place: Path
    _usual: dict[str, Nearest] = field(default_factory=dict)

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.study.world, self.place)

    @cached_property
    def trained(self) -> Tensor:
        return thumbnails(self.study.world.trained_on())

    def batches(self, arm: str) -> int:
        """How many batches every class has, of an arm and of the unguided pictures."""
        drawn, batch = {UNGUIDED, MATCHED.get(arm, arm)}, 0
        while all(
            self.study.file(one, name, batch).exists() for one in drawn for name in self.study.sampler.classes
        ):
            batch += 1
        return batch

    def pictures(self, arm: str, name: str, batch: int) -> Tensor:
        """(B, 3, H, W) in [0, 1]; those of a control are the unguided ones, matched."""

        def load(one: str) -> Tensor:
            return load_file(self.study.file(one, name, batch))["pictures"].movedim(-1, 1).float() / 255

        return matched(load(UNGUIDED), load(MATCHED[arm])) if arm in MATCHED else load(arm)

    def batch(self, arm: str, name: str, batch: int) -> dict[str, Tensor]:
        """Each of PER_PICTURE (B,) and of TENSORS (B, d) of a batch; "score" is NaN but for SCORED pictures."""
        found = kept(self._file("measured", arm, name, batch), lambda: self._measured(arm, name, batch))
        score = torch.full((len(found["features"]),), torch.nan)
        if batch == 0:
            scores = kept(self._file("scored", arm, name, batch), lambda: self._scored(arm, name))["score"]
            score[: len(scores)] = scores
        return found | {"score": score}

    def _file(self, what: str, arm: str, name: str, batch: int) -> Path:
        return self.study.folder / what / arm / f"{name}-{batch:03d}.safetensors"

    def _measured(self, arm: str, name: str, batch: int) -> Row:
        pictures = self.pictures(arm, name, batch)
        labels = torch.full((len(pictures),), self.study.sampler.classes.index(name) + 1)
        return self.of(pictures, labels) | {"novelty": self.novelty(pictures, name)}

    def of(self, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """All measures of pictures (B, 3, 128, 128) in [0, 1] but those of the guide."""
        maps = self.judge.network.maps(pictures)
        features = maps.mean((2, 3))
        classifier = self.judge.classifier
        with torch.no_grad():
            own = classifier.features(pictures)
            confidence = classifier.probabilities(own).gather(1, labels[:, None] - 1)[:, 0]
            attributes = classifier.values(own, labels)
        return self.judge.judge(pictures, labels, features) | {
            "confidence": confidence,
            "copy": copy_distance(pictures, self.trained),
            "edges": kornia.filters.sobel(pictures).flatten(1).mean(1),
            "attributes": attributes,
            "features": features,
            "spatial": spatial_features(maps).half(),
        }

    @torch.inference_mode()
    def novelty(self, pictures: Tensor, name: str) -> Tensor:
        """(B,), in the guide's embedding, from the pictures of the class that guidance by novelty goes away from."""
        encoder = self.study.sampler.encoder.encoder
        if name not in self._usual:
            reference = self.study.reference(REAL, name)
            assert reference is not None
            self._usual[name] = Nearest(reference.parts[0].embeddings)
        return self._usual[name](encoder(encoder.preprocess(pictures.movedim(1, -1))))

    def _scored(self, arm: str, name: str) -> Row:
        print(f"scoring {name} {arm}", flush=True)
        return {"score": self.scores(self.pictures(arm, name, 0)[:SCORED])}

    def scores(self, pictures: Tensor) -> Tensor:
        """The projected scores (B,) of pictures (B, 3, H, W) under the guide."""
        encoder = self.study.sampler.encoder.encoder
        x = encoder.preprocess(pictures.movedim(1, -1))
        return torch.cat([jepa_score(encoder, one, projection=PROJECTION) for one in x.split(1)]).float()


@dataclass(frozen=True)
class Measured:
    """An arm's measures.

    Attributes:
        units: (class, batch) of each of N pictures.
        values: measure -> (N,), NaN where it is not known, or (N / GROUP,) for "vendi".
    """

    units: list[tuple[str, int]]
    values: dict[str, Tensor]


def measured(measures: Measures, arm: str, most: int) -> Measured:
    """An arm's measures, of `most` batches of each class at most, batch by batch."""
    units: list[tuple[str, int]] = []
    parts: dict[str, list[Tensor]] = {}
    for batch in range(min(most, measures.batches(arm))):
        for name in measures.study.sampler.classes:
            found = measures.batch(arm, name, batch)
            units += [(name, batch)] * len(found["features"])
            for key in (*PER_PICTURE, *TENSORS):
                parts.setdefault(key, []).append(found[key].float())
            groups = found["features"].float().split(GROUP)
            parts.setdefault("vendi", []).append(torch.tensor([vendi(group) for group in groups]))
    return Measured(units, {key: torch.cat(some) for key, some in parts.items()})


def matched(pictures: Tensor, others: Tensor, rounds: int = 4) -> Tensor:
    """Pictures (B, 3, H, W) with nearly the contrast and saturation of the others, row by row."""
    found = []
    for own, other in zip(pictures, others, strict=True):
        for _ in range(rounds):
            own = _with(adjust_saturation, _saturation, own, other)
            own = _with(adjust_contrast, lambda picture: picture.std().item(), own, other)
        found.append(own)
    return torch.stack(found)


def _with(
    change: Callable[..., Any], measure: Callable[[Tensor], float], own: Tensor, other: Tensor
) -> Tensor:
    now = measure(own)
    found: Tensor = change(own, measure(other) / now) if now else own
    return found


def _saturation(picture: Tensor) -> float:
    return (picture.amax(0) - picture.amin(0)).mean().item()
