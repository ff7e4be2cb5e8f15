"""Activation checkpointing of the host's blocks: less memory for a second forward pass, the same gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..comfy.required import AttnBlock, BasicTransformerBlock, ResBlock, ResnetBlock, Upsample

# The blocks of the host's UNets and of its VAEs; their lists hold containers that are never called themselves.
BLOCKS = (ResBlock, BasicTransformerBlock, ResnetBlock, AttnBlock, Upsample)
# In video decoders these leave in a list of the caller's what the next frames need, which a copy of it would not show.
CARRYING = (ResnetBlock, Upsample)


@contextmanager
def checkpointed(*modules: nn.Module) -> Iterator[None]:
    """Within the block, the blocks of these modules keep their inputs alone for the backward pass, which runs them again.

    Their forward methods are replaced for the block and put back on any exit. The backward pass must run
    inside it. Random layers must be off, as they are in evaluation: the second run draws anew.
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
            # without an entry of its own, the block finds its class's method again
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def blocks(root: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: known blocks, else the entries of its outermost module lists."""
    if any(isinstance(part, BLOCKS) for part in root.modules()):
        return _outermost(root, lambda part: isinstance(part, BLOCKS))
    lists = _outermost(root, lambda part: isinstance(part, nn.ModuleList))
    return [block for entries in lists for block in entries.children()]


def can_run_again(block: nn.Module) -> bool:
    """Whether a second call of a block computes what the first did; layers of some video decoders keep what they saw."""
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
            # Fresh containers: the host writes the number of the current block into dicts that all share.
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            args, kwargs = tree_unflatten(filled, structure)
            results, shape[:] = _flat_tensors(forward(*args, **kwargs))
            return results

        tensors = [leaves[place] for place in places]
        for place in places:  # the closure must not keep what autograd keeps
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
    """A function of tensors that saves its inputs and runs again in the backward pass.

    Not torch.utils.checkpoint: what that keeps from its second run is not guarded against writing in place,
    and the residual streams of some denoisers are written in place, so that gradients were silently wrong.
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
