"""Half-precision derivatives of a full-precision function: values in float32, only their derivatives in bfloat16.

Where the point of a Jacobian is rounded, every product with it is one with another matrix, and all of them err alike. A
tangent or a cotangent that is rounded is only a slightly different direction. The point is one image, its derivatives
are many directions, so nearly all the work is still done in bfloat16.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_HALF = torch.bfloat16


class _Function(torch.autograd.Function):
    """Keeps its inputs for the derivatives of every mode, and can be batched over directions."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class _Linear(_Function):
    """x weight^T + bias for frozen weights. `half` is the weight in bfloat16, which all directions share."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, half: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[-1])
        ctx.save_for_forward(inputs[-1])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return (tangent.to(_HALF) @ ctx.saved_tensors[0].mT).float()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return (cotangent.to(_HALF) @ ctx.saved_tensors[0]).float(), None, None, None


class _Product(_Function):
    """a @ b."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor, of_b: Tensor) -> Tensor:
        a, b = (factor.to(_HALF) for factor in ctx.saved_tensors)
        return (of_a.to(_HALF) @ b + a @ of_b.to(_HALF)).float()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        a, b = (factor.to(_HALF) for factor in ctx.saved_tensors)
        cotangent = cotangent.to(_HALF)
        return (cotangent @ b.mT).float(), (a.mT @ cotangent).float()


class _Gelu(_Function):
    """GELU whose slope is computed once for all directions."""

    @staticmethod
    def forward(x: Tensor, approximate: str) -> Tensor:
        return functional.gelu(x, approximate=approximate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.approximate = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def _slope(ctx: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=ctx.approximate)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent * _Gelu._slope(ctx)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return cotangent * _Gelu._slope(ctx), None


class HalfDerivatives(TorchFunctionMode):
    """Inside it, derivatives of float32 matrix products multiply in bfloat16, forward and backward and nested.

    Weights must be frozen: they get no derivative.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and args[0].dtype == torch.float32:
            return _Product.apply(*args)
        if func is functional.gelu and args[0].dtype == torch.float32:
            return _Gelu.apply(args[0], kwargs.get("approximate", "none"))
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dtype != torch.float32:
        return functional.linear(input, weight, bias)
    return _Linear.apply(input, weight, bias, weight.to(_HALF))
