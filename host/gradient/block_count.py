"""Counts the blocks of a denoiser that ran in a call, and finds outputs without a gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .gradient_check import DENOISER, WrongGradientError


class BlockCount:
    """How many blocks of a denoiser run in a call, and whether its output carries a gradient.

    A cached step skips some blocks or all of them. A kernel without a backward pass at the end of a network gives an output
    that requires no gradient.
    """

    def __init__(self) -> None:
        self._most = 0  # in any network call
        self._most_now = 0  # in any network call of this model call
        self._now = 0  # in this network call
        self._carries_gradient = False
        self._counts = False

    @contextmanager
    def of(self, network: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Count within the block."""

        def begin(*_: Any) -> None:
            self._now = 0

        def count(*_: Any) -> None:
            self._now += 1

        def end(_: Any, __: Any, output: Any) -> None:
            self._most_now = max(self._most_now, self._now)
            self._most = max(self._most, self._now)
            leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
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

    def watched(self, denoise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same function, but a differentiated call raises if the gradient does not go through the whole network.

        Raises:
            WrongGradientError: blocks were skipped, or the output carries no gradient. Only while blocks are counted.
        """

        def run(x: Tensor) -> Tensor:
            self._most_now, self._carries_gradient = 0, False
            output = denoise(x)
            if self._counts and x.requires_grad and (fault := self._fault()):
                raise WrongGradientError(DENOISER, fault)
            return output

        return run

    def _fault(self) -> str | None:
        """Why the gradient of this call does not go through the whole network, as a line for users, or None."""
        if not self._carries_gradient:
            return "no gradient reaches the denoiser's network (a cached step, or a kernel without a backward pass)"
        if self._most_now < self._most:
            return f"only {self._most_now} of the denoiser's {self._most} blocks ran (a cached step)"
        return None
