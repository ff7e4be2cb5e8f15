"""The paper's protocol: measures of a set of pictures against the real ones of lowest score."""

import torch
from torch import Tensor

NEIGHBOURS = 5
SPATIAL_GROUPS = 32  # of channels, whose means are the spatial features


def spatial_features(maps: Tensor) -> Tensor:
    """The last maps (B, C, h, w) of a network as features that keep places: (B, 32 h w)."""
    return maps.unflatten(1, (SPATIAL_GROUPS, -1)).mean(2).flatten(1)


def frechet(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of normal distributions fitted to features (N, d) and (M, d) (arXiv 1706.08500).

    The trace of the square root of the product of the covariances is the nuclear norm of the product of the centred
    features: much faster than the root of a matrix if N and M are less than d. Equal to torch-fidelity's (tests).
    """
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    common = torch.linalg.svdvals(a @ b.T).sum()
    return float((mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * common)


class Neighbourhoods:
    """Improved precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797), with 5 neighbours.

    Args:
        real: features (M, d) of the reference. made: features (N, d).
    """

    def __init__(self, real: Tensor, made: Tensor) -> None:
        self.distances = torch.cdist(made.float(), real.float())
        self.own = torch.cdist(made.float(), made.float())
        self.radius = _radius(torch.cdist(real.float(), real.float()))

    def measures(self, rows: Tensor) -> dict[str, float]:
        """Of the rows (N,) of what was made, a mask."""
        distances = self.distances[rows]
        inside = distances <= self.radius
        radius = _radius(self.own[rows][:, rows])
        return {
            "precision": inside.any(1).float().mean().item(),
            "recall": (distances <= radius[:, None]).any(0).float().mean().item(),
            "density": inside.float().sum(1).mean().item() / NEIGHBOURS,
            "coverage": inside.any(0).float().mean().item(),
        }


def _radius(distances: Tensor) -> Tensor:
    """The distance (N,) from each row to its 5th nearest other, of distances (N, N) within a set."""
    return distances.topk(NEIGHBOURS + 1, largest=False).values[:, -1]
