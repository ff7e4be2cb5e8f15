"""Where a picture lies among those of a reference, and how much guidance is left to do.

The guide's own number is easy to move, so it is not asked. Novelty is measured at the mean embedding over a few views, and
the score at mirrored views, preferably both under another encoder.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...jepa_core import Encoder, jepa_score
from ...jepa_core.novelty import Distance, embed
from ...jepa_core.reference import percentile
from ...jepa_core.views import views
from ..options import NOVELTY, SCORE

RAMP = 0.25  # of the way from the median to the target, over which the push falls to 0; wider, it fades too early to arrive
UNSEEN = (1, 3)  # views other than the one that the gradient sees unless it is smoothed
Seen = Callable[[Encoder, Tensor], Tensor]


def of_frames(encoder: Encoder, frames: int) -> Encoder:
    """The encoder for an image (1 frame) or for clips of `frames` frames."""
    return encoder.of_clips(frames) if frames > 1 else encoder


@dataclass(frozen=True)
class Scale:
    """The reference's own spread under one encoder.

    Attributes:
        distance: from the reference's pictures, at the mean embedding over their views.
        rarities: for each criterion the sorted values of the reference's pictures; higher is rarer, so minus the scores.
        mode: arguments of jepa_score.
    """

    encoder: Encoder
    distance: Distance
    rarities: Mapping[str, Sequence[float]]
    mode: Mapping[str, int]

    def rarity(self, criterion: str, image: Tensor, seen: Seen, on_pass: Callable[[], None]) -> float:
        """The value of a decoded image (1, H, W, 3) or video (T, H, W, 3), on the scale of `rarities`."""
        encoder = of_frames(self.encoder, len(image))
        x = torch.cat([seen(encoder, view) for view in views(image.to(encoder.weight.device))])
        if not x.isfinite().all():
            return math.nan
        if criterion == NOVELTY:
            return self.distance(embed(encoder, x, on_pass).mean(0, keepdim=True)).item()
        return -jepa_score(encoder, x[list(UNSEEN)], **self.mode, on_pass=on_pass).mean().item()


@dataclass(frozen=True)
class Target:
    """How far is far enough, in units of a reference.

    Attributes:
        scales: of the encoders that measure.
        criteria: what is measured, SCORE or NOVELTY or both.
        share: of the reference's pictures, those that may be as rare when guidance stops; None never stops.
        typical: guidance makes images more typical, and the share counts from the other end.
    """

    scales: Sequence[Scale]
    criteria: Sequence[str] = (SCORE,)
    share: float | None = None
    typical: bool = False

    def push(self, image: Tensor, seen: Seen, on_pass: Callable[[], None]) -> dict[str, float]:
        """For each criterion what remains of the strength: 0 from the target on, 1 up to RAMP before it."""
        return {
            criterion: sum(self._push(scale, criterion, image, seen, on_pass) for scale in self.scales)
            / len(self.scales)
            for criterion in self.criteria
        }

    def _push(
        self, scale: Scale, criterion: str, image: Tensor, seen: Seen, on_pass: Callable[[], None]
    ) -> float:
        assert self.share is not None
        sign = -1 if self.typical else 1
        values = sign * torch.tensor(scale.rarities[criterion], dtype=torch.float64, device="cpu")
        middle, goal = (values.quantile(q).item() for q in (0.5, 1 - self.share))
        value = sign * scale.rarity(criterion, image, seen, on_pass)
        if math.isnan(value):
            return 1.0  # such an image is not shifted
        if goal <= middle:
            return float(value < goal)
        return min(1.0, max(0.0, (goal - value) / (RAMP * (goal - middle))))

    def place(self, image: Tensor, seen: Seen, on_pass: Callable[[], None]) -> dict[str, float]:
        """For each criterion the percentage of the reference's pictures that are rarer, the mean over the encoders.

        NaN for an image that is not finite.
        """
        found = {}
        for criterion in self.criteria:
            values = [
                (scale.rarity(criterion, image, seen, on_pass), scale.rarities[criterion])
                for scale in self.scales
            ]
            rarer = [math.nan if math.isnan(value) else 100 - percentile(value, own) for value, own in values]
            found[criterion] = sum(rarer) / len(rarer)
        return found
