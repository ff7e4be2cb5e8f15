"""How rare images are by score or by novelty, for nodes that rank or choose them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...jepa_core import Reference
from ..comfy.required import ProgressBar
from ..encoders.host_encoder import AnyEncoder
from ..options import NOVELTY, SQUASH
from .comparison import check_scored_alike, score_percentiles
from .modes import how_of, mode_arguments
from .novelty import novelties, novelty_percentiles
from .reference import check_comparable, seen_as
from .scores import score_batches

# Nodes that choose images have no inputs for how these are seen.
FIT, ANTIALIAS = SQUASH, True


class Rarity(NamedTuple):
    """Of each image: its score or novelty, and its percentile in the reference (empty if there is none)."""

    values: list[float]
    percentiles: list[float]


def rarity_of(
    images: Sequence[Tensor], encoder: AnyEncoder, mode: str, by: str, reference: Reference | None
) -> Rarity:
    """The scores or novelties of all images of some batches. Raises ValueError for a reference that does not fit."""
    how = how_of(mode, 0, FIT, ANTIALIAS)
    if by == NOVELTY:
        if reference is None:
            raise ValueError("reference is needed to rank by novelty; connect one, from JEPA Reference")
        check_comparable(reference, encoder, seen_as(FIT, ANTIALIAS))
        values = novelties([image for batch in images for image in batch], encoder, reference, how)
        return Rarity(values, novelty_percentiles(values, reference, encoder))
    if reference is not None:
        check_scored_alike(reference, encoder, how)
    bar = ProgressBar(sum(map(len, images)) * len(encoder.members))
    scores = score_batches(images, encoder, **mode_arguments(mode), on_image=lambda: bar.update(1))
    return Rarity(scores, score_percentiles(scores, encoder, reference) if reference is not None else [])
