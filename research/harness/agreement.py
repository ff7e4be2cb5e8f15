"""How far numbers of pictures agree, with 95 % percentile bootstrap intervals over pictures.

Rows are index arrays, one for each class: pictures are ranked, centred and resampled within their class.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu, rankdata

from research.harness.program import Row

RESAMPLES = 1000
Values = NDArray[np.float64]
Rows = NDArray[np.int64]


def interval(statistic: Callable[..., float], rows: Sequence[Rows]) -> Row:
    """The value of statistic(*rows), and its interval: the rows of each class are drawn anew, independently."""
    options = {"n_resamples": RESAMPLES, "method": "percentile", "vectorized": False}
    found = bootstrap(tuple(rows), statistic, rng=np.random.default_rng(0), **options).confidence_interval
    named = {"value": statistic(*rows), "low": found.low, "high": found.high}
    return {name: round(float(value), 4) for name, value in named.items()}


def residual(values: Values, given: Sequence[Values]) -> Values:
    """What a linear regression with a constant on `given` leaves of values (N,)."""
    matrix = np.stack([np.ones_like(values), *given], 1)
    return values - matrix @ np.linalg.lstsq(matrix, values)[0]


def _ranks(values: Values, rows: Sequence[Rows]) -> Values:
    """Ranks within each class, over its size, minus their mean."""
    return np.concatenate([(rankdata(values[some]) - (len(some) + 1) / 2) / len(some) for some in rows])


def rank_correlation(a: Values, b: Values, rows: Sequence[Rows], given: Sequence[Values] = ()) -> float:
    """Spearman's correlation of a and b within classes; partial, once a regression on the ranks of `given` is taken off."""
    others = [_ranks(one, rows) for one in given]
    x, y = (residual(_ranks(one, rows), others) for one in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def explained(values: Values, given: Sequence[Values], rows: Sequence[Rows]) -> float:
    """R^2 of a linear regression of the values on `given`, all centred within their class."""
    own, *others = (
        np.concatenate([one[some] - one[some].mean() for some in rows]) for one in (values, *given)
    )
    return float(1 - residual(own, others).var() / own.var())


def auroc(unusual: Values, common: Values) -> float:
    """How often an unusual one is above a common one; equal ones count half."""
    return float(mannwhitneyu(unusual, common, method="asymptotic").statistic / len(unusual) / len(common))


def auroc_within(values: Values, unusual: NDArray[np.bool_], rows: Sequence[Rows]) -> float:
    """The same of ranks within each class, all classes together."""
    flags, ranks = np.concatenate([unusual[some] for some in rows]), _ranks(values, rows)
    return auroc(ranks[flags], ranks[~flags])
