"""When a search looks, and which candidates stay."""

from __future__ import annotations

import itertools
import math

import pytest
from jepa_guidance.host.search.record import Candidate
from jepa_guidance.host.search.selection import choose, looks_of, plan_looks


def test_looks_are_read():
    assert looks_of("0.4, 0.7") == (0.4, 0.7)
    assert looks_of(" ") == ()
    assert looks_of("0.4,0.7") == looks_of("0.4;0.7") == looks_of("0.4\uff0c0.7") == (0.4, 0.7)


@pytest.mark.parametrize(
    "text", ["0.7, 0.4", "0.4, 0.4", "0, 0.5", "0.5, 1", "half", "0,4", "0,4 0,7", "nan", "-0.1"]
)
def test_a_look_that_means_nothing_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"^looks must .*got"):
        looks_of(text)


def test_the_same_share_is_dropped_at_every_look():
    assert plan_looks((0.4, 0.7), 20, 16, 4) == [(7, 8), (13, 4)]
    assert plan_looks((0.25, 0.5, 0.75), 8, 64, 1) == [(1, 16), (3, 4), (5, 1)]


def test_work_of_the_default_looks():
    """16 candidates, of which 4 are kept: at most 63 % of the denoiser's work for all of them."""
    left, rows = 16, 0
    looks = dict(plan_looks((0.4, 0.7), 20, 16, 4))
    for step in range(20):
        rows += left
        left = looks.get(step, left)
    assert rows / (16 * 20) <= 0.63


@pytest.mark.parametrize("steps", range(1, 30))
@pytest.mark.parametrize(("candidates", "count"), [(1, 1), (4, 4), (16, 4), (5, 2), (100, 1)])
def test_looks_drop_somebody_and_leave_as_many_as_are_kept(steps, candidates, count):
    looks = plan_looks((0.2, 0.4, 0.5, 0.9), steps, candidates, count)
    lefts = [candidates, *(look.left for look in looks)]
    assert all(later < earlier for earlier, later in itertools.pairwise(lefts))
    assert lefts[-1] >= count
    assert all(look.step < steps - 1 for look in looks)
    assert len({look.step for look in looks}) == len(looks)


def candidates(values, qualities=None):
    qualities = qualities or [math.nan] * len(values)
    return [
        Candidate(index, value, quality)
        for index, (value, quality) in enumerate(zip(values, qualities, strict=True))
    ]


def indices(found):
    return [one.index for one in found]


@pytest.mark.parametrize(("highest", "expected"), [(False, [2, 0]), (True, [1, 3])])
def test_the_best_stay_best_first(highest, expected):
    given = candidates([-2.0, 5.0, -3.0, 1.0])
    assert indices(choose(given, 2, -math.inf, highest=highest)) == expected
    assert {one.index for one in given if one.left} == set(expected)


def test_a_candidate_below_the_floor_or_not_finite_is_dropped_with_the_reason():
    given = candidates([-9.0, math.nan, -1.0, -5.0], [0.1, 0.9, 0.5, math.nan])
    assert indices(choose(given, 4, 0.5, highest=False)) == [2]
    assert given[0].dropped == "quality 0.1 is below the floor 0.5"
    assert given[1].dropped == "not finite"
    assert "below the floor" in given[3].dropped


def test_without_a_floor_quality_does_not_matter():
    assert indices(choose(candidates([3.0, 1.0]), 1, -math.inf, highest=False)) == [1]
