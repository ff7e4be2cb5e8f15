"""The least quality that an image must have to be kept, however rare it is. Higher quality is better."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np

from ..options import FLOOR_VALUE, NO_FLOOR


def check_qualities(qualities: Sequence[float], total: int) -> None:
    """Raise ValueError unless there is a number for each of `total` images; NaN is one."""
    for index, quality in enumerate(qualities):
        if isinstance(quality, bool) or not isinstance(quality, Real):
            raise ValueError(f"quality must be a list of numbers; that of image {index} is {quality!r:.100}")
    if len(qualities) != total:
        raise ValueError(
            f"quality holds {len(qualities)} numbers for {total} images; give one for each, in the images' order"
        )


def floor_value(kind: str, floor: float, qualities: Sequence[float]) -> float:
    """The quality that is just good enough.

    Args:
        kind: NO_FLOOR gives -inf, FLOOR_VALUE the floor itself, FLOOR_PERCENTILE that percentile of the finite qualities
            (50 is the median; between two qualities it is interpolated).

    Raises:
        ValueError: there are no qualities, or none is finite; a percentile outside 0 to 100.
    """
    if kind == NO_FLOOR:
        return -math.inf
    finite = [quality for quality in qualities if math.isfinite(quality)]
    if not finite:
        what = "holds no finite number" if len(qualities) else "is needed"
        raise ValueError(
            f"quality {what}, with floor_kind {kind}; link one number for each image, or set floor_kind to {NO_FLOOR}"
        )
    if kind == FLOOR_VALUE:
        return floor
    if not 0 <= floor <= 100:
        raise ValueError(f"floor {floor:g} is not a percentile, from 0 to 100; lower it or change floor_kind")
    return float(np.percentile(finite, floor))


def above(qualities: Sequence[float], floor: float) -> list[bool]:
    """Which qualities pass a floor: those at it or above. NaN passes only -inf, which is no floor."""
    return [quality >= floor or floor == -math.inf for quality in qualities]


def check_any_above(qualities: Sequence[float], floor: float) -> None:
    """Raise ValueError, with the best quality, unless one passes the floor."""
    if not any(above(qualities, floor)):
        best = max((quality for quality in qualities if not math.isnan(quality)), default=math.nan)
        raise ValueError(
            f"no image reaches the floor {floor:g}; the best quality is {best:g}, so lower floor to it"
        )
