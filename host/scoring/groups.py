"""Groups of images that look alike to an encoder, and of each its middle, its most typical and its rarest image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .choice import best_of

CHOICES = range(2, 9)  # numbers of groups that are tried when it may be chosen


@dataclass(frozen=True)
class Group:
    """Images that look alike.

    Attributes:
        members: indices, ascending.
        medoid: the member whose distances to the others add up to the least. typical, rarest: by what makes images rare.
    """

    members: list[int]
    medoid: int
    typical: int
    rarest: int


def joint_points(each: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Embeddings under several encoders as points of one space: (N, d), on the CPU in float64.

    Those of a single encoder stay as they are. Otherwise the squared distance of two images is the weighted mean of their
    squared distances under the encoders, each in units of its median distance.

    Args:
        each: for each encoder the embeddings (N, its d).

    Raises:
        ValueError: an embedding is not finite.
    """
    for points in each:
        for index in (~points.isfinite().all(1)).nonzero()[:1]:
            raise ValueError(f"encoder gives NaN for image {int(index)}; use another encoder or precision")
    if len(each) == 1:
        return each[0].double().cpu()
    scaled = []
    for points, weight in zip(each, weights, strict=True):
        far = points.double().cpu()
        apart = torch.pdist(far)
        scaled.append(weight**0.5 * far / (float(apart.median()) or 1.0 if len(apart) else 1.0))
    return torch.cat(scaled, 1)


def groups_of(points: Tensor, count: int) -> list[int]:
    """The group of each image; the largest is 0, and of equal ones that with the first image.

    Ward's linkage joins the two groups whose joining adds the least to the squared distances from the groups' means. Of the
    usual linkages it alone avoids a large group beside several single outliers, which would make a poor map.

    Args:
        points: (N, d). Points that coincide are never parted, so there may be fewer groups than asked for.
        count: how many groups; 0 chooses the number of CHOICES with the highest mean silhouette, of equal ones the lowest;
            and one group where no number has a mean above 0.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # only here: it would delay the host's start

    total = len(points)
    if total == 1 or (total == 2 and not count):
        return [0] * total
    tree = linkage(points.numpy(), "ward")
    if count:
        return _sorted_by_size(fcluster(tree, count, "maxclust").tolist())
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    best, chosen = 0.0, [0] * total
    for number in CHOICES:
        found = fcluster(tree, number, "maxclust").tolist()
        if number < total and (mean := silhouette(distances, found)) > best:
            best, chosen = mean, found
    return _sorted_by_size(chosen)


def _sorted_by_size(labels: Sequence[int]) -> list[int]:
    order = sorted(set(labels), key=lambda label: (-labels.count(label), labels.index(label)))
    return [order.index(label) for label in labels]


def silhouette(distances: Tensor, labels: Sequence[int]) -> float:
    """The mean over the images of (b - a) / max(a, b), or 0 for a single group (Rousseeuw, 1987).

    a is an image's mean distance to the others of its group, b that to the nearest other group; one that is alone in its
    group counts 0.

    Args:
        distances: (N, N).
    """
    of_each = torch.tensor(labels)
    found = of_each.unique()
    if len(found) < 2:
        return 0.0
    inside = (of_each[:, None] == found).double()  # (N, groups)
    sizes = inside.sum(0)
    sums = distances.double() @ inside
    own = inside.bool()
    a = sums[own] / (sizes - 1).expand_as(sums)[own].clamp(min=1)
    b = (sums / sizes).masked_fill(own, torch.inf).min(1).values
    larger = torch.maximum(a, b)
    alone = sizes.expand_as(sums)[own] == 1
    values = torch.where(alone | (larger == 0), 0.0, (b - a) / larger)
    return float(values.mean())


def described(
    points: Tensor, labels: Sequence[int], values: Sequence[float], *, highest: bool
) -> list[Group]:
    """The groups, the largest first.

    Args:
        points: (N, d). labels: see groups_of.
        values: how rare each image is; `highest`: higher is rarer.

    Raises:
        ValueError: all values of a group are NaN.
    """
    found = []
    for label in range(max(labels) + 1):
        inside = [own == label for own in labels]
        members = [index for index, own in enumerate(inside) if own]
        near = torch.cdist(points[members], points[members]).sum(1)
        found.append(
            Group(
                members,
                members[int(near.argmin())],
                best_of(values, inside, count=1, highest=not highest)[0],
                best_of(values, inside, count=1, highest=highest)[0],
            )
        )
    return found
