"""Arithmetic on {(seed, arm): value}: means, standard errors, paired differences, shares."""

import statistics
from collections.abc import Mapping, Sequence

from research.harness.program import Row

Values = Mapping[tuple[int, str], float]


def mean_and_error(values: Sequence[float]) -> Row:
    """The mean of the values and its standard error (None for fewer than two)."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    mean = round(statistics.fmean(values), 5)
    return {"n": len(values), "mean": mean, "standard_error": error and round(error, 5)}


def pooled(one: Row, other: Row) -> Row:
    """What mean_and_error says of the values behind two of its answers together; n > 1 in each."""
    counts, total = (one["n"], other["n"]), one["n"] + other["n"]
    mean = (counts[0] * one["mean"] + counts[1] * other["mean"]) / total
    within = sum((part["n"] - 1) * part["n"] * part["standard_error"] ** 2 for part in (one, other))
    between = counts[0] * counts[1] / total * (one["mean"] - other["mean"]) ** 2
    error = ((within + between) / (total - 1) / total) ** 0.5
    return {"n": total, "mean": round(mean, 5), "standard_error": round(error, 5)}


def differences(values: Values, arm: str, control: str) -> list[float]:
    """arm minus control over the seeds that have both."""
    seeds = sorted(seed for seed, name in values if name == arm and (seed, control) in values)
    return [values[seed, arm] - values[seed, control] for seed in seeds]


def complete_seeds(values: Values, arms: Sequence[str]) -> list[int]:
    """Seeds of which every arm has a value."""
    seeds = sorted({seed for seed, _ in values})
    return [seed for seed in seeds if all((seed, arm) in values for arm in arms)]


def share(changes: Sequence[float], reference: Sequence[float]) -> Row:
    """Mean change over mean reference change, paired, with the jackknife's standard error (None for one pair)."""
    count = len(changes)
    whole = round(sum(changes) / sum(reference), 4)
    if count < 2:
        return {"mean": whole, "standard_error": None}
    pairs = zip(changes, reference, strict=True)
    without = [(sum(changes) - own) / (sum(reference) - other) for own, other in pairs]
    error = ((count - 1) ** 2 / count * statistics.variance(without)) ** 0.5
    return {"mean": whole, "standard_error": round(error, 4)}


def plus_minus(one: Row, digits: int) -> str:
    """A mean and its error as text."""
    return f"{one['mean']:.{digits}f} +- {one['standard_error'] or 0:.{digits}f}"
