"""How rare images are by score or by novelty, for nodes that rank or choose them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.reference import NO_SCORE, scoring_of
from ...jepa_core.score import PROJECTION
from ..comfy.required import ProgressBar
from ..encoders.host_encoder import AnyEncoder
from ..options import NOVELTY, SCORE
from .comparison import check_scored_alike, rarer_than
from .modes import how_beside
from .novelty import more_novel_than, novelties
from .reference import seen_as, view_of
from .scores import combined_scores, score_batches, score_images


class Rarity(NamedTuple):
    """Of each image: its score or novelty, and the percentage of the reference than which it is rarer.

    The latter is empty if there is no reference, or one that has nothing to compare with.
    """

    values: list[float]
    rarer_than: list[float]

    def text(self, index: int, by: str) -> str:
        """How rare an image is, for users: its place in the reference, or its score or novelty if there is none."""
        return f"rarer than {self.rarer_than[index]:.0f} %" if self.rarer_than else self.value(index, by)

    def value(self, index: int, by: str) -> str:
        """The score or novelty of an image, named."""
        return f"{by} {self.values[index]:.2f}"


def rarity_of(
    images: Sequence[Tensor], encoder: AnyEncoder, mode: str, by: str, reference: Reference | None
) -> Rarity:
    """The scores or novelties of all images of some batches, seen as the reference's pictures if there is one.

    Args:
        mode: of scores; AUTO is the reference's.

    Raises:
        ValueError: a reference that does not fit.
    """
    how = how_beside(reference, mode=mode)
    view = view_of(how)
    if by == NOVELTY:
        if reference is None:
            raise ValueError("reference is needed to rank by novelty; connect one, from JEPA Reference")
        values = novelties([image for batch in images for image in batch], encoder, reference, how)
        return Rarity(values, more_novel_than(values, reference, encoder))
    if reference is not None:
        check_scored_alike(reference, encoder, how)
    bar = ProgressBar(sum(map(len, images)) * len(encoder.members))
    scores = score_batches(images, encoder, **scoring_of(how["mode"]), **view, on_image=lambda: bar.update(1))
    return Rarity(scores, rarer_than(scores, reference, encoder) if reference is not None else [])


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
        return Rarity(values, more_novel_than(values, reference, encoder))
    if reference is not None:
        scoring = scoring_of(reference.how["mode"])
    else:
        scoring = {"projection": min(PROJECTION, *(one.encoder.encoder.embed_dim for one in encoder.members))}
    scores = combined_scores(score_images(images, encoder, **scoring, fit=fit, antialias=antialias), encoder)
    return Rarity(scores, rarer_than(scores, reference, encoder) if reference is not None else [])
