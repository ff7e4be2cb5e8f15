"""One image of a batch: its rows in nested conditioning and in the arguments of a model call."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Two estimates of the same image differ by rounding if only the size of the batch differs, by this much at most.
_ROUNDING = 0.02


class DiffersAloneError(Exception):
    """An image's estimate depends on the rest of its batch."""


def row(value: Any, index: int, batch: int) -> Any:
    """Nested dicts and lists with only one row of every tensor that has one row for each image of the batch.

    The host's conditioning objects, with a tensor as `cond`, are searched too; everything else is shared.
    """
    if isinstance(value, Tensor):
        return value[index : index + 1] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: row(part, index, batch) for key, part in value.items()}
    if isinstance(value, list):
        return [row(part, index, batch) for part in value]
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        return value._copy_with(row(value.cond, index, batch))
    return value


def row_of_attributes(owner: Any, names: Sequence[str], index: int, batch: int) -> Any:
    """A copy of an object with one row of the tensors under these names."""
    twin = copy.copy(owner)
    tensors = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
    vars(twin).update(row(tensors, index, batch))
    return twin


def check_alone(alone: Tensor, in_batch: Tensor) -> None:
    """Raise DiffersAloneError unless an estimate of one image is that of the same image in its batch, up to rounding."""
    difference = (alone - in_batch).double().square().mean().sqrt()
    # written so that estimates that are not finite pass: the run reports them
    if difference > _ROUNDING * in_batch.double().square().mean().sqrt() + torch.finfo(torch.float32).eps:
        raise DiffersAloneError
