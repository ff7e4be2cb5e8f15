"""Which pictures the world holds: rows of labels, their frequencies, and the splits."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from research.world.classes import KINDS

CLASSES = tuple(kind.name for kind in KINDS)
COLUMNS = tuple((number, found) for number, kind in enumerate(KINDS, 1) for found in kind.attributes)
NAMES = tuple(f"{CLASSES[number - 1]} {found.name}" for number, found in COLUMNS)
UNIFORM = max(len(kind.uniform) for kind in KINDS)
SPLITS = {"training": 1, "held_out": 2, "rarest": 3}  # and their seeds
RAREST = 0.05  # the share of a class that is its reference


class Labels(NamedTuple):
    """What N pictures show; row i of everything is the same one.

    classes: (N,) int64 from 1. attributes: (N, A) int64, columns NAMES: the number of the value, -1 for attributes of other
    classes. uniform: (N, UNIFORM) float64 in [0, 1), which choose skin tones, hairstyles and the like.
    """

    classes: Tensor
    attributes: Tensor
    uniform: Tensor

    def take(self, rows: Tensor | slice) -> "Labels":
        return Labels(*(column[rows] for column in self))


def _random(seed: int, count: int) -> np.ndarray:
    """(count, A + UNIFORM) float64 in [0, 1); row i depends on the seed and i alone, on every platform."""
    width = len(COLUMNS) + UNIFORM
    raw = np.random.Philox(key=seed).random_raw(count * width)
    return (raw >> np.uint64(11)).reshape(count, width) * 2.0**-53


def draw(seed: int, count: int) -> Labels:
    """The first `count` rows of a seed: the classes in turn, every attribute independent of the others."""
    random = _random(seed, count)
    classes = np.arange(count) % len(KINDS) + 1
    columns = []
    for column, (number, found) in enumerate(COLUMNS):
        value = np.searchsorted(np.cumsum(found.shares)[:-1], random[:, column], side="right")
        columns.append(np.where(classes == number, value, -1))
    tensors = classes, np.stack(columns, 1), random[:, len(COLUMNS) :]
    return Labels(*map(torch.from_numpy, tensors))


def log_frequency(attributes: Tensor) -> Tensor:
    """(N,) float64: how rare each row (N, A) is, the natural logarithm of the product of its values' frequencies."""
    found = torch.zeros(len(attributes), dtype=torch.float64)
    for column, (_, described) in zip(attributes.T, COLUMNS, strict=True):
        logs = torch.tensor([*described.shares, 1.0], dtype=torch.float64).log()
        found += logs[column]  # -1 is the last, 1
    return found


def tail(classes: Tensor, attributes: Tensor) -> Tensor:
    """(N,) float64 in (0, 1]: the share of all pictures of its class that are as rare as this one or rarer, exactly.

    Args:
        classes: (N,) from 1. attributes: (N, A), see Labels.
    """
    logs = log_frequency(attributes)
    found = torch.empty_like(logs)
    for number, kind in enumerate(KINDS, 1):
        every = torch.zeros(1, dtype=torch.float64)  # the log frequency of every combination
        for described in kind.attributes:
            every = (every[:, None] + torch.tensor(described.shares, dtype=torch.float64).log()).flatten()
        every = every.sort().values
        mine = classes == number
        last = torch.searchsorted(every, logs[mine] + 1e-9) - 1  # the same product in another order counts
        found[mine] = every.exp().cumsum(0)[last]
    return found


def _rarest(count: int) -> Labels:
    """The first `count` rows, the classes in turn, that are among the rarest of their class."""
    each = -(-count // len(KINDS))
    rows = each + 50
    while True:
        rows *= 2
        drawn = draw(SPLITS["rarest"], round(rows / RAREST) * len(KINDS))
        rare = (tail(drawn.classes, drawn.attributes) <= RAREST).reshape(-1, len(KINDS))
        if int(rare.sum(0).min()) >= each:
            break
    chosen = [rare[:, k].nonzero()[:each, 0] * len(KINDS) + k for k in range(len(KINDS))]
    return drawn.take(torch.stack(chosen, 1).flatten()[:count])


def split(name: str, count: int) -> Labels:
    """The first `count` rows of "training", "held_out", or "rarest" (of the rarest twentieth of its class)."""
    return _rarest(count) if name == "rarest" else draw(SPLITS[name], count)


def values(attributes: Tensor) -> dict[str, str]:
    """What one row (A,) shows: name of the attribute -> name of the value."""
    chosen = zip(attributes.tolist(), COLUMNS, strict=True)
    return {found.name: found.values[value] for value, (_, found) in chosen if value >= 0}


def drawings(labels: Labels) -> Iterator[dict[str, Any]]:
    """What the renderer is told for each row."""
    for number, attributes, uniform in zip(*(column.tolist() for column in labels), strict=True):
        kind = KINDS[number - 1]
        options = {"clip": False, **kind.fixed}
        for value, (_, found) in zip(attributes, COLUMNS, strict=True):
            if value >= 0:
                drawn = found.drawn[value]
                options |= {found.option: [] if drawn is None else [drawn]}
                if None in found.drawn:
                    options[f"{found.option}Probability"] = 0 if drawn is None else 100
        for share, (option, choices) in zip(uniform, kind.uniform.items(), strict=False):
            choice = choices[int(share * len(choices))]
            options[option] = [choice] if isinstance(choice, str) else choice
        yield {"style": kind.style, "margin": kind.margin, "options": options}
