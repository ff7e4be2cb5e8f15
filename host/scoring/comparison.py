"""Images beside a reference: percentiles of their scores, how novel they are, and all of it as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.reference import NO_SCORE, percentile
from ..encoders.host_encoder import AnyEncoder
from .novelty import novelties, novelty_percentiles
from .reference import check_comparable, sorted_scores


@dataclass(frozen=True)
class Comparison:
    """A number for each image in each list; a list is empty where the reference says nothing.

    Attributes:
        size: pictures in the reference.
        percentiles: the percentage of the reference with a lower score. Small is rare.
        novelties: distances to the reference. Higher is rarer.
        novelty_percentiles: the percentage of the reference that is further from its others than the image is from it.
            Small is rare.
    """

    size: int = 0
    percentiles: Sequence[float] = ()
    novelties: Sequence[float] = ()
    novelty_percentiles: Sequence[float] = ()


def check_scored_alike(reference: Reference, encoder: AnyEncoder, how: Mapping[str, str]) -> None:
    """As check_comparable; modes need to agree only if the reference has scores."""
    check_comparable(
        reference,
        encoder,
        {name: value for name, value in how.items() if name != "mode" or reference.how["mode"] != NO_SCORE},
    )


def score_percentiles(scores: Sequence[float], encoder: AnyEncoder, reference: Reference) -> list[float]:
    """For each score, the percentage of the reference's pictures that are rarer; [] if it has no scores."""
    others = sorted_scores(reference, encoder)
    return [percentile(score, others) for score in scores] if others else []


def compare(
    images: Sequence[Tensor],
    scores: Sequence[float],
    encoder: AnyEncoder,
    reference: Reference,
    how: Mapping[str, str],
) -> Comparison:
    """Compare images (H, W, 3 or 4) and their scores with a reference that check_scored_alike let pass."""
    values = novelties(images, encoder, reference, how)
    return Comparison(
        len(reference),
        score_percentiles(scores, encoder, reference),
        values,
        novelty_percentiles(values, reference, encoder),
    )


def ranking(
    scores: Sequence[float], each: Sequence[Sequence[float]], compared: Comparison | None
) -> list[str]:
    """A line for each image, the lowest score first: rank, score, the scores under several encoders, the comparison."""
    lines = []
    for rank, index in enumerate(sorted(range(len(scores)), key=scores.__getitem__), 1):
        line = f"{rank}. image {index}: {scores[index]:.2f}"
        if len(each) > 1:
            line += f" ({', '.join(f'{own[index]:.2f}' for own in each)})"
        lines.append(line + (_beside(compared, index) if compared else ""))
    return lines


def _beside(compared: Comparison, index: int) -> str:
    text = ""
    if compared.percentiles:
        text += f", rarer than {100 - compared.percentiles[index]:.0f} % of {compared.size} reference images"
    text += f"; novelty {compared.novelties[index]:.2f}"
    if compared.novelty_percentiles:
        text += f", more novel than {100 - compared.novelty_percentiles[index]:.0f} %"
        if not compared.percentiles:
            text += f" of {compared.size} reference images"
    return text
