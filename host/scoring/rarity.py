"""How rare images are by score or by novelty, for nodes that rank or choose them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.reference import NO_SCORE, scoring_of
from ...jepa_core.score import PROJECTION
from ..comfy.required import ProgressBar
from ..encoders.host_encoder import AnyEncoder
from ..options import NOVELTY, SCORE, SQUASH
from .comparison import check_scored_alike, score_percentiles
from .modes import how_of, mode_arguments
from .novelty import novelties, novelty_percentiles
from .reference import check_comparable, seen_as
from .scores import combined_scores, score_batches, score_images

# Nodes that choose images have no inputs for how these are seen.
FIT, ANTIALIAS = SQUASH, True


class Rarity(NamedTuple):
    """Of each image: its score or novelty, and its percentile in the reference (empty if there is none).

    A percentile is the percentage of the reference that is rarer.
    """

    values: list[float]
    percentiles: list[float]

    @property
    def rarer_than(self) -> list[float]:
        """The percentage of the reference than which each image is rarer; empty if there is none."""
        return [100 - percentile for percentile in self.percentiles]

    def text(self, index: int, by: str) -> str:
        """How rare an image is, for users: its place in the reference, or its score or novelty if there is none."""
        return f"rarer than {self.rarer_than[index]:.0f} %" if self.percentiles else self.value(index, by)

    def value(self, index: int, by: str) -> str:
        """The score or novelty of an image, named."""
        return f"{by} {self.values[index]:.2f}"


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


def measure_of(criterion: str, reference: Reference | None) -> str:
    """SCORE or NOVELTY: what images that were guided by a criterion are measured by."""
    if reference is None or (criterion == SCORE and reference.how["mode"] != NO_SCORE):
        return SCORE
    return NOVELTY


def rarity_beside(
    images: Tensor, encoder: AnyEncoder, reference: Reference | None, *, by: str, fit: str, antialias: bool
) -> Rarity:
    """The scores, of the reference's mode if it has one, or the novelties of a batch (B, H, W, 3 or 4).

    Args:
        reference: one that check_comparable let pass; needed for novelty, and for score it must have scores.
        by: of measure_of.
    """
    if reference is not None and by == NOVELTY:
        values = novelties(list(images), encoder, reference, seen_as(fit, antialias))
        return Rarity(values, novelty_percentiles(values, reference, encoder))
    if reference is not None:
        scoring = scoring_of(reference.how["mode"])
    else:
        scoring = {"projection": min(PROJECTION, *(one.encoder.encoder.embed_dim for one in encoder.members))}
    scores = combined_scores(score_images(images, encoder, **scoring, fit=fit, antialias=antialias), encoder)
    return Rarity(scores, score_percentiles(scores, encoder, reference) if reference is not None else [])
