"""Which blocks of a denoiser ran in a call, and whether its answer carries a gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .check import DENOISER, WrongGradientError


class BlockCount:
    """How many blocks of a denoiser run in a call of it, and whether its answers carry a gradient.

    A step that comes from a cache skips blocks, or all of them; a kernel without a backward, at the end of a network, leaves
    an answer that depends on nothing.
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

    def watched(self, denoise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same function, which refuses a differentiated answer that keeps the gradient from the network.

        Raises:
            WrongGradientError: blocks were skipped, or nothing carries a gradient; never where nothing is counted.
        """

        def run(x: Tensor) -> Tensor:
            self._most_now, self._carries_gradient = 0, False
            answer = denoise(x)
            if self._counts and x.requires_grad and (fault := self._fault()):
                raise WrongGradientError(DENOISER, fault)
            return answer

        return run

    def _fault(self) -> str | None:
        """What kept the gradient of this call from the network, for people, or None."""
        if not self._carries_gradient:
            return (
                "no gradient reaches the denoiser's network (a cached step, or a kernel without a backward)"
            )
        if self._most_now < self._most:
            return f"{self._most_now} of the denoiser's {self._most} blocks ran (a cached step)"
        return None
