"""Duplicates among many pictures: the same bytes, or embeddings that lie close together.

Every pair is accounted for: a pair is only left out if a bound proves that it lies too far apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Two embeddings that are nearer than this share of the spread of all are one picture. Of robots of the demo world (DINOv2
# ViT-S/14 at 112 px) rounding to 8 bits moves 16 by 0.008 at most; the most alike two of 300 lie 0.028 apart.
SAME = 0.02
# The default of the largest cosine distance between near-duplicates; research/effects/duplicates.py measures it.
DISTANCE = 0.01

_AXES = 32  # principal axes that bound a distance from below
_SAMPLE = 4096  # embeddings that the axes are found on
_LEAF = 256  # points of a leaf, at most
_COLUMNS = 4096  # points that a leaf is compared with at once: a tile small enough for a processor's cache
_SLACK = 1e-5  # above the rounding of a squared distance of unit vectors in float32
_CHECKED = 8192  # pairs checked at once in float64


class Components:
    """The connected components of a graph that grows: union-find over many edges at once.

    Attributes:
        root: (n,) int64, for each node the lowest node of its component.
    """

    def __init__(self, count: int) -> None:
        self.root = torch.arange(count, device="cpu")

    def join(self, left: Tensor, right: Tensor) -> None:
        """Add the edges between nodes left (E,) and right (E,)."""
        while True:
            a, b = self.root[left], self.root[right]
            apart = a != b
            if not apart.any():
                return
            left, right = left[apart], right[apart]
            low, high = torch.minimum(a[apart], b[apart]), torch.maximum(a[apart], b[apart])
            self.root.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(above := self.root[self.root], self.root):
                self.root = above


def find_duplicates(hashes: Sequence[str], embeddings: Tensor, distance: float = DISTANCE) -> list[list[int]]:
    """Return groups of two pictures or more: each is linked to another by equal hashes or by close embeddings.

    Args:
        hashes: N, of the files' contents.
        embeddings: (N, d) float32, finite. Scaled to length 1 in place, since a copy of a million would be large.
        distance: two embeddings are close if 1 - cos of their angle is at most this; 0 or more, below 1.

    Returns:
        Indices, ascending within a group; groups by their first index.
    """
    components = Components(len(hashes))
    first: dict[str, int] = {}
    same = torch.tensor(
        [first.setdefault(one, place) for place, one in enumerate(hashes)], dtype=torch.long, device="cpu"
    )
    components.join(torch.arange(len(hashes), device="cpu"), same)
    if len(hashes) > 1:
        embeddings /= embeddings.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        with one_thread():
            join_close(components, embeddings, 2 * distance)  # |a - b|^2 = 2 (1 - cos)
    groups: dict[int, list[int]] = {}
    for place, root in enumerate(components.root.tolist()):
        groups.setdefault(root, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


@torch.inference_mode(False)
def first_of_each(embeddings: Tensor) -> Tensor:
    """For each of some pictures the index of an earlier one that is the same, by SAME, or its own: (N,) int64.

    Args:
        embeddings: (N, d) float32, finite.
    """
    if len(embeddings) < 2:
        return torch.zeros(len(embeddings), dtype=torch.int64, device="cpu")
    components = Components(len(embeddings))
    units = embeddings / embeddings.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    with one_thread():
        join_close(components, units, (SAME * spread(units)) ** 2)
    # joined are pictures of one direction, some by way of others
    apart = (embeddings - embeddings[components.root]).norm(dim=1)
    return torch.where(
        apart <= SAME * spread(embeddings), components.root, torch.arange(len(embeddings), device="cpu")
    )


def spread(embeddings: Tensor) -> float:
    """The root mean square distance of embeddings (N, d) from their mean."""
    exact = embeddings.double()
    return (exact - exact.mean(0)).square().sum(1).mean().sqrt().item()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: threads that share small tiles mostly wait for each other, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def join_close(components: Components, points: Tensor, limit: float) -> None:
    """Join all pairs of points (N, d) whose squared distance is at most `limit`; unit vectors, float32."""
    short = shortened(points)
    leaves = split(short, torch.arange(len(short), device="cpu"))
    low = torch.stack([short[leaf].amin(0) for leaf in leaves])
    high = torch.stack([short[leaf].amax(0) for leaf in leaves])
    # (-2 p, 1, |p|^2) . (q, |q|^2, 1) = |p - q|^2: one product bounds the distances of a tile
    squares, ones = short.square().sum(1, keepdim=True), torch.ones(len(short), 1, device="cpu")
    left, right = torch.cat([-2 * short, ones, squares], 1), torch.cat([short, squares, ones], 1)
    for place, leaf in enumerate(leaves):
        gaps = torch.maximum(low[place:] - high[place], low[place] - high[place:]).clamp_min(0)
        near = (gaps.square().sum(1) <= limit + _SLACK).nonzero()[:, 0] + place
        for columns in torch.cat([leaves[one] for one in near.tolist()]).split(_COLUMNS):
            bounds = left[leaf] @ right[columns].T
            if bounds.amin() <= limit + _SLACK:
                join_possible(components, points, limit, bounds <= limit + _SLACK, leaf, columns)


def shortened(points: Tensor) -> Tensor:
    """Return short vectors (N, m), never farther apart than the unit vectors (N, d) they stand for.

    They hold the principal axes, and what is left of the length beside them: |p - q|^2 is at least the squared distance
    along the axes plus (rest of p - rest of q)^2.
    """
    sample = points[torch.linspace(0, len(points) - 1, min(_SAMPLE, len(points)), device="cpu").long()]
    mean = sample.mean(0)
    _, axes = torch.linalg.eigh((sample - mean).T @ (sample - mean))  # ascending
    axes = axes[:, -_AXES:].flip(1)
    along = points @ axes - mean @ axes
    # |p - mean|^2 of unit vectors, without a copy of them
    squares = 1 - 2 * (points @ mean) + mean.square().sum()
    rest = (squares - along.square().sum(1)).clamp_min(0).sqrt()
    return torch.cat([along, rest[:, None]], 1)


def split(points: Tensor, index: Tensor) -> list[Tensor]:
    """Halve points[index] at the median of the widest axis, again and again; returns the leaves' indices."""
    if len(index) <= _LEAF:
        return [index]
    inside = points[index]
    widest = int((inside.amax(0) - inside.amin(0)).argmax())
    order = index[inside[:, widest].argsort()]
    half = len(order) // 2
    return split(points, order[:half]) + split(points, order[half:])


def join_possible(
    components: Components, points: Tensor, limit: float, possible: Tensor, rows: Tensor, columns: Tensor
) -> None:
    """Join those pairs of a tile that are `possible` (R, C) and close; rows (R,) and columns (C,) are indices of points."""
    possible &= components.root[rows][:, None] != components.root[columns][None]
    across, down = possible.any(1), possible.any(0)
    if not across.any():
        return
    rows, columns, possible = rows[across], columns[down], possible[across][:, down]
    squares = 2 - 2 * points[rows] @ points[columns].T
    near = possible & (squares <= limit - _SLACK)
    one, other = near.nonzero(as_tuple=True)
    components.join(rows[one], columns[other])
    one, other = (possible & ~near & (squares <= limit + _SLACK)).nonzero(as_tuple=True)
    for some in torch.arange(len(one), device="cpu").split(_CHECKED):
        left, right = rows[one[some]], columns[other[some]]
        close = (points[left].double() - points[right].double()).square().sum(1) <= limit
        components.join(left[close], right[close])
