"""Which of many images are kept: the rarest of those that may be, or those picked by hand."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..options import NOVELTY, TYPICAL
from .floor import above, check_any_above
from .number_lists import words_of
from .rarity import Rarity


@dataclass(frozen=True)
class Choice:
    """What decides which images are kept.

    Attributes:
        keep: RAREST or TYPICAL. by: SCORE or NOVELTY. count: how many at most.
        threshold: percent of the reference than which an image must be rarer; 0 for any.
        places: positions that are kept instead of the best; [] for the best.
        qualities: one for each image, or none. floor: the least of them; -inf for none.
    """

    keep: str
    by: str
    count: int
    threshold: float
    places: Sequence[int]
    qualities: Sequence[float]
    floor: float

    def check(self, referenced: bool) -> None:
        """Raise ValueError if nothing can be kept, before any image is scored.

        Args:
            referenced: there is a reference.
        """
        if self.qualities:
            check_any_above(self.qualities, self.floor)
            check_places(self.places, self.qualities, self.floor)
        if self.threshold and not referenced:
            raise ValueError(
                f"threshold {self.threshold:g} needs a reference; link one, or set threshold to 0"
            )

    def kept(self, rarity: Rarity) -> list[int]:
        """Indices of the kept images, the best first. Raises ValueError if there are none."""
        if self.places:
            return list(self.places)
        allowed = above(self.qualities, self.floor) if self.qualities else [True] * len(rarity.values)
        if self.threshold:
            allowed = rare_enough(rarity.rarer_than, self.threshold, allowed)
        highest = (self.by == NOVELTY) != (self.keep == TYPICAL)
        return best_of(rarity.values, allowed, count=self.count, highest=highest)


def places_of(text: str, total: int) -> list[int]:
    """The positions in a text such as "0, 3, 5", in its order; [] for an empty text.

    Raises:
        ValueError: not a whole number, not the position of one of `total` images, or the same position twice.
    """
    words = words_of(text)
    for word in words:
        if not re.fullmatch(r"[0-9]{1,9}", word):
            raise ValueError(f"places must be whole numbers from 0, such as 0, 3, 5; got {word!r:.100}")
    places = [int(word) for word in words]
    for place in places:
        if place >= total:
            raise ValueError(f"places names image {place}, but there are only images 0 to {total - 1}")
        if places.count(place) > 1:
            raise ValueError(f"places names image {place} twice; name each once")
    return places


def check_places(places: Sequence[int], qualities: Sequence[float], floor: float) -> None:
    """Raise ValueError for a picked image below the floor."""
    passes = above(qualities, floor)
    for place in places:
        if not passes[place]:
            raise ValueError(
                f"places names image {place}, whose quality {qualities[place]:g} is below the floor {floor:g}; remove it or "
                "lower floor"
            )


def rare_enough(shares: Sequence[float], threshold: float, allowed: Sequence[bool]) -> list[bool]:
    """Which of the allowed images are rarer than a share of a reference.

    Args:
        shares: for each image, the percentage of the reference than which it is rarer; [] if nothing is known.
        threshold: percent; an image that is rarer than just this share is rare enough.

    Raises:
        ValueError: nothing is known, or no image is rare enough.
    """
    if not shares:
        raise ValueError(
            f"threshold {threshold:g} has nothing to compare with; link a reference that has scores, with two pictures at "
            "least, or set threshold to 0"
        )
    passes = [may and share >= threshold for share, may in zip(shares, allowed, strict=True)]
    if not any(passes):
        most = max(share for share, may in zip(shares, allowed, strict=True) if may)
        raise ValueError(
            f"no image is rarer than {threshold:g} % of the reference; the rarest that may be kept is rarer than "
            f"{most:.1f} %, so lower threshold"
        )
    return passes


def best_of(values: Sequence[float], allowed: Sequence[bool], *, count: int, highest: bool) -> list[int]:
    """Indices of at most `count` of the allowed images, sorted by their values; those alike stay in their order.

    Args:
        values: images with NaN are left out.
        highest: begin with the highest value instead of the lowest.

    Raises:
        ValueError: all values are NaN.
    """
    indices = [index for index, may in enumerate(allowed) if may and not math.isnan(values[index])]
    if not indices:
        raise ValueError(
            "encoder gives NaN for every image that may be kept; use another encoder or precision"
        )
    return sorted(indices, key=values.__getitem__, reverse=highest)[:count]
