"""Layers with frozen weights that keep less for the backward pass: the same gradient, and hardly more time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ..comfy.required import ResnetBlock
from .checkpointing import checkpointed


@contextmanager
def saving_memory(*modules: nn.Module, checkpointing: bool) -> Iterator[None]:
    """Within the context, differentiating these networks takes less memory; the backward pass must run in it too.

    Args:
        checkpointing: also checkpoint what `lean` does not cover. A KL decoder would gain nothing: at 1024 pixels it takes
            4.5 GiB with either (bfloat16).
    """
    rest = [module for module in modules if not _is_covered(module)]
    with lean(*modules), checkpointed(*rest) if checkpointing else nullcontext():
        yield


@contextmanager
def lean(*modules: nn.Module) -> Iterator[None]:
    """Within the context, convolutions keep no input, and normalisations followed by SiLU only their own input.

    torch saves the input of every convolution, for a gradient of the weights that nobody asks for. In a KL decoder these
    two take two thirds of the memory. The backward pass must run inside the context.
    """
    parts = {id(part): part for module in modules for part in module.modules()}.values()
    forwards: list[tuple[nn.Module, Callable]] = []
    for part in parts:
        if _is_plain_convolution(part):
            forwards.append((part, _keeping_nothing(part)))
        elif isinstance(part, ResnetBlock) and _is_plain_block(part):
            forwards += [(norm, _with_silu(norm)) for norm in (part.norm1, part.norm2)]
            forwards.append((part.swish, lambda x: x))
    try:
        for part, forward in forwards:
            part.forward = forward
        yield
    finally:
        for part, _ in forwards:
            part.__dict__.pop("forward", None)


def _is_covered(module: nn.Module) -> bool:
    own = [block for block in module.modules() if isinstance(block, ResnetBlock)]
    return bool(own) and all(map(_is_plain_block, own))


def _is_plain_convolution(part: nn.Module) -> bool:
    """Whether a layer computes torch's convolution of its own weight: other packs replace methods, hosts cast weights."""
    return (
        isinstance(part, nn.Conv2d)
        and type(part).__module__ in ("torch.nn.modules.conv", "comfy.ops")
        and not {"forward", "_conv_forward"} & vars(part).keys()
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
        and type(part.weight) in (Tensor, nn.Parameter)
        and not getattr(part, "comfy_cast_weights", False)
        and not getattr(part, "weight_function", ())
        and not getattr(part, "bias_function", ())
    )


def _is_plain_block(block: Any) -> bool:
    own = (block, block.norm1, block.norm2, block.swish)
    return (
        type(block.swish) is nn.SiLU
        and not hasattr(block, "temb_proj")  # it uses swish on something else
        and not any("forward" in vars(part) for part in own)
    )


def _keeping_nothing(layer: Any) -> Callable[[Tensor], Tensor]:
    forward = layer.forward

    def run(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return forward(x)
        result: Tensor = _Convolution.apply(x, layer.weight, forward, layer)
        return result

    return run


def _with_silu(norm: Any) -> Callable[[Tensor], Tensor]:
    forward = norm.forward

    def activated(x: Tensor) -> Tensor:
        # in place it would be copied for the backward pass
        return F.silu(forward(x), inplace=not torch.is_grad_enabled())

    def run(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return activated(x)
        result: Tensor = _Recomputed.apply(x, activated)
        return result

    return run


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient with respect to its input needs the weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forward: Callable, layer: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.shape = layer, x.shape
        result: Tensor = forward(x)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        layer = ctx.layer
        how = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return conv2d_input(ctx.shape, weight, cotangent, *how), None, None, None


class _Recomputed(torch.autograd.Function):
    """A cheap function of one tensor that runs again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.function(leaf), leaf, cotangent)
        return gradient, None
