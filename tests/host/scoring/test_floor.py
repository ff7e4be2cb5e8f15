"""Floors of quality against sorting by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from jepa_guidance.host.options import FLOOR_PERCENTILE, FLOOR_VALUE, FLOORS, NO_FLOOR
from jepa_guidance.host.scoring.floor import above, check_any_above, check_qualities, floor_value

NAN, INF = math.nan, math.inf
QUALITIES = [0.4, NAN, 0.1, 0.9, INF, 0.2, -INF]


def test_a_value_is_the_floor_itself_and_none_lets_everything_pass():
    assert floor_value(FLOOR_VALUE, 0.4, QUALITIES) == 0.4
    assert above(QUALITIES, 0.4) == [True, False, False, True, True, False, False]
    assert floor_value(NO_FLOOR, 50, []) == -INF
    assert above(QUALITIES, -INF) == [True] * 7


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_median_of_the_finite_qualities(count):
    values = np.random.default_rng(count).normal(size=count).tolist()
    assert floor_value(FLOOR_PERCENTILE, 50, [NAN, *values, INF]) == pytest.approx(statistics.median(values))
    assert floor_value(FLOOR_PERCENTILE, 0, values) == min(values)
    assert floor_value(FLOOR_PERCENTILE, 100, values) == max(values)


def test_a_percentile_is_interpolated():
    assert floor_value(FLOOR_PERCENTILE, 25, [3.0, 1.0, 2.0]) == 1.5


def test_at_the_median_of_an_odd_number_the_middle_one_passes():
    values = [0.3, 0.1, 0.7]
    assert above(values, floor_value(FLOOR_PERCENTILE, 50, values)) == [True, False, True]


@pytest.mark.parametrize("kind", FLOORS[1:])
@pytest.mark.parametrize(
    ("qualities", "message"), [([], "is needed"), ([NAN, INF], "holds no finite number")]
)
def test_a_floor_needs_finite_qualities(kind, qualities, message):
    with pytest.raises(ValueError, match=f"quality {message}, with floor_kind {kind}"):
        floor_value(kind, 50, qualities)


def test_a_percentile_outside_0_to_100_is_refused():
    with pytest.raises(ValueError, match="floor 101 is not a percentile"):
        floor_value(FLOOR_PERCENTILE, 101, [1.0])


def test_the_best_quality_is_named_when_none_passes():
    check_any_above([0.5, NAN], 0.5)
    with pytest.raises(ValueError, match=r"reaches the floor 0.8; the best quality is 0.5, so lower floor"):
        check_any_above([0.5, NAN, 0.2], 0.8)


@pytest.mark.parametrize("quality", ["0.5", None, True, [0.5]])
def test_only_numbers_are_qualities(quality):
    with pytest.raises(ValueError, match="quality must be a list of numbers; that of image 1 is"):
        check_qualities([0.5, quality], 2)


def test_each_image_needs_a_quality():
    check_qualities([1, 0.5, NAN, np.float32(2)], 4)
    with pytest.raises(ValueError, match="quality holds 1 numbers for 3 images"):
        check_qualities([0.5], 3)
