"""The settings of a search."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..options import NO_FLOOR, NO_VARIETY, NOVELTY, RAREST, SCORE, SQUASH, TYPICAL


@dataclass(frozen=True)
class SearchConfig:
    """All settings of a search, without the models. The node builds it, the search reads it.

    Attributes:
        candidates: rows of the batch. count: how many are kept, at most.
        keep: RAREST or TYPICAL.
        looks: shares of the steps after which candidates are dropped, ascending, each inside 0 to 1.
        by: SCORE or NOVELTY.
        floor_kind, floor: the least quality, see scoring.floor.
        qualities: of each candidate, known before the search; empty if they are not.
        variety, amount: what widens the candidates' spread, and how much; 1 suits the demo generator.
        seed: of the run's noise; noise on the conditioning depends on it.
        rows_at_once: candidates in one denoiser call; 0 for as many as fit in memory.
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
    """

    candidates: int
    count: int
    keep: str = RAREST
    looks: Sequence[float] = (0.4, 0.7)
    by: str = SCORE
    floor_kind: str = NO_FLOOR
    floor: float = 50.0
    qualities: Sequence[float] = ()
    variety: str = NO_VARIETY
    amount: float = 1.0
    seed: int = 0
    rows_at_once: int = 0
    fit: str = SQUASH
    antialias: bool = True

    @property
    def highest(self) -> bool:
        """Whether the highest values are wanted: low scores and high novelties are rare."""
        return (self.by == NOVELTY) != (self.keep == TYPICAL)

    @property
    def noise_scale(self) -> float:
        """The scale of the noise on the conditioning, see variety.cads: 0.1 for an amount of 1."""
        return 0.1 * self.amount

    @property
    def boost(self) -> float:
        """The factor of the starting noise, see variety.boost: 1.5 for an amount of 1."""
        return 1 + 0.5 * self.amount
