"""Differentiating the host's own modules, which run under inference mode with weights made there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..jepa_core import differentiable
from .internals import attention_pytorch, training_operations


@contextmanager
def host_differentiable(*modules: nn.Module) -> Iterator[None]:
    """`jepa_core.differentiable` for the host's modules: asks its operations for versions with a backward."""
    with differentiable(*modules), training_operations():
        yield


class _Kept(WeakKeyDictionary):
    """Keeps the tensors that torch's guard has copied, as long as the copies."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __delitem__(self, handle: Any) -> None:
        self.kept.append(self[handle])
        super().__delitem__(handle)


@contextmanager
def writing_in_place() -> Iterator[None]:
    """Let a network write into tensors that autograd has saved, within one forward and backward pass.

    torch's guard knows a saved tensor by its address, and lets go of it once it has a copy from before the change. The next
    tensor that comes to lie there is then taken for the one before: gradients are wrong, mostly without a word. So what
    was copied stays where it is.

    Raises:
        RuntimeError: a torch whose guard keeps its books otherwise.
    """
    with torch.autograd.graph.allow_mutation_on_saved_tensors() as guard:
        if not isinstance(getattr(guard, "original", None), WeakKeyDictionary):
            raise RuntimeError(
                f"JEPA guidance cannot differentiate this denoiser with torch {torch.__version__}; set gradient_path to "
                "'denoiser constant'"
            )
        guard.original = _Kept()
        yield


def normal_tensors(value: Any) -> Any:
    """Copy nested dicts and lists with every inference tensor cloned, so that autograd may keep them.

    Call outside inference mode. Objects that carry a tensor as `cond` (the host's conditionings) are copied
    with it.
    """
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: normal_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal_tensors(item) for item in value]
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        return value._copy_with(normal_tensors(value.cond))
    return value


def differentiable_attention(options: dict) -> dict:
    """Return the host's model options with attention forced to torch's, which has a backward everywhere."""

    def override(_: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    transformer = {**options.get("transformer_options", {}), "optimized_attention_override": override}
    return {**options, "transformer_options": transformer}
