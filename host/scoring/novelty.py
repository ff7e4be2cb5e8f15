"""How far pictures are from a reference, in an encoder's embedding, and among those of the reference. Higher is rarer."""

from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakKeyDictionary

from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.novelty import Distances
from ...jepa_core.reference import ReferencePart, percentile
from ..encoders.host_encoder import AnyEncoder
from .reference import embed_pictures, parts_of

# Of references in use: what is computed once is kept as long as they are.
_known: WeakKeyDictionary[ReferencePart, Distances] = WeakKeyDictionary()


def distances_to(part: ReferencePart) -> Distances:
    """The distances to a part's pictures."""
    if part not in _known:
        _known[part] = Distances(part.embeddings)
    return _known[part]


def novelties(
    pictures: Sequence[Tensor], encoder: AnyEncoder, reference: Reference, how: Mapping[str, str]
) -> list[float]:
    """How far pictures (H, W, 3 or 4) are from a reference; see combined.

    Args:
        how: the settings with which they are seen: fit, antialias.
    """
    embeddings = (embed_pictures(pictures, member.encoder, how) for member in encoder.members)
    return novelties_of(embeddings, encoder, reference)


def novelties_of(embeddings: Iterable[Tensor], encoder: AnyEncoder, reference: Reference) -> list[float]:
    """As novelties, of pictures whose embeddings (N, d) under each encoder of the set are known."""
    parts = parts_of(reference.distinct, encoder)
    each = (distances_to(part).of(own) for (part, _), own in zip(parts, embeddings, strict=True))
    return combined(each, reference, encoder)


def own_novelties(reference: Reference, encoder: AnyEncoder) -> list[float]:
    """How far each picture of a reference is from the others; [] if it is alone."""
    if len(reference) < 2:
        return []
    return novelties_of((part.embeddings for part, _ in parts_of(reference, encoder)), encoder, reference)


def sorted_novelties(reference: Reference, encoder: AnyEncoder) -> list[float]:
    """How far pictures of a reference (at most novelty.SAMPLE) are from the others, ascending; [] if it has one picture."""
    each = (distances_to(part).own for part, _ in parts_of(reference.distinct, encoder))
    return sorted(combined(each, reference, encoder))


def combined(each: Iterable[Tensor], reference: Reference, encoder: AnyEncoder) -> list[float]:
    """Distances under a set of encoders as one: their weighted mean, each in units of its median in the reference.

    Those of a single encoder stay as they are.
    """
    parts = parts_of(reference.distinct, encoder)
    if len(parts) == 1:
        (alone,) = each
        values: list[float] = alone.tolist()
        return values
    total: Tensor = sum(  # type: ignore[assignment]
        weight / distances_to(part).median * own.double()
        for (part, weight), own in zip(parts, each, strict=True)
    )
    combined_values: list[float] = total.tolist()
    return combined_values


def more_novel_than(values: Sequence[float], reference: Reference, encoder: AnyEncoder) -> list[float]:
    """For each novelty, the percentage of the reference's pictures that are less novel among the others.

    Higher is rarer. [] if the reference has one picture.
    """
    own = sorted_novelties(reference, encoder)
    return [percentile(value, own) for value in values] if own else []
