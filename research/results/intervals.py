"""Intervals: of means and paired changes by bootstrap, of measures of a whole set by the jackknife over batches."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from research.harness.program import Row

RESAMPLES = 2000
CONFIDENCE = 0.95
DEVIATIONS = 1.959964  # from the mean to the ends of that interval


def mean_and_interval(values: Sequence[float] | np.ndarray) -> Row:
    """{mean, low, high}: the mean and its 95 % interval, by the percentile bootstrap."""
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if len(sample) < 2 or np.ptp(sample) == 0:
        return {"mean": _rounded(mean), "low": _rounded(mean), "high": _rounded(mean)}
    found = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {"mean": _rounded(mean), "low": _rounded(found.low), "high": _rounded(found.high)}


def effect_size(change: np.ndarray, control: np.ndarray) -> float:
    """Cohen's d: the mean of the paired changes in units of the control's standard deviation; 0 where that does not vary."""
    deviation = float(np.std(control, ddof=1))
    return _rounded(float(change.mean()) / deviation) if deviation else 0.0


def jackknife(measure: Callable[[np.ndarray], float], groups: Sequence[Any]) -> Row:
    """{mean, low, high} of a measure of a set, from the same measure without each group in turn.

    Args:
        measure: of the rows that a mask (N,) keeps.
        groups: the group of each of the N rows.
    """
    names = sorted(set(groups))
    number = np.array([names.index(one) for one in groups])
    whole = measure(np.ones(len(number), dtype=bool))
    parts = np.array([measure(number != group) for group in range(len(names))])
    count = len(parts)
    error = math.sqrt((count - 1) / count * float(((parts - parts.mean()) ** 2).sum()))
    return {
        "mean": _rounded(whole),
        "low": _rounded(whole - DEVIATIONS * error),
        "high": _rounded(whole + DEVIATIONS * error),
    }


def _rounded(value: float) -> float:
    return round(float(value), 5)
