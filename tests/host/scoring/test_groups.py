"""Groups of points against a slow clustering, the silhouette's definition, and planted groups."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from jepa_guidance.host.scoring.groups import described, groups_of, joint_points, silhouette


def points_of(count: int, seed: int, length: int = 3) -> torch.Tensor:
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(sizes: list[int], seed: int, spread: float = 0.1) -> tuple[torch.Tensor, list[int]]:
    """Points close to centres that are far apart, in random order, and the group of each by size."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).permutation(labels)
    centres = 10 * torch.eye(len(sizes), 16, dtype=torch.float64)
    return centres[labels] + spread * points_of(len(labels), seed, 16), labels.tolist()


def by_merging(points: torch.Tensor, count: int) -> set[frozenset[int]]:
    """Ward's groups: join, again and again, the two whose joining adds the least to the squares within groups."""

    def squares(members: frozenset[int]) -> float:
        own = points[sorted(members)]
        return (own - own.mean(0)).square().sum().item()

    found = [frozenset([index]) for index in range(len(points))]
    while len(found) > count:
        one, other = min(
            combinations(found, 2),
            key=lambda two: squares(two[0] | two[1]) - squares(two[0]) - squares(two[1]),
        )
        found = [group for group in found if group not in (one, other)] + [one | other]
    return set(found)


def partition(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.array(labels) == label).tolist()) for label in set(labels)}


def mean_silhouette(points: torch.Tensor, labels: list[int]) -> float:
    """By its definition, image by image."""
    values = []
    for index, own in enumerate(labels):
        means = {}
        for label in set(labels):
            others = [other for other in range(len(labels)) if labels[other] == label and other != index]
            distances = [(points[index] - points[other]).norm().item() for other in others]
            means[label] = sum(distances) / len(distances) if distances else None
        a = means.pop(own)
        values.append(0.0 if a is None else (min(means.values()) - a) / max(a, min(means.values())))
    return sum(values) / len(values)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_merging_step_by_step(count, seed):
    points = points_of(12, seed)
    labels = groups_of(points, count)
    assert partition(labels) == by_merging(points, count)
    sizes = [labels.count(label) for label in range(max(labels) + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 not in sizes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [[9, 5, 3], [20, 12, 7, 6, 4], [8, 1]])
def test_planted_groups_are_found_and_their_number_is_chosen(seed, sizes):
    points, labels = planted(sizes, seed)
    assert groups_of(points, len(sizes)) == labels
    assert groups_of(points, 0) == labels


def test_of_equal_groups_that_with_the_first_image_comes_first():
    points = torch.tensor([[5.0], [0.0], [5.1], [0.1]], dtype=torch.float64)
    assert groups_of(points, 2) == [0, 1, 0, 1]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_silhouette_is_that_of_its_definition(count):
    points = points_of(15, count)
    labels = groups_of(points, count)
    assert silhouette(torch.cdist(points, points), labels) == pytest.approx(mean_silhouette(points, labels))


def test_the_chosen_number_has_the_highest_silhouette():
    points = points_of(30, 5)
    means = {count: mean_silhouette(points, groups_of(points, count)) for count in range(2, 9)}
    assert max(groups_of(points, 0)) + 1 == max(means, key=means.__getitem__)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_few_images_and_images_that_are_the_same(count):
    assert groups_of(points_of(1, 0), count) == [0]
    assert groups_of(torch.ones(6, 3, dtype=torch.float64), count) == [0] * 6
    assert groups_of(points_of(2, 0), count) == ([0, 1] if count == 4 else [0, 0])
    assert len(set(groups_of(points_of(3, 0), count))) == {0: 2, 1: 1, 4: 3}[count]


def test_of_each_group_the_middle_the_typical_and_the_rarest():
    points, labels = planted([6, 4, 1], 2, spread=1.0)
    values = points_of(11, 3, 1)[:, 0].tolist()
    values[labels.index(0)] = math.nan
    for highest in (False, True):
        for label, group in enumerate(described(points, labels, values, highest=highest)):
            members = [index for index, own in enumerate(labels) if own == label]
            assert group.members == members
            sums = {i: sum((points[i] - points[j]).norm().item() for j in members) for i in members}
            assert group.medoid == min(sums, key=sums.__getitem__)
            order = sorted((i for i in members if not math.isnan(values[i])), key=values.__getitem__)
            assert (group.rarest, group.typical) == (order[-1 if highest else 0], order[0 if highest else -1])


def test_one_encoder_keeps_its_embeddings():
    embeddings = points_of(5, 0).float()
    assert torch.equal(joint_points([embeddings], [1.0]), embeddings.double())


def test_several_encoders_count_by_weight_in_units_of_their_median_distance():
    each, weights = [points_of(9, 0, 4), 1000 * points_of(9, 1, 7)], [0.75, 0.25]
    joint = joint_points(each, weights)
    for one, other in combinations(range(9), 2):
        expected = 0.0
        for points, weight in zip(each, weights, strict=True):
            median = torch.pdist(points).median()
            expected += weight * ((points[one] - points[other]).norm() / median).square().item()
        assert (joint[one] - joint[other]).square().sum().item() == pytest.approx(expected)
    same = torch.ones(3, 2)
    assert joint_points([same, same], weights).isfinite().all()
    assert joint_points([same[:1], same[:1]], weights).isfinite().all()


def test_an_embedding_that_is_no_number_is_named():
    embeddings = points_of(4, 0)
    embeddings[2, 1] = math.nan
    with pytest.raises(ValueError, match="encoder gives NaN for image 2"):
        joint_points([points_of(4, 1), embeddings], [0.5, 0.5])
