"""The paper's last table: do generated pictures help to learn attributes whose rare values have few examples?

A linear classifier of each attribute on ImageNet features of FEW real pictures of a class, in which rare values are as rare
as in the world, and of the same plus generated pictures. What these show is read by the judge's classifier, which saw many
real ones. In the figures every value of an attribute weighs the same.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from research.harness.program import Row, kept
from research.judges.effects import MINORITY
from research.results.intervals import mean_and_interval
from research.results.measures import Measured, Measures
from research.training.pictures import Pictures
from research.world.labels import COLUMNS

FEW, SEEDS = 100, 5  # real pictures of a class, other ones for each seed
DECAY = 1e-3
SCORES = ("accuracy", "f1", "precision", "rare_recall")


class Examples(NamedTuple):
    """Features (N, 1280), attributes (N, A) and labels (N,) from 1 of pictures."""

    features: Tensor
    attributes: Tensor
    labels: Tensor

    def of_class(self, label: int) -> "Examples":
        mine = self.labels == label
        return Examples(*(part[mine] for part in self))

    def joined(self, other: "Examples") -> "Examples":
        return Examples(*(torch.cat(pair) for pair in zip(self, other, strict=True)))

    def rows(self, rows: slice) -> "Examples":
        return Examples(*(part[rows] for part in self))


def augmentation(measures: Measures, arms: Mapping[str, Measured]) -> Row:
    """{arm: {score: its mean over seeds and attributes, with an interval over seeds and the change from real ones alone}}.

    Each arm has "added", how many pictures.
    """
    world = measures.study.world
    real = _examples(measures, "training", world.trained_on(), slice(None))
    test = _examples(measures, "tested", world.unseen(), slice(len(measures.judge.real), None))
    added = {arm: _made(own, measures.study.sampler.classes) for arm, own in arms.items()}
    found: dict[str, list[Row]] = {"real alone": [_trial(real, test, None, seed) for seed in range(SEEDS)]}
    found |= {arm: [_trial(real, test, own, seed) for seed in range(SEEDS)] for arm, own in added.items()}
    alone = found["real alone"]
    table: dict[str, Row] = {}
    for arm, rows in found.items():
        table[arm] = {"added": len(added[arm].labels) if arm in added else 0}
        for name in SCORES:
            values = np.array([row[name] for row in rows])
            table[arm][name] = mean_and_interval(values)
            if arm in added:
                change = values - np.array([row[name] for row in alone])
                table[arm][name]["change"] = mean_and_interval(change)
    return table


def _examples(measures: Measures, name: str, pictures: Pictures, rows: slice) -> Examples:
    """Some rows of real pictures; their features are kept under a name."""
    assert pictures.attributes is not None

    def features() -> Row:
        return {"features": measures.judge.features(pictures.pixels(rows))}

    found = kept(measures.study.folder / f"{name} features.safetensors", features)["features"]
    return Examples(found, pictures.attributes[rows], pictures.labels[rows])


def _made(own: Measured, classes: tuple[str, ...]) -> Examples:
    labels = torch.tensor([classes.index(name) + 1 for name, _ in own.units])
    return Examples(own.values["features"], own.values["attributes"].long(), labels)


def _trial(real: Examples, test: Examples, added: Examples | None, seed: int) -> Row:
    """The mean of each score over the attributes of all classes."""
    rows = []
    for column, (label, described) in enumerate(COLUMNS):
        some = real.of_class(label).rows(slice(seed * FEW, (seed + 1) * FEW))
        if added is not None:
            some = some.joined(added.of_class(label))
        mine = test.of_class(label)
        wanted, values = mine.attributes[:, column], len(described.values)
        guess = classifier(some.features, some.attributes[:, column], values)(mine.features).argmax(1)
        rows.append(scores(wanted, guess, torch.tensor(described.shares) <= MINORITY))
    return {name: float(np.nanmean([row[name] for row in rows])) for name in SCORES}


def classifier(features: Tensor, values: Tensor, count: int):  # type: ignore[no-untyped-def]
    """A multinomial logistic regression of values (N,) below `count` on features (N, d), as features -> logits."""
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    x = (features - mean) / deviation / features.shape[1] ** 0.5
    weights = torch.zeros(x.shape[1] + 1, count, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.cross_entropy(x @ weights[:-1] + weights[-1], values) + DECAY * weights[:-1].square().sum()
        found.backward()
        return found

    optimiser.step(loss)  # type: ignore[arg-type]
    fitted = weights.detach()
    return lambda some: (some - mean) / deviation / x.shape[1] ** 0.5 @ fitted[:-1] + fitted[-1]


def scores(wanted: Tensor, guess: Tensor, rare: Tensor) -> Row:
    """Balanced accuracy, precision and F1 over the values that occur, and the recall of rare ones (NaN if none occurs).

    wanted, guess: (N,) values. rare: (values,), whether a value is.
    """
    confusion = torch.zeros(len(rare), len(rare), dtype=torch.float64)
    confusion.index_put_((wanted, guess), torch.ones((), dtype=torch.float64), accumulate=True)
    right, occurs = confusion.diagonal(), confusion.sum(1) > 0
    recall = right / confusion.sum(1).clamp(min=1)
    precision = right / confusion.sum(0).clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return {
        "accuracy": recall[occurs].mean().item(),
        "f1": f1[occurs].mean().item(),
        "precision": precision[occurs].mean().item(),
        "rare_recall": recall[occurs & rare].mean().item(),
    }
