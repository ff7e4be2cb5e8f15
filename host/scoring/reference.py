"""Scores of reference images, and the percentile of a score among them."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Scores of reference images.

    Attributes:
        scores: sorted, at least one.
        how: the settings that comparable scores share, by name: encoder, mode, ...
    """

    scores: Sequence[float]
    how: Mapping[str, str]


def check_comparable(reference: Reference, how: Mapping[str, str]) -> None:
    """Raise ValueError if scores with the settings `how` are not comparable to those of the reference."""
    for name, value in how.items():
        if reference.how[name] != value:
            raise ValueError(
                f"reference was scored with {name} {reference.how[name]}, this node has {value}; scores with "
                "different settings are not comparable, so use the same settings in both nodes"
            )


def percentile(score: float, reference: Reference) -> float:
    """The percentage of the reference that is rarer; equal scores count half."""
    below, upto = bisect_left(reference.scores, score), bisect_right(reference.scores, score)
    return 100 * (below + upto) / 2 / len(reference.scores)
