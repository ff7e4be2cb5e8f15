"""When a search looks at its candidates, and which of them stay."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ..scoring.floor import above
from ..scoring.number_lists import check_decimals, words_of
from .record import Candidate

_EXAMPLE = "0.4, 0.7"


class Look(NamedTuple):
    """After the first model call of `step` (from 0), `left` candidates stay."""

    step: int
    left: int


def looks_of(text: str) -> tuple[float, ...]:
    """The looks written as "0.4, 0.7"; an empty text is none.

    Raises:
        ValueError: entries that are not numbers between 0 and 1 in ascending order.
    """
    check_decimals("looks", text, _EXAMPLE)
    try:
        looks = tuple(map(float, words_of(text)))
    except ValueError:
        raise ValueError(
            f"looks must be numbers with commas between them, such as {_EXAMPLE}; got {text!r:.100}"
        ) from None
    if not all(0 < look < 1 for look in looks):
        raise ValueError(f"looks must lie between 0 and 1, as shares of the steps; got {text!r:.100}")
    if any(later <= earlier for earlier, later in pairwise(looks)):
        raise ValueError(f"looks must grow from one to the next; got {text!r:.100}")
    return looks


def plan_looks(looks: Sequence[float], steps: int, candidates: int, count: int) -> list[Look]:
    """When to look, and how many candidates stay: from look to look the same share, down to `count` at the last.

    A look uses the clean estimate of the step that completes its share of the steps. Looks that fall into one step become
    one. One in the last step, or one that drops nobody, is left out.
    """
    lefts: dict[int, int] = {}
    before = candidates
    for number, look in enumerate(looks, 1):
        left = max(round(candidates * (count / candidates) ** (number / len(looks))), count)
        step = max(round(look * steps) - 1, 0)
        if step < steps - 1 and left < before:
            lefts[step] = before = left
    return [Look(step, left) for step, left in lefts.items()]


def choose(candidates: Sequence[Candidate], left: int, floor: float, *, highest: bool) -> list[Candidate]:
    """The candidates that stay, best first; the others are marked with the reason why they are dropped.

    Args:
        left: at most this many stay.
        floor: candidates of a lower quality are dropped; -inf for none.
        highest: whether the highest values are wanted.
    """
    able = []
    for one in candidates:
        if not math.isfinite(one.value):
            one.dropped = "not finite"
        elif not above([one.quality], floor)[0]:
            one.dropped = below_floor(one.quality, floor)
        else:
            able.append(one)
    able.sort(key=lambda one: -one.value if highest else one.value)
    for one in able[left:]:
        one.dropped = "less wanted than the others"
    return able[:left]


def below_floor(quality: float, floor: float) -> str:
    """Why a candidate of this quality is dropped."""
    return f"quality {quality:.3g} is below the floor {floor:.3g}"
