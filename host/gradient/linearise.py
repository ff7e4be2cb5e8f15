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
            with no_switch_left():
                (gradient,) = torch.autograd.grad(value, leaf, cotangent, retain_graph=keep)
            return gradient

        yield value.detach(), pull
