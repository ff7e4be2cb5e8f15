"""Images beside a reference: how many of its pictures they are rarer than, how novel they are, and all of it as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.reference import NO_SCORE, percentile
from ..encoders.host_encoder import AnyEncoder
from .novelty import more_novel_than, novelties
from .reference import check_comparable, sorted_scores


@dataclass(frozen=True)
class Comparison:
    """A number for each image in each list; higher is rarer. A list is empty where the reference says nothing.

    Attributes:
        size: pictures in the reference.
        rarer_than: the percentage of the reference with a higher score.
        novelties: distances to the reference.
        more_novel_than: the percentage of the reference that is nearer to its others than the image is to it.
    """

    size: int = 0
    rarer_than: Sequence[float] = ()
    novelties: Sequence[float] = ()
    more_novel_than: Sequence[float] = ()


def check_scored_alike(reference: Reference, encoder: AnyEncoder, how: Mapping[str, str]) -> None:
    """As check_comparable; modes need to agree only if the reference has scores."""
    check_comparable(
        reference,
        encoder,
        {name: value for name, value in how.items() if name != "mode" or reference.how["mode"] != NO_SCORE},
    )


def rarer_than(scores: Sequence[float], reference: Reference, encoder: AnyEncoder) -> list[float]:
    """For each score, the percentage of the reference's pictures with a higher one; [] if it has no scores."""
    others = sorted_scores(reference, encoder)
    return [100 - percentile(score, others) for score in scores] if others else []


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
        len(reference.distinct),
        rarer_than(scores, reference, encoder),
        values,
        more_novel_than(values, reference, encoder),
    )


def ranking(
    scores: Sequence[float], each: Sequence[Sequence[float]], compared: Comparison | None
) -> list[str]:
    """A line for each image, the lowest score first: rank, how rare beside the reference, score and novelty."""
    lines = []
    for rank, index in enumerate(sorted(range(len(scores)), key=scores.__getitem__), 1):
        score = f"score {scores[index]:.2f}"
        if len(each) > 1:
            score += f" ({', '.join(f'{own[index]:.2f}' for own in each)})"
        lines.append(f"{rank}. image {index}: " + (_beside(compared, index, score) if compared else score))
    return lines


def _beside(compared: Comparison, index: int, score: str) -> str:
    shares = {"rarer": compared.rarer_than, "more novel": compared.more_novel_than}
    said = [f"{word} than {share[index]:.0f} %" for word, share in shares.items() if share]
    numbers = f"{score}, novelty {compared.novelties[index]:.2f}"
    if not said:
        return numbers
    return f"{said[0]} of {compared.size} reference images{', ' + said[1] if said[1:] else ''} ({numbers})"
