"""What a search did, and a short summary for users."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Candidate:
    """One row of the batch.

    Attributes:
        index: its row.
        value: its score or novelty when last seen; NaN before it was seen.
        quality: when last seen; NaN if it is not known.
        step: when last seen, from 0; None before, the number of steps when finished.
        dropped: why it was dropped; empty while it is left.
        picture: how it looked when last seen, (H, W, 3) in [0, 1] on the CPU.
    """

    index: int
    value: float = math.nan
    quality: float = math.nan
    step: int | None = None
    dropped: str = ""
    picture: Tensor | None = None

    @property
    def left(self) -> bool:
        return not self.dropped


@dataclass
class SearchRecord:
    """What a search did in one sampler call; it grows while the sampler runs.

    Attributes:
        by: SCORE or NOVELTY, what values are. keep: RAREST or TYPICAL.
        candidates: in the order of the batch.
        steps: how many steps the sampler takes. done: how many are done.
        looks: the steps at which candidates are dropped, from 0.
        rows: candidates that went through the denoiser, summed over its calls. calls: of the sampler to its model.
        floor: the least quality; None if there is none, or as long as it is not known.
        notices: what went otherwise than asked, one line each.
        kept: the finished candidates, best first; empty before the end.
    """

    by: str
    keep: str
    candidates: Sequence[Candidate] = ()
    steps: int = 0
    done: int = 0
    looks: Sequence[int] = ()
    rows: int = 0
    calls: int = 0
    floor: float | None = None
    notices: list[str] = field(default_factory=list)
    kept: list[Candidate] = field(default_factory=list)

    @property
    def left(self) -> list[Candidate]:
        return [one for one in self.candidates if one.left]

    @property
    def has_qualities(self) -> bool:
        return any(math.isfinite(one.quality) for one in self.candidates)

    def notice(self, text: str) -> None:
        """Note what went otherwise than asked, in the log and in the message."""
        logging.warning("JEPA search: %s", text)
        self.notices.append(text)

    def message(self) -> str:
        """A short summary for users."""
        if not self.steps:
            return "JEPA search: has not run yet"
        total = len(self.candidates)
        if not self.kept:
            text = (
                f"JEPA search: step {self.done} of {self.steps}, {len(self.left)} of {total} candidates left"
            )
            return "\n".join([text, *self.notices])
        values = [one.value for one in self.kept]
        share = 100 * self.rows / max(self.calls * total, 1)
        return "\n".join(
            [
                f"JEPA search: kept {len(self.kept)} of {total}, {self.by} {values[0]:.2f} to {values[-1]:.2f}",
                *self.notices,
                f"images {', '.join(str(one.index) for one in self.kept)} of the batch",
                f"{share:.0f} % of the denoiser's work for {total} images",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """The record as JSON; numbers that are not finite become None. Pictures are left out."""
        return {
            "by": self.by,
            "keep": self.keep,
            "message": self.message(),
            "steps": self.steps,
            "done": self.done,
            "looks": list(self.looks),
            "rows": self.rows,
            "calls": self.calls,
            "floor": self.floor,
            "kept": [one.index for one in self.kept],
            "candidates": [
                {
                    "index": one.index,
                    "value": _finite(one.value),
                    "quality": _finite(one.quality),
                    "step": one.step,
                    "dropped": one.dropped,
                }
                for one in self.candidates
            ],
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
