"""What guidance did in a run, step by step, and a few lines about it for people."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..gradient.chain import Slope


@dataclass
class Trace:
    """What guidance did in one sampler call.

    Attributes:
        guides, judges: labels of the encoders; none where the gradient is a caller's own.
        steps: one dict a step: step (from 0), sigma, guided, and where guided score, gradient_norm, shift (a float per
            image; shift is the largest change of x in sampler units, 0 where a gradient was not finite), scores and
            judged (label -> a float per image). score is the guided score that was descended, the weighted mean where
            there are several guides, whose own ones are in scores; judged are scores of fixed random outputs, which
            compare with one another and with nothing else.
        total: how many steps the sampler takes.
        message: a few lines for people.
        how: how the gradient was computed, a line for people.
        notices: what had to be done otherwise, a line each.
    """

    guides: list[str] = field(default_factory=list)
    judges: list[str] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    total: int = 0
    message: str = "JEPA guidance: has not run yet"
    how: str = ""
    notices: list[str] = field(default_factory=list)

    def guided_step(self, step: int, sigma: float, slope: Slope, norm: Tensor, shift: Tensor) -> None:
        """Note a guided step: its Slope, and for each image (B,) the gradient's norm and the largest change of x."""
        self.steps.append(
            {
                "step": step,
                "sigma": sigma,
                "guided": True,
                "score": slope.score.tolist(),
                "scores": _by_name(self.guides, slope.each),
                "judged": _by_name(self.judges, slope.judged),
                "gradient_norm": norm.tolist(),
                "shift": shift.tolist(),
            }
        )

    def notice(self, text: str) -> None:
        """Say in the log and in the message that something was done otherwise than asked."""
        logging.warning("JEPA guidance: %s", text)
        self.notices.append(text)

    def as_json(self, first: int = 0) -> dict:
        """What JSON can hold of the trace, from the step `first` on; numbers that are not finite become None."""
        return {
            "guides": self.guides,
            "judges": self.judges,
            "total": self.total,
            "message": self.message,
            "first": first,
            "steps": _finite(self.steps[first:]),
        }

    def summarise(self) -> None:
        """Write the message after some or all of the steps."""
        total = self.total
        guided = [step for step in self.steps if step["guided"]]
        if not guided:
            done = len(self.steps)
            self.message = (
                f"JEPA guidance: step {done} of {total}, not guided yet"
                if done < total
                else "JEPA guidance: no step of this run lies in the guided range; the image is the stock sampler's"
            )
            return
        mean, each = ("mean score", self.guides) if len(self.guides) > 1 else ("score", [])
        lines = [
            f"{mean} {_course([step['score'] for step in guided])}",
            *(f"{name}: {_course([step['scores'][name] for step in guided])}" for name in each),
            *(
                f"judged by {name}: {_course([step['judged'][name] for step in guided])}"
                for name in self.judges
            ),
        ]
        last = guided[-1]
        skipped = sum(not math.isfinite(norm) for step in guided for norm in step["gradient_norm"])
        # a node shows some lines only: what went otherwise than asked comes before what went as asked
        self.message = "\n".join(
            [
                f"JEPA guidance: {len(guided)} of {total} steps guided, {lines[0]}",
                *self.notices,
                *([f"{skipped} shift(s) skipped, their gradient was not finite"] if skipped else []),
                *lines[1:],
                f"step {last['step'] + 1}: sigma {last['sigma']:.3g}, gradient norm {max(last['gradient_norm']):.3g}",
                *([self.how] if self.how else []),
            ]
        )


def _finite(value: Any) -> Any:
    """The same nested lists and dicts, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_name(names: list[str], scores: Tensor | None) -> dict[str, list[float]]:
    # no names where the gradient is a caller's own, whatever that tells of itself
    return {} if scores is None or not names else dict(zip(names, scores.tolist(), strict=True))


def _course(scores: list[list[float]]) -> str:
    """How the mean over a batch went from the first guided step to the last."""
    means = [sum(batch) / len(batch) for batch in scores]
    return f"{means[0]:.2f} to {means[-1]:.2f}" if len(means) > 1 else f"{means[0]:.2f}"
