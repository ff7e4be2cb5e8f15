"""Differentiating the host's modules, which run under inference mode with weights created there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...jepa_core import differentiable
from ..comfy.backward_ops import training_operations, vae_torch_attention
from ..comfy.required import attention_pytorch
from ..options import DENOISER_CONSTANT
from .compiled import compiles
from .ordered import ordered


@contextmanager
def host_differentiable(*modules: nn.Module) -> Iterator[None]:
    """`jepa_core.differentiable` for the host's modules, with operations that have a backward pass in a fixed order."""
    with (
        differentiable(*modules),
        training_operations(),
        vae_torch_attention(*modules),
        _without_kept_keys(*modules),
        ordered(),
    ):
        yield


@contextmanager
def _without_kept_keys(*modules: nn.Module) -> Iterator[None]:
    """Within the block, key-value caches of networks start empty; afterwards they are as they were.

    Inference tensors cached by earlier calls cannot be saved for a backward pass, and tensors cached by a differentiated
    call would keep its graph alive.
    """
    parts = {part for module in modules for part in module.modules()}
    keeping: list[Any] = [part for part in parts if hasattr(part, "clear_kv_cache")]
    before: list[tuple[dict, dict]] = []
    for part in keeping:
        kept = dict(vars(part))
        part.clear_kv_cache()
        before.append((vars(part), {key: old for key, old in kept.items() if vars(part)[key] is not old}))
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.update(kept)


class _KeepsOriginals(WeakKeyDictionary):
    """The guard's table of saved tensors. Tensors deleted from it stay alive as long as the table."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __delitem__(self, handle: Any) -> None:
        self.kept.append(self[handle])
        super().__delitem__(handle)


class _ClassesAsTheyAre(TorchDispatchMode):
    """Runs the modes below it without giving their results the class of their arguments a second time.

    torch.Tensor(weight) in the code of a weight's subclass means a plain tensor, and does not get one otherwise.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@contextmanager
def writing_in_place() -> Iterator[None]:
    """Let a network write into tensors that autograd has saved, within one forward and backward pass.

    torch's guard identifies a saved tensor by its address, and drops it once it has a copy from before the change. A new
    tensor allocated at that address is then mistaken for the old one, and gradients are wrong, mostly without an error.
    So the originals are kept alive here.

    Raises:
        RuntimeError: this version of torch implements the guard in another way.
    """
    with torch.autograd.graph.allow_mutation_on_saved_tensors() as guard:
        if not isinstance(getattr(guard, "original", None), WeakKeyDictionary):
            raise RuntimeError(
                f"JEPA guidance cannot differentiate this denoiser with torch {torch.__version__}; set preset to 'subtle', "
                f"or gradient_path of JEPA Guidance Settings to {DENOISER_CONSTANT!r}"
            )
        guard.original = _KeepsOriginals()
        with _ClassesAsTheyAre():
            yield


def normal_tensors(value: Any) -> Any:
    """Copy nested dicts and lists with every inference tensor cloned, so that autograd may save them.

    Call it outside inference mode. The host's conditioning objects, with a tensor as `cond`, are copied too.
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


def differentiable_arguments(kwargs: dict) -> dict:
    """The arguments of a model call, for a differentiated one."""
    normal: dict = normal_tensors(kwargs)
    return {**normal, "model_options": differentiable_options(normal.get("model_options", {}))}


def differentiable_options(options: dict) -> dict:
    """Return the host's model options for a differentiated call.

    Attention is torch's, which always has a backward pass; compiled networks run as they were written; the cache of Qwen
    Image 2.1 between steps is off.
    """

    def override(_: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    transformer = {**options.get("transformer_options", {}), "optimized_attention_override": override}
    transformer["qwen_image21_cache"] = {"device": "off"}
    if "wrappers" in transformer:
        transformer["wrappers"] = {
            kind: {key: [one for one in wrappers if not compiles(one)] for key, wrappers in keys.items()}
            for kind, keys in transformer["wrappers"].items()
        }
    return {**options, "transformer_options": transformer}
