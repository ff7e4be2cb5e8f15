"""Backward passes on CUDA that add up in the same order each time, so that one seed gives one image.

torch's switch for that, use_deterministic_algorithms, is no answer for a whole pass: cuBLAS then raises unless an
environment variable was set before the process began. docs/determinism.md lists what each operation does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import deterministic as _deterministic

from ...jepa_core.ordered_attention import ordered_attention

_ERROR = (
    2  # of torch's debug mode for deterministic operations: no warning, but another algorithm or an error
)
_FLASH = "ScaledDotProductFlash"
# What other packs put in its place has no backward pass.
_TORCH_ATTENTION = torch._C._nn.scaled_dot_product_attention
_memory: Any = _deterministic  # its type is not known to mypy
_COPIED_EDGES = ("replicate", "reflect")


@contextmanager
def ordered(device: str = "cuda") -> Iterator[None]:
    """Within the block, what is differentiated on devices of this type adds up in the same order each time.

    Convolutions use cuDNN's deterministic algorithms, without trying out which is fastest. Attention and padding are
    replaced where a gradient is wanted. The backward pass must run in the block. Everything is put back on any exit.
    """
    cudnn: Any = torch.backends.cudnn
    table = vars(F)
    attend, pad = F.scaled_dot_product_attention, F.pad
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        # Replaced by name, since the host, its networks and those of other packs call them so, from any thread.
        table["scaled_dot_product_attention"] = _attention(attend, device)
        table["pad"] = _padding(pad, device)
        yield
    finally:
        table["scaled_dot_product_attention"], table["pad"] = attend, pad
        cudnn.deterministic, cudnn.benchmark = before


# --- attention ----------------------------------------------------------------------------------------------------


def _attention(attend: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
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
        options = (attn_mask, dropout_p, is_causal)
        inputs = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        if query.device.type != device or not _wants_gradient(*inputs):
            return attend(query, key, value, *options, scale=scale, enable_gqa=enable_gqa)
        if takes_flash(query, key, value, *options, enable_gqa):
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                result = _TORCH_ATTENTION(query, key, value, *options, scale=scale, enable_gqa=enable_gqa)
            if node := _flash_node(result):
                node.register_prehook(_strict.on)
                node.register_hook(_strict.off)
                return result
        if enable_gqa:
            key, value = (_for_each_head(part, query.shape[-3]) for part in (key, value))
        if is_causal:
            attn_mask = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        same_heads = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        if dropout_p or not same_heads or (attn_mask is not None and attn_mask.requires_grad):
            with sdpa_kernel(SDPBackend.MATH):
                return _TORCH_ATTENTION(query, key, value, attn_mask, dropout_p, scale=scale)
        return ordered_attention(query, key, value, attn_mask, scale)

    return attention


def takes_flash(*options: Any) -> bool:
    """Whether torch's flash attention takes this call; options are those of SDPAParams."""
    return torch.backends.cuda.can_use_flash_attention(torch.backends.cuda.SDPAParams(*options))


def _for_each_head(part: Tensor, heads: int) -> Tensor:
    """Keys or values (..., groups, M, d), repeated for every head of their group."""
    copies = heads // part.shape[-3]
    return part.unsqueeze(-3).expand(*part.shape[:-2], copies, *part.shape[-2:]).flatten(-4, -3)


class _Strict:
    """torch's deterministic switch, on while a single operation of a backward pass runs."""

    def __init__(self) -> None:
        self._before: tuple[int, bool] | None = None

    def on(self, *_: Any) -> None:
        self._before = torch.get_deterministic_debug_mode(), _memory.fill_uninitialized_memory
        torch.set_deterministic_debug_mode(_ERROR)
        _memory.fill_uninitialized_memory = False

    def off(self, *_: Any) -> None:
        if self._before is not None:
            mode, _memory.fill_uninitialized_memory = self._before
            torch.set_deterministic_debug_mode(mode)
            self._before = None


_strict = _Strict()


@contextmanager
def no_switch_left() -> Iterator[None]:
    """Put torch's deterministic switch back if an operation of the backward pass in the block raises."""
    try:
        yield
    finally:
        _strict.off()


def _flash_node(result: Tensor) -> Any:
    """The backward pass of flash attention, which adds up in order only under the switch; None if it has another name."""
    node: Any = result.grad_fn
    # torch pads heads of odd widths, and cuts the result
    candidates = (node, *(before for before, _ in node.next_functions[:1]))
    return next((one for one in candidates if one is not None and _FLASH in one.name()), None)


# --- padding ------------------------------------------------------------------------------------------------------


def _padding(plain: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        if mode not in _COPIED_EDGES or input.device.type != device or not _wants_gradient(input):
            return plain(input, pad, mode, value)
        for axis, sides in enumerate(zip(pad[::2], pad[1::2], strict=True)):
            if any(sides):
                input = _padded(input, -1 - axis, *sides, mode)
        return input

    return pad


def _padded(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """One axis padded from slices. torch's padding lets several threads add to the gradient of one entry."""
    size = x.shape[axis]
    if mode == "replicate":
        shape = list(x.shape)
        shape[axis] = before
        start = x.narrow(axis, 0, 1).expand(shape)
        shape[axis] = after
        end = x.narrow(axis, size - 1, 1).expand(shape)
    else:
        start = x.narrow(axis, 1, before).flip(axis)
        end = x.narrow(axis, size - 1 - after, after).flip(axis)
    return torch.cat([start, x, end], axis)


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
