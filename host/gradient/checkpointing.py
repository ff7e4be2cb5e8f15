"""Activation checkpointing of the host's blocks: less memory and a second forward pass, the same gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..comfy.required import AttnBlock, BasicTransformerBlock, ResBlock, ResnetBlock, Upsample

# The blocks of the host's UNets and VAEs, whose module lists hold containers that are never called.
BLOCKS = (ResBlock, BasicTransformerBlock, ResnetBlock, AttnBlock, Upsample)
# In video decoders these write what the next frames need into a list of the caller, so they cannot work on a copy of it.
CARRYING = (ResnetBlock, Upsample)


@contextmanager
def checkpointed(*modules: nn.Module) -> Iterator[None]:
    """Within the context, the blocks of these modules save only their inputs, and the backward pass runs them again.

    Their forward methods are replaced, and restored on any exit. The backward pass must run inside the context. Random
    layers must be off, as they are in evaluation: the second run would draw other numbers.
    """
    every = {id(block): block for module in modules for block in blocks(module)}.values()
    found = [block for block in every if can_run_again(block)]
    before = [block.__dict__.get("forward") for block in found]
    try:
        for block in found:
            block.forward = _recomputing(block.forward, fills_lists=isinstance(block, CARRYING))
        yield
    finally:
        for block, forward in zip(found, before, strict=True):
            # without an instance attribute, the class's method applies again
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def blocks(root: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: known block classes, else the entries of its outermost module lists."""
    if any(isinstance(part, BLOCKS) for part in root.modules()):
        return _outermost(root, lambda part: isinstance(part, BLOCKS))
    lists = _outermost(root, lambda part: isinstance(part, nn.ModuleList))
    return [block for entries in lists for block in entries.children()]


def can_run_again(block: nn.Module) -> bool:
    """Whether a second call of a block gives the same output; layers of some video decoders keep state between frames."""
    return not any(hasattr(part, "temporal_cache_state") for part in block.modules())


def _outermost(root: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[nn.Module]:
    if wanted(root):
        return [root]
    return [part for child in root.children() for part in _outermost(child, wanted)]


def _recomputing(forward: Callable, fills_lists: bool) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        if not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            return forward(*args, **kwargs)
        if fills_lists and any(isinstance(argument, list) for argument in (*args, *kwargs.values())):
            return forward(*args, **kwargs)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        shape: list = []

        def again(*tensors: Tensor) -> tuple[Tensor, ...]:
            # Fresh containers: the host writes the index of the current block into dicts that all blocks share.
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            args, kwargs = tree_unflatten(filled, structure)
            results, shape[:] = _flat_tensors(forward(*args, **kwargs))
            return results

        tensors = [leaves[place] for place in places]
        for place in places:  # the closure must not keep tensors alive; autograd saves them
            leaves[place] = None
        results = _Recomputed.apply(again, *tensors)
        return _filled(results, shape)

    return run


def _flat_tensors(value: Any) -> tuple[tuple[Tensor, ...], list]:
    leaves, structure = tree_flatten(value)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return tensors, [structure, [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]]


def _filled(tensors: tuple[Tensor, ...], shape: list) -> Any:
    structure, others = shape
    rest = iter(tensors)
    return tree_unflatten([next(rest) if other is None else other[0] for other in others], structure)


class _Recomputed(torch.autograd.Function):
    """A function of tensors that saves only its inputs and runs again in the backward pass.

    Not torch.utils.checkpoint: tensors that it saves in the second run are not guarded against in-place writes, so with
    denoisers that write into their residual stream, gradients were silently wrong.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        # clones: the function may write into its inputs
        return function(*(tensor.clone() for tensor in tensors))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [tensor.detach() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            for tensor, wanted in zip(inputs, needed, strict=True):
                tensor.requires_grad_(wanted)
            results = ctx.function(*(tensor.clone() for tensor in inputs))
            pairs = [(y, dy) for y, dy in zip(results, cotangents, strict=True) if y.requires_grad]
            found = torch.autograd.grad(
                [y for y, _ in pairs],
                [tensor for tensor, wanted in zip(inputs, needed, strict=True) if wanted],
                [dy for _, dy in pairs],
                allow_unused=True,
            )
        rest = iter(found)
        return (None, *(next(rest) if wanted else None for wanted in needed))
