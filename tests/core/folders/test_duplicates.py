"""Duplicates equal those that all pairs, one by one, give."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from jepa_core.duplicates import Components, find_duplicates, shortened
from tests.conftest import ROOT


def clustered(count: int, copies: int, length: int = 64, seed: int = 0, spread: float = 0.6) -> Tensor:
    """Embeddings (count, length) in clusters, with a falling spectrum as real ones have; the last are near copies."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, length + 1).float() ** -0.6
    centres = torch.randn(20, length, generator=generator) * scale
    points = centres[torch.randint(20, (count,), generator=generator)]
    points += spread * torch.randn(count, length, generator=generator) * scale
    if copies:
        # at all distances around the threshold
        amount = torch.linspace(0, 0.3, copies)[:, None]
        points[-copies:] = points[:copies] + amount * torch.randn(copies, length, generator=generator) * scale
    return points[torch.randperm(count, generator=generator)]


def by_all_pairs(hashes: list[str], embeddings: Tensor, distance: float) -> list[list[int]]:
    """The groups, by walking from picture to picture over the full matrix in float64."""
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).double()
    alike = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").square() <= 2 * distance
    alike |= torch.tensor([[a == b for b in hashes] for a in hashes])
    remaining, groups = set(range(len(hashes))), []
    while remaining:
        group, edge = set(), {min(remaining)}
        while edge:
            group |= edge
            edge = set(alike[sorted(edge)].any(0).nonzero()[:, 0].tolist()) - group
        remaining -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


@pytest.mark.parametrize("distance", [0.0, 0.005, 0.02, 0.1, 0.6])
@pytest.mark.parametrize("spread", [0.6, 0.05])
def test_groups_are_those_of_all_pairs(distance, spread):
    embeddings = clustered(1500, 300, spread=spread)
    hashes = [str(place % 1490) for place in range(1500)]
    expected = by_all_pairs(hashes, embeddings, distance)
    assert find_duplicates(hashes, embeddings.clone(), distance) == expected
    assert len(expected) > 1 or (distance, spread) in ((0.6, 0.6), (0.6, 0.05), (0.1, 0.05), (0.1, 0.6))


def test_embeddings_count_by_direction_and_hashes_by_themselves():
    embeddings = torch.tensor([[1.0, 0], [0, 1], [5, 0.01], [-1, 0], [0, -1]])
    assert find_duplicates(["a", "b", "c", "d", "b"], embeddings, 0.001) == [[0, 2], [1, 4]]


def test_the_number_of_threads_is_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        find_duplicates(["a", "b"], torch.eye(2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures(count):
    same = [[0, 1]] if count == 2 else []
    assert find_duplicates(["a"] * count, torch.ones(count, 8)) == same


def test_many_equal_pictures_are_one_group_without_all_pairs():
    embeddings = torch.ones(30_000, 16) + 1e-4 * torch.rand(
        30_000, 16, generator=torch.Generator().manual_seed(0)
    )
    (group,) = find_duplicates([str(place) for place in range(30_000)], embeddings)
    assert group == list(range(30_000))


def test_short_vectors_are_never_farther_apart_than_the_points():
    points = torch.nn.functional.normalize(clustered(400, 50, length=96), dim=1)
    apart = torch.cdist(points.double(), points.double())
    assert (torch.cdist(shortened(points).double(), shortened(points).double()) <= apart + 1e-5).all()


def test_components_of_a_chain_joined_in_any_order():
    generator = torch.Generator().manual_seed(0)
    names = torch.randperm(1000, generator=generator)
    components = Components(1000)
    for some in torch.randperm(998, generator=generator).split(100):
        some = some[some != 499]  # the chain is in two parts
        components.join(names[some], names[some + 1])
    low, high = names[:500], names[500:999]
    assert (components.root[low] == low.min()).all()
    assert (components.root[high] == high.min()).all()
    assert components.root[names[999]] == names[999]


MEASURED = """
import resource, sys, time
from pathlib import Path
from jepa_core.folders.collection import duplicates_of, read_collection
from tests.core.folders.synthetic import planted
file, begin = Path(sys.argv[1]), time.process_time()
groups = duplicates_of(file, read_collection(file), 0.02)
seconds = time.process_time() - begin
mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(seconds, mebibytes, sorted(map(sorted, groups)) == planted(100_000))
"""


@pytest.mark.long
def test_a_hundred_thousand_in_a_minute_and_a_gibibyte(tmp_path):
    """Time is that of the processor, so that other programs do not count; one thread does it."""
    file = tmp_path / "table.parquet"
    made = "import sys; from pathlib import Path; from tests.core.folders.synthetic import write_synthetic; "
    made += "write_synthetic(Path(sys.argv[1]), 100_000)"
    run = [sys.executable, "-c"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([*run, made, str(file)], check=True, env=environment, cwd=tmp_path)
    done = subprocess.run(
        [*run, MEASURED, str(file)], check=True, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    seconds, mebibytes, found = done.stdout.split()
    assert float(seconds) <= 60
    assert float(mebibytes) <= 1024
    assert found == "True"
