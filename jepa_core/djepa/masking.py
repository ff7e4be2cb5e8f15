"""Which tokens are known: the random masks of training and the schedule of sampling (arXiv 2410.03755).

An order (B, N) is a random permutation of each image's tokens. Its first entries are the known tokens, so one
order defines a mask in training and all steps of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, cos, pi
from statistics import NormalDist

import torch
from torch import Tensor

MASK_RATIO_MEAN = 1.0
MASK_RATIO_DEVIATION = 0.25
MASK_RATIO_LEAST = 0.7


def random_masked_count(tokens: int, generator: torch.Generator) -> int:
    """How many of N tokens to mask: N r, rounded up, with r from normal(1, 0.25) truncated to [0.7, 1].

    The same number for a whole batch, so that all rows have the same length.
    """
    ratio = NormalDist(MASK_RATIO_MEAN, MASK_RATIO_DEVIATION)
    least, most = ratio.cdf(MASK_RATIO_LEAST), ratio.cdf(1.0)
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return min(tokens, ceil(tokens * ratio.inv_cdf(least + (most - least) * share)))


def random_orders(tokens: int, generators: Sequence[torch.Generator]) -> Tensor:
    """One random order per image, (B, N) int64, each drawn from the image's own generator."""
    return torch.stack([torch.randperm(tokens, generator=generator) for generator in generators])


def masked_counts(tokens: int, steps: int) -> list[int]:
    """How many tokens are still masked after each step: floor(N cos(pi/2 (s + 1) / S)), a list of S numbers.

    Every step reveals at least one token, and the last one all that are left; with 256 tokens in 64 steps, the formula
    alone would leave some steps without any.

    Raises:
        ValueError: steps is less than 1 or more than tokens.
    """
    if not 1 <= steps <= tokens:
        raise ValueError(f"steps must be from 1 to {tokens}, the number of tokens, got {steps}")
    counts: list[int] = []
    for step in range(1, steps):
        formula = int(tokens * cos(pi / 2 * step / steps))
        counts.append(max(1, min((counts or [tokens])[-1] - 1, formula)))
    return [*counts, 0]
