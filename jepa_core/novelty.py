"""Novelty: how far an image's embedding lies from reference images, and its gradient. Higher is rarer.

It is the other meaning of rare beside the JEPA score: not how sensitive the encoder is at an image, but how unlike the
image is to others that count as usual. Its gradient costs one forward and one backward pass of the encoder.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .duplicates import SAME, spread
from .encoder import Encoder
from .precision import differentiable, full_precision

NEIGHBOURS = 5
SAMPLE = 1000  # of a reference's pictures, this many tell how far its pictures are from each other
_CHUNK = 256


class Distance(Protocol):
    """How far embeddings (B, d) are from some points, (B,). Differentiable; embeddings decide dtype and device."""

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        """skip: (B,), for each embedding the index of a point that does not count."""
        ...


class Nearest:
    """The mean distance to the k nearest points, or to all if there are fewer.

    Which points are nearest is found without a graph: between two images where that changes it is constant, so the
    derivative is exact. At a point itself the derivative of the distance is taken as 0.

    Args:
        points: (N, d), N >= 1.
        k: neighbours.
    """

    def __init__(self, points: Tensor, k: int = NEIGHBOURS) -> None:
        self.points = points
        self.squares = points.square().sum(1)
        self.k = k

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.to_nearest(embeddings, skip).mean(1)

    def to_nearest(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        """The distances to the k nearest, (B, k), nearest first."""
        # the points follow the encoder to its device once
        self.points, self.squares = self.points.to(embeddings), self.squares.to(embeddings)
        with torch.no_grad():
            # |e - p|^2 without |e|^2, which is the same for all points
            order = self.squares - 2 * embeddings @ self.points.T
            if skip is not None:
                order[torch.arange(len(embeddings)), skip] = torch.inf
            count = min(self.k, len(self.points) - (skip is not None))
            nearest = order.topk(count, largest=False).indices
        return (embeddings[:, None] - self.points[nearest]).norm(dim=-1)


class Novelty(NamedTuple):
    """Of a batch: the novelty (B,), its gradient with respect to the preprocessed images, and how many encoder passes, one
    after the other, both took.
    """

    value: Tensor
    grad: Tensor
    encoder_calls: int = 2


def novelty_gradient(
    encoder: Encoder,
    x: Tensor,
    distance: Callable[[Tensor], Tensor],
    on_pass: Callable[[], None] = lambda: None,
) -> Novelty:
    """Return distance(encoder(x)) and its gradient, in full precision: one forward and one backward pass.

    Args:
        x: (B, *encoder.input_shape), preprocessed.
        distance: differentiable, (B, d) -> (B,).
        on_pass: called after each pass; may raise to stop.
    """
    with differentiable(encoder), full_precision(encoder.weight.device), encoder.fused_attention():
        leaf = x.detach().to(encoder.weight).clone().requires_grad_()
        embeddings = encoder(leaf)
        on_pass()
        value = distance(embeddings)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        on_pass()
    return Novelty(value.detach(), grad)


@torch.no_grad()
def embed(encoder: Encoder, x: Tensor, on_pass: Callable[[], None] = lambda: None) -> Tensor:
    """The embeddings (B, d) of preprocessed images (B, *encoder.input_shape), in full precision."""
    with encoder.fused_attention():
        embeddings = encoder(x)
    on_pass()
    return embeddings


def patch_novelty(
    encoder: Encoder,
    x: Tensor,
    distance: Callable[[Tensor], Tensor],
    on_pass: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return how much the novelty of each image depends on each patch: the norm of its gradient there.

    Args:
        x: (B, 3, S, S), preprocessed.
        distance, on_pass: see novelty_gradient.

    Returns:
        (B, S / patch, S / patch) float64 on the CPU, one number per patch of the encoder; at least 0.
    """
    patch = encoder.model.config.patch_size
    grad = novelty_gradient(encoder, x, distance, on_pass).grad
    squares = grad.double().cpu().square().sum(1).unflatten(1, (-1, patch)).unflatten(3, (-1, patch))
    return squares.sum((2, 4)).sqrt()


@torch.no_grad()
def distances_within(
    points: Tensor, count: int = SAMPLE, form: Callable[[Tensor], Distance] = Nearest
) -> Tensor:
    """The novelty of points (N, d) among themselves, of each against all others: (min(N, count),), or (0,) of one point.

    Args:
        count: of more points, this many take part, evenly spread.
        form: makes the distance from points.
    """
    if len(points) < 2:
        return points.new_zeros(0)
    chosen = torch.linspace(0, len(points) - 1, min(count, len(points)), device="cpu").round().long()
    distance = form(points)
    return torch.cat([distance(points[some], some) for some in chosen.split(_CHUNK)])


class Distances:
    """Distances to the pictures of one part of a reference, each of which is there once, on the CPU."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings
        self._distance = Nearest(embeddings)
        self._same = SAME * spread(embeddings)

    def of(self, embeddings: Tensor) -> Tensor:
        """How far embeddings (B, d) are from the pictures: (B,). A picture of the reference is compared with the others."""
        return torch.cat([self._of(some) for some in embeddings.split(_CHUNK)])

    def _of(self, embeddings: Tensor) -> Tensor:
        found = self._distance(embeddings)
        nearest = torch.cdist(embeddings, self.embeddings).argmin(1)
        apart = (embeddings - self.embeddings[nearest]).norm(dim=1)
        inside = apart <= self._same
        if inside.any() and len(self.embeddings) > 1:
            found[inside] = self._distance(embeddings[inside], nearest[inside])
        return found

    @cached_property
    def own(self) -> Tensor:
        """How far pictures of the reference are from the others: of at most SAMPLE, evenly spread, in their order."""
        return distances_within(self.embeddings)

    @cached_property
    def median(self) -> float:
        """The median of `own`, or 1 where that says nothing: for one picture, or pictures that are all alike."""
        return float(self.own.median()) or 1.0 if len(self.own) else 1.0
