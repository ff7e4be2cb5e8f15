"""Differentiating the host's own modules, which run under inference mode with weights made there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ...jepa_core import differentiable
from ..comfy.internals import attention_pytorch, training_operations


@contextmanager
def host_differentiable(*modules: nn.Module) -> Iterator[None]:
    """`jepa_core.differentiable` for the host's modules: asks its operations for versions with a backward."""
    with differentiable(*modules), training_operations(), _without_kept_keys(*modules):
        yield


@contextmanager
def _without_kept_keys(*modules: nn.Module) -> Iterator[None]:
    """Within the block, networks that keep keys and values from call to call start anew; what they had comes back.

    What calls under inference mode left there cannot be saved for a backward pass, and what a differentiated call
    leaves would hold its graph.
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


def differentiable_options(options: dict) -> dict:
    """Return the host's model options for a call that is differentiated.

    Attention is torch's, which has a backward everywhere; compiled networks run as they were written; what one model
    family keeps of a step for the next is off.
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


def compiles(wrapper: Any) -> bool:
    """Whether a wrapper is one that puts compiled networks in the place of others, as the host's TorchCompileModel does."""
    tables = [content for _, content in closure_of(wrapper) if isinstance(content, dict)]
    return any(is_compiled(part) for table in tables for part in table.values())


def runs_compiled(network: nn.Module, options: dict) -> bool:
    """Whether a network, or a part of it, runs compiled in ordinary calls with these model options of the host."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    every = [one for keys in wrappers.values() for group in keys.values() for one in group]
    return any(map(compiles, every)) or any(map(is_compiled, network.modules()))


def closure_of(function: Any) -> list[tuple[Any, Any]]:
    """The variables of a function that come from around it: (cell, value); those without a value are left out."""
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def is_compiled(value: Any) -> bool:
    """Whether a module is what torch.compile made of another one."""
    return isinstance(value, nn.Module) and "_orig_mod" in value._modules


@contextmanager
def uncompiled(*modules: nn.Module) -> Iterator[None]:
    """Within the block, the compiled parts of these modules are the ones that they were compiled from.

    Compiling a backward pass takes minutes, and checkpointing breaks compiled graphs apart.
    """
    replaced = []
    try:
        for parent in [part for module in modules for part in module.modules()]:
            for name, child in parent._modules.items():
                if child is not None and is_compiled(child):
                    replaced.append((parent, name, child))
        for parent, name, child in replaced:
            parent._modules[name] = child.get_submodule("_orig_mod")
        yield
    finally:
        for parent, name, child in replaced:
            parent._modules[name] = child


class BlockCount:
    """How many blocks of a denoiser run in a call of it, and whether its answers carry a gradient.

    A step that comes from a cache skips blocks, or all of them; a kernel without a backward, at the end of a network, leaves
    an answer that depends on nothing.
    """

    def __init__(self) -> None:
        self._most = 0  # in any call
        self._most_now = 0  # in any call of this step
        self._now = 0  # in this call
        self._carries_gradient = False
        self._counts = False

    @contextmanager
    def of(self, network: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Count within the block."""

        def begin(*_: Any) -> None:
            self._now = 0

        def count(*_: Any) -> None:
            self._now += 1

        def end(_: Any, __: Any, answer: Any) -> None:
            self._most_now = max(self._most_now, self._now)
            self._most = max(self._most, self._now)
            leaves = (leaf for leaf in tree_leaves(answer) if isinstance(leaf, torch.Tensor))
            self._carries_gradient |= any(leaf.requires_grad for leaf in leaves)

        hooks = [network.register_forward_pre_hook(begin), network.register_forward_hook(end)]
        hooks += [block.register_forward_pre_hook(count) for block in blocks]
        self._counts = True
        try:
            yield
        finally:
            self._counts = False
            for hook in hooks:
                hook.remove()

    def begin_step(self) -> None:
        """A guided step begins."""
        self._most_now, self._carries_gradient = 0, False

    def fault(self) -> str | None:
        """What kept the gradient of this step from the network, for people, or None; also where nothing is counted."""
        if not self._counts:
            return None
        if not self._carries_gradient:
            return (
                "no gradient reaches the denoiser's network (a cached step, or a kernel without a backward)"
            )
        if self._most_now < self._most:
            return f"{self._most_now} of the denoiser's {self._most} blocks ran (a cached step)"
        return None
