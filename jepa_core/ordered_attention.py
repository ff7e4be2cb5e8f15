"""Attention whose backward pass adds up in the same order each time."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Bytes of one matrix of attention weights in the backward pass; a few of them exist at a time.
_CHUNK = 1 << 26


def ordered_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """torch's scaled_dot_product_attention, with a backward pass by matrix products, a few queries at a time.

    The memory-efficient kernel that CUDA has for it lets several blocks add to one gradient, in whatever order they
    finish. Products of matrices have a fixed order, and need no matrix of all queries and keys.

    Args:
        query: (..., N, d). key: (..., M, d). value: (..., M, e), with the same leading dimensions.
        mask: boolean, or added to the scores; it gets no gradient.
        scale: of the scores; None takes d ** -0.5.

    Returns:
        (..., N, e)
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _OrderedAttention.apply(query, key, value, mask, scale)
    return result


class _OrderedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        of_query, of_key, of_value = ctx.needs_input_grad[:3]
        exact = torch.promote_types(query.dtype, torch.float32)
        width = exact.itemsize * key.shape[-2] * math.prod(query.shape[:-2])
        rows = max(1, _CHUNK // max(1, width))
        d_query, d_key, d_value = [], torch.zeros_like(key, dtype=exact), torch.zeros_like(value, dtype=exact)
        for start in range(0, query.shape[-2], rows):
            part = slice(start, start + rows)
            q, g = query[..., part, :], cotangent[..., part, :]
            weights = _weights(q, key, _rows(mask, part), ctx.scale)
            if of_value:
                d_value += weights.to(g.dtype).mT @ g
            if not (of_query or of_key):
                continue
            d_scores = (g @ value.mT).to(exact)
            d_scores = weights * (d_scores - (weights * d_scores).sum(-1, keepdim=True)) * ctx.scale
            d_scores = d_scores.to(q.dtype)
            if of_query:
                d_query.append(d_scores @ key)
            if of_key:
                d_key += d_scores.mT @ q
        return (
            torch.cat(d_query, -2) if of_query else None,
            d_key.to(key.dtype) if of_key else None,
            d_value.to(value.dtype) if of_value else None,
            None,
            None,
        )


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The attention weights (..., n, M), in float32 at least: half precision is too coarse for an exponent."""
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(exact) @ key.to(exact).mT * scale
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    # a query that may see no key has no weights; its softmax is not a number
    return scores.softmax(-1).masked_fill(scores.isneginf(), 0)


def _rows(mask: Tensor | None, part: slice) -> Tensor | None:
    """The rows of a mask for some of the queries; one row may stand for all."""
    return mask if mask is None or mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., part, :]
