"""Counting the bytes that a computation holds at most, on tensors without data (the device "meta")."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Fused attention of this head width and in half precision is flash attention's, anything else the general one's.
FLASH_HEAD_WIDTH = 256


class Peak(NamedTuple):
    """Bytes: the most alive at any time, and alive when the forward pass was over (kept for the backward)."""

    peak: int
    kept: int


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operations make while the mode is on: live now, and the peak so far.

    Args:
        weights: tensors that were there before; so were those that an operation takes before any returned them.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        with torch._C.DisableTorchFunctionSubclass():  # the results have their class already
            result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _release(self, size: int) -> None:
        self.live -= size


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def fused_attention() -> Iterator[None]:
    """Make attention on meta tensors a GPU's fused kernel; torch would otherwise write the attention matrix out.

    Not a mode: those are off in the backward pass of a function that runs again.
    """
    stock = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not query.is_meta or attn_mask is not None or enable_gqa:
            options = (attn_mask, dropout_p, is_causal)
            return stock(query, key, value, *options, scale=scale, enable_gqa=enable_gqa)
        if query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= FLASH_HEAD_WIDTH:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
        needs_grad = any(tensor.requires_grad for tensor in (query, key, value))
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, None, needs_grad, scale=scale)[0]

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = stock


def peak_of(run: Callable[[], Any]) -> int:
    """Return the most bytes alive at any time while `run` works, beside what was there before."""
    with fused_attention(), LiveStorages() as storages:
        run()
    return storages.peak


def peak_of_backward(function: Callable[..., Tensor | Sequence[Tensor]], *inputs: Tensor) -> Peak:
    """Count one evaluation of function(*inputs) and the gradient of its outputs with respect to the inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with fused_attention(), LiveStorages() as storages:
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        kept = storages.live
        cotangents = [torch.ones_like(output) for output in outputs]
        torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    return Peak(storages.peak, kept)
