"""Some images of a batch: their rows in nested conditioning and in the arguments of a model call."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..comfy.required import CONDConstant

# Two estimates of the same image differ by rounding if only the size of the batch differs, by this much at most.
_ROUNDING = 0.02


class DiffersAloneError(Exception):
    """An image's estimate depends on the rest of its batch."""


def rows(value: Any, chosen: slice | Sequence[int], batch: int) -> Any:
    """Nested dicts and lists with only the chosen rows of every tensor that has one row for each image of the batch.

    The host's conditioning objects, with a tensor as `cond`, masks of prompts and ControlNets are searched too; everything
    else is shared. What the host would repeat for the rest of the batch, or cut off, is given to the image that gets it
    there.
    """
    if isinstance(value, Tensor):
        return value[chosen] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: _entry(key, part, chosen, batch) for key, part in value.items()}
    if isinstance(value, list):
        return [rows(part, chosen, batch) for part in value]
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        own = rows if isinstance(value, CONDConstant) else _repeated
        return value._copy_with(own(value.cond, chosen, batch))
    return value


def _entry(key: Any, part: Any, chosen: slice | Sequence[int], batch: int) -> Any:
    """A value of a dict, such as the host's conditioning."""
    if key == "mask":
        return _repeated(part, chosen, batch)
    return _of_control(part, chosen, batch) if key == "control" else rows(part, chosen, batch)


def _repeated(value: Any, chosen: slice | Sequence[int], batch: int) -> Any:
    """The chosen rows of a tensor, or of each in a list, which the host repeats to the size of the batch."""
    if isinstance(value, list):
        return [_repeated(part, chosen, batch) for part in value]
    if not isinstance(value, Tensor) or not value.ndim or len(value) in (1, batch):
        return rows(value, chosen, batch)
    return value[[index % len(value) for index in _numbers(chosen, batch)]]


def _of_control(control: Any, chosen: slice | Sequence[int], batch: int) -> Any:
    """A chain of ControlNets with only the chosen images' hints, which a copy prepares anew."""
    if control is None:
        return None
    hint, before = control.cond_hint_original, control.previous_controlnet
    previous = _of_control(before, chosen, batch)
    one_for_all = hint is None or len(hint) == 1
    if one_for_all and previous is before:
        return control
    twin = copy.copy(control)
    twin.previous_controlnet = previous
    if not one_for_all:
        own = [index % len(hint) for index in _numbers(chosen, batch)]
        twin.cond_hint_original = hint[own]
        twin.extra_concat_orig = [_repeated(mask, own, len(hint)) for mask in control.extra_concat_orig]
        twin.cond_hint = None
        if hasattr(control, "control_input"):  # a T2I-Adapter's own form of the hint
            twin.control_input = None
    return twin


def _numbers(chosen: slice | Sequence[int], batch: int) -> Sequence[int]:
    return range(batch)[chosen] if isinstance(chosen, slice) else chosen


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
