"""Some images of a batch: their rows in nested conditioning and in the arguments of a model call."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Two estimates of the same image differ by rounding if only the size of the batch differs, by this much at most.
_ROUNDING = 0.02


class DiffersAloneError(Exception):
    """An image's estimate depends on the rest of its batch."""


def rows(value: Any, chosen: slice | Sequence[int], batch: int) -> Any:
    """Nested dicts and lists with only the chosen rows of every tensor that has one row for each image of the batch.

    The host's conditioning objects, with a tensor as `cond`, are searched too; everything else is shared.
    """
    if isinstance(value, Tensor):
        return value[chosen] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: rows(part, chosen, batch) for key, part in value.items()}
    if isinstance(value, list):
        return [rows(part, chosen, batch) for part in value]
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        return value._copy_with(rows(value.cond, chosen, batch))
    return value


def row(value: Any, index: int, batch: int) -> Any:
    """The same for one image of the batch."""
    return rows(value, slice(index, index + 1), batch)


def rows_of_attributes(owner: Any, names: Sequence[str], chosen: slice | Sequence[int], batch: int) -> Any:
    """A copy of an object with the chosen rows of the tensors under these names."""
    twin = copy.copy(owner)
    tensors = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
    vars(twin).update(rows(tensors, chosen, batch))
    return twin


def row_of_attributes(owner: Any, names: Sequence[str], index: int, batch: int) -> Any:
    """The same for one image of the batch."""
    return rows_of_attributes(owner, names, slice(index, index + 1), batch)


def check_alone(alone: Tensor, in_batch: Tensor) -> None:
    """Raise DiffersAloneError unless an estimate of one image is that of the same image in its batch, up to rounding."""
    difference = (alone - in_batch).double().square().mean().sqrt()
    # written so that estimates that are not finite pass: the run reports them
    if difference > _ROUNDING * in_batch.double().square().mean().sqrt() + torch.finfo(torch.float32).eps:
        raise DiffersAloneError
