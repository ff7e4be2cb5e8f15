"""Pictures beside a reference: how novel they are, as nodes tell it."""

from collections.abc import Sequence

from torch import Tensor

from ..novelty import Distances
from ..reference import Reference, ReferencePart, percentile
from .scorer import Settings


class Comparison:
    """What a reference says about embeddings.

    Raises:
        ValueError: the reference was made with another encoder, image size or look at pictures than the settings'.
    """

    def __init__(self, reference: Reference, settings: Settings) -> None:
        self._distances = Distances(comparable_part(reference.distinct, settings).embeddings)
        self._own = self._distances.own.sort().values.tolist()

    def of(self, embeddings: Tensor) -> list[tuple[float, float | None]]:
        """The novelty of each of some embeddings (B, d), and the percentage of the reference than which it is more novel.

        Novelty is the mean distance to the nearest pictures of the reference. Higher is rarer, for both. The percentage is
        None if the reference has one picture.
        """
        values: Sequence[float] = self._distances.of(embeddings).tolist()
        return [(value, percentile(value, self._own) if self._own else None) for value in values]


def comparable_part(reference: Reference, settings: Settings) -> ReferencePart:
    """The part of a reference that has embeddings of these settings.

    Raises:
        ValueError: there is none; names the first difference.
    """
    for name in ("fit", "antialias"):
        if reference.how[name] != settings.how[name]:
            raise ValueError(
                f"it was made with {name} {reference.how[name]}, this run has {settings.how[name]}; use the same"
            )
    key = (settings.fingerprint, settings.image_size)
    for part in reference.parts:
        if part.key == key:
            return part
    own = f"{settings.encoder} at {settings.image_size} px"
    weights = " with other weights" if own in [part.label for part in reference.parts] else ""
    raise ValueError(
        f"it was made with {reference.label}, this run has {own}{weights}; make it with this encoder at this image size"
    )
