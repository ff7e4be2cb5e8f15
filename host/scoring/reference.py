"""Images that others are compared with."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Scores of images that others are compared with.

    Attributes:
        scores: sorted, at least one.
        how: what scores have to have in common to be compared, by name: encoder, mode, ...
    """

    scores: Sequence[float]
    how: Mapping[str, str]


def check_comparable(reference: Reference, how: Mapping[str, str]) -> None:
    """Raise ValueError where scores taken `how` say nothing beside those of the reference."""
    for name, value in how.items():
        if reference.how[name] != value:
            raise ValueError(
                f"reference was scored with {name} {reference.how[name]}, this node has {value}; scores of "
                "different settings are not comparable, so set both nodes alike"
            )


def percentile(score: float, reference: Reference) -> float:
    """How much of the reference is rarer, in percent; of equal scores one half counts."""
    below, upto = bisect_left(reference.scores, score), bisect_right(reference.scores, score)
    return 100 * (below + upto) / 2 / len(reference.scores)
