"""A forward pass of the encoder and its backward passes: run by torch, or replayed as captured CUDA graphs.

An encoder's pass is hundreds of small kernels, and a GPU may need less time for them than the processor for launching
them. A captured graph launches them all at once, at the same addresses and in the same order each time.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
T = TypeVar("T")


def captures(x: Tensor) -> bool:
    """Whether passes at x can be captured: on CUDA alone."""
    return x.is_cuda


class Pass:
    """function(x), kept for backward passes.

    Attributes:
        value: function(x), without a graph.
    """

    def __init__(self, function: Function, x: Tensor) -> None:
        self._leaf = x.detach().clone().requires_grad_()
        self._output = function(self._leaf)
        self.value = self._output.detach()

    def pull(self, cotangent: Tensor, keep: bool = False) -> Tensor:
        """The gradient of <cotangent, function(x)>, of x's shape. Frees what the pass keeps, unless `keep`."""
        return torch.autograd.grad(self._output, self._leaf, cotangent, retain_graph=keep)[0]

    def pull_each(self, cotangents: Tensor) -> Tensor:
        """The gradients of <c, function(x)> for each c of cotangents (r, *value.shape): (r, *x.shape)."""

        def one(cotangent: Tensor) -> Tensor:
            return torch.autograd.grad(self._output, self._leaf, cotangent, retain_graph=True)[0]

        return torch.func.vmap(one)(cotangents)


class _Captured:
    """A function of tensors of fixed shapes as a CUDA graph. Its results are overwritten by the next call.

    The capture starts after a pass on the same stream, in which libraries allocate what they need. It must not wait for
    the device, nor read numbers from it; memory that it allocates is its own. Other threads of the host may go on
    allocating meanwhile.
    """

    def __init__(self, function: Callable[..., Any], stream: Any, pool: Any, *inputs: Tensor) -> None:
        self._inputs = [tensor.detach().clone() for tensor in inputs]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.results = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        for kept, tensor in zip(self._inputs, inputs, strict=True):
            kept.copy_(tensor)
        self._graph.replay()
        return self.results


class _CapturedPass:
    """A pass whose forward and backward passes are replayed; those for new cotangents' shapes are captured first.

    Every forward pass overwrites what the one before it kept.

    Attributes:
        turn: how many forward passes there were.
    """

    def __init__(self, function: Function, x: Tensor) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._forward = _Captured(lambda x: Pass(function, x), self._stream, self._pool, x)
        self._backward: dict[Hashable, _Captured] = {}
        self.turn = 0

    def run(self, x: Tensor) -> Tensor:
        self.turn += 1
        value: Tensor = self._forward(x).value
        return value

    def pull(self, each: bool, cotangents: Tensor) -> Tensor:
        key = each, cotangents.shape
        if key not in self._backward:
            captured: Pass = self._forward.results
            pull = captured.pull_each if each else partial(captured.pull, keep=True)
            self._backward[key] = _Captured(pull, self._stream, self._pool, cotangents)
        result: Tensor = self._backward[key](cotangents)
        return result


class _ReplayedPass(Pass):
    """One use of a captured pass. What it returns is overwritten by the next use."""

    def __init__(self, owner: "Replay", captured: _CapturedPass, function: Function, x: Tensor) -> None:
        self._owner, self._captured, self._function, self._x = owner, captured, function, x
        self.value = captured.run(x)
        self._turn = captured.turn

    def pull(self, cotangent: Tensor, keep: bool = False) -> Tensor:
        return self._owner.attempt(
            lambda: self._replay(False, cotangent),
            lambda: Pass(self._function, self._x).pull(cotangent),
        )

    def pull_each(self, cotangents: Tensor) -> Tensor:
        return self._owner.attempt(
            lambda: self._replay(True, cotangents),
            lambda: Pass(self._function, self._x).pull_each(cotangents),
        )

    def _replay(self, each: bool, cotangents: Tensor) -> Tensor:
        if self._captured.turn != self._turn:
            self._captured.run(self._x)
            self._turn = self._captured.turn
        return self._captured.pull(each, cotangents)


class Replay:
    """The passes of one model, captured when they come for the second time and replayed from then on.

    Captured passes keep their activations between calls. A capture that fails is the last one: passes are then run by
    torch. Running out of memory is for the caller to handle, after everything captured has been freed.
    """

    def __init__(self) -> None:
        self._seen: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _CapturedPass] = {}
        self._addresses: list[int] = []
        self._failed = False

    def __call__(self, name: Hashable, function: Function, x: Tensor, weights: Iterable[Tensor]) -> Pass:
        """Run `function`, which is the same for the same name, at x.

        Args:
            weights: what `function` reads beside x. If one of them has moved, nothing that was captured is valid.
        """
        addresses = [weight.data_ptr() for weight in weights]
        if addresses != self._addresses:
            self.release()
            self._addresses = addresses
        key = name, x.shape, x.dtype
        self._seen[key] += 1
        if self._seen[key] == 1 or self._failed:
            return Pass(function, x)
        return self.attempt(lambda: self._replayed(key, function, x), lambda: Pass(function, x))

    def _replayed(self, key: Hashable, function: Function, x: Tensor) -> Pass:
        if key not in self._captured:
            self._captured[key] = _CapturedPass(function, x)
        return _ReplayedPass(self, self._captured[key], function, x)

    def attempt(self, replay: Callable[[], T], plain: Callable[[], T]) -> T:
        """The result of `replay`, or where it fails, that of `plain`."""
        if not self._failed:
            try:
                return replay()
            except torch.cuda.OutOfMemoryError:
                self.release()
                raise
            except RuntimeError as error:  # what cannot be captured fails with errors of many kinds
                logging.warning("JEPA guidance: the encoder's passes cannot be captured: %s", error)
                self._failed = True
                self.release()
        return plain()

    def release(self) -> None:
        """Free everything captured; it is captured anew when it comes again twice."""
        self._captured.clear()
        self._seen.clear()
