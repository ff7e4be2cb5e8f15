"""The primitive for every stage of the chain: a value, and the vector-Jacobian product at the same point."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from .ordered import no_switch_left


class Pull(Protocol):
    """The vector-Jacobian product of a function at one point."""

    def __call__(self, cotangent: Tensor, keep: bool = False) -> Tensor:
        """Return J^T cotangent. With `keep`, the graph is kept for another call."""
        ...


@contextmanager
def linearised(
    function: Callable[[Tensor], Tensor], x: Tensor, guard: AbstractContextManager | None = None
) -> Iterator[tuple[Tensor, Pull]]:
    """Within the block: (function(x), pull), where pull(cotangent) is the vector-Jacobian product at x.

    The graph is freed at the end of the block.

    Args:
        guard: a context that is entered for the block, which the function needs while its graph is alive.
    """
    with torch.inference_mode(False), torch.enable_grad(), guard or nullcontext():
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf)

        def pull(cotangent: Tensor, keep: bool = False) -> Tensor:
            unit = _unit(cotangent)
            with no_switch_left():
                (gradient,) = torch.autograd.grad(value, leaf, cotangent / unit, retain_graph=keep)
            return gradient * unit

        yield value.detach(), pull


def _unit(cotangent: Tensor) -> Tensor:
    """The power of two below the largest entry of a cotangent.

    Networks that compute in float16 lose entries below 6e-8, so the backward pass begins at a size of about 1. Scaling by a
    power of two changes no bit in float32.
    """
    largest = cotangent.detach().abs().amax().float()
    usable = largest.isfinite() & (largest > torch.finfo(torch.float32).tiny)
    _, exponent = torch.frexp(torch.where(usable, largest, 1.0))
    return torch.ldexp(torch.ones_like(largest), exponent - 1).to(cotangent)
