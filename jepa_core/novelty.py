"""Novelty: how far an image's embedding lies from reference images, and its gradient. Higher is rarer.

It is the other meaning of rare beside the JEPA score: not how sensitive the encoder is at an image, but how unlike the
image is to others that count as usual. Its gradient costs one forward and one backward pass of the encoder.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .encoder import Encoder
from .precision import differentiable, full_precision

NEIGHBOURS = 5
SHRINKAGE = 0.1  # share of the mean variance that is added to every variance before whitening


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
        embed: (B, d) -> (B, d'), a differentiable map of embeddings and points to where distances are taken.
        softness: 0 counts the k nearest alike. Above 0, 8 k neighbours count, weighted by a soft minimum whose
            temperature is this fraction of the mean distance between a point and its nearest.
    """

    def __init__(
        self,
        points: Tensor,
        k: int = NEIGHBOURS,
        embed: Callable[[Tensor], Tensor] = lambda embeddings: embeddings,
        softness: float = 0.0,
    ) -> None:
        self.embed = embed
        self.points = embed(points)
        self.squares = self.points.square().sum(1)
        self.k = 8 * k if softness else k
        self.temperature = softness * self._spacing() if softness else 0.0

    def to(self, like: Tensor) -> "Nearest":
        """Move the points to the dtype and device of `like`."""
        self.points, self.squares = self.points.to(like), self.squares.to(like)
        return self

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        z = self.embed(embeddings)
        self.to(z)
        with torch.no_grad():
            # |z - p|^2 without |z|^2, which is the same for all points
            order = self.squares - 2 * z @ self.points.T
            if skip is not None:
                order[torch.arange(len(z)), skip] = torch.inf
            count = min(self.k, len(self.points) - (skip is not None))
            nearest = order.topk(count, largest=False).indices
        distances = (z[:, None] - self.points[nearest]).norm(dim=-1)
        if not self.temperature:
            return distances.mean(1)
        return -self.temperature * (-distances / self.temperature).logsumexp(1)

    def _spacing(self) -> float:
        sample = self.points[:: max(1, len(self.points) // 500)]
        distances = torch.cdist(sample, self.points)
        return float(distances.topk(min(2, len(self.points)), largest=False).values[:, -1].mean())


class Mahalanobis:
    """The distance to the points' mean, in units of their spread along each direction; points (N, d)."""

    def __init__(self, points: Tensor) -> None:
        self.whiten = whitening(points)

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.whiten(embeddings).norm(dim=1)


class KernelDensity:
    """Minus the logarithm of a Gaussian kernel density of the points (N, d), whose width is the mean distance between a
    point and its k-th nearest.
    """

    @torch.inference_mode(False)
    def __init__(self, points: Tensor, k: int = NEIGHBOURS) -> None:
        self.points = points.clone()  # a normal tensor, which a backward pass may save
        sample = points[:: max(1, len(points) // 500)]
        distances = torch.cdist(sample, points).topk(min(k + 1, len(points)), largest=False).values
        self.width = float(distances[:, -1].mean()) or 1.0  # 0 if all points are the same

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        distances = torch.cdist(embeddings, self.points.to(embeddings))
        logs = -distances.square() / (2 * self.width**2)
        if skip is not None:
            logs = logs.scatter(1, skip[:, None], -torch.inf)
        return -logs.logsumexp(1)


def unit_length(embeddings: Tensor) -> Tensor:
    """Embeddings (B, d) scaled to length 1, so that distances depend on their angle alone."""
    return normalize(embeddings, dim=1)


@torch.inference_mode(False)  # a backward pass saves the matrix
def whitening(points: Tensor) -> Callable[[Tensor], Tensor]:
    """The map of embeddings (B, d) after which the points (N, d) have mean 0 and nearly the same variance everywhere."""
    centre = points.mean(0)
    values, vectors = torch.linalg.eigh(
        (points - centre).T.double() @ (points - centre).double() / len(points)
    )
    variances = values + SHRINKAGE * values.mean()
    variances = torch.where(variances > 0, variances, 1.0)  # 0 if all points are the same
    matrix = (vectors * variances.rsqrt()).to(points)

    def whiten(embeddings: Tensor) -> Tensor:
        return (embeddings - centre.to(embeddings)) @ matrix.to(embeddings)

    return whiten


FORMS: dict[str, Callable[[Tensor], Distance]] = {
    "L2": Nearest,
    "soft L2": lambda points: Nearest(points, softness=0.1),
    "cosine": lambda points: Nearest(points, embed=unit_length),
    "soft cosine": lambda points: Nearest(points, embed=unit_length, softness=0.1),
    "whitened": lambda points: Nearest(points, embed=whitening(points)),
    "soft whitened": lambda points: Nearest(points, embed=whitening(points), softness=0.1),
    "Mahalanobis": Mahalanobis,
    "kernel density": KernelDensity,
}

FORM = "L2"


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
def distances_within(points: Tensor, form: Callable[[Tensor], Distance], count: int = 1000) -> Tensor:
    """The novelty of points (N, d) among themselves, of each against all others: (min(N, count),), or (0,) of one point.

    Args:
        count: of more points, this many take part, evenly spread.
    """
    if len(points) < 2:
        return points.new_zeros(0)
    chosen = torch.linspace(0, len(points) - 1, min(count, len(points)), device="cpu").round().long()
    distance = form(points)
    return torch.cat([distance(points[some], some) for some in chosen.split(256)])
