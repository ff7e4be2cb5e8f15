"""Forms of novelty that were compared with the mean distance to the nearest: research/effects/novelty.py has the table."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from jepa_core.novelty import NEIGHBOURS, Distance, Nearest

SHRINKAGE = 0.1  # share of the mean variance that is added to every variance before whitening
SOFTNESS = (
    0.1  # a soft minimum's temperature, as a share of the mean distance between a point and its nearest
)
SOFT_NEIGHBOURS = 8 * NEIGHBOURS


def spacing(points: Tensor, k: int) -> float:
    """The mean distance between a point and the k-th nearest other, of some of the points (N, d); 1 if all are the same."""
    sample = points[:: max(1, len(points) // 500)]
    distances = torch.cdist(sample, points).topk(min(k + 1, len(points)), largest=False).values
    return float(distances[:, -1].mean()) or 1.0


class Soft:
    """A soft minimum of the distances to the nearest points (N, d)."""

    def __init__(self, points: Tensor) -> None:
        self.nearest = Nearest(points, SOFT_NEIGHBOURS)
        self.temperature = SOFTNESS * spacing(points, 1)

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        distances = self.nearest.to_nearest(embeddings, skip)
        return -self.temperature * (-distances / self.temperature).logsumexp(1)


class Mapped:
    """A form of the points (N, d) and the embeddings after a differentiable map."""

    def __init__(
        self, points: Tensor, embed: Callable[[Tensor], Tensor], form: Callable[[Tensor], Distance] = Nearest
    ) -> None:
        self.embed, self.distance = embed, form(embed(points))

    def __call__(self, embeddings: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.distance(self.embed(embeddings), skip)


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
        self.width = spacing(points, k)

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
    "soft L2": Soft,
    "cosine": lambda points: Mapped(points, unit_length),
    "soft cosine": lambda points: Mapped(points, unit_length, Soft),
    "whitened": lambda points: Mapped(points, whitening(points)),
    "soft whitened": lambda points: Mapped(points, whitening(points), Soft),
    "Mahalanobis": Mahalanobis,
    "kernel density": KernelDensity,
}
