"""What guidance did in a run, step by step, and a short summary for users."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, ClassVar

from ..options import NOVELTY, SCORE


@dataclass(frozen=True)
class UnguidedStep:
    """A step of the stock sampler without guidance.

    Attributes:
        step: from 0. sigma: its noise level.
    """

    step: int
    sigma: float
    guided: ClassVar[bool] = False


@dataclass(frozen=True)
class GuidedStep:
    """A step whose latent was shifted first. Lists have one entry for each image.

    Attributes:
        step: from 0. sigma: its noise level.
        score: the guided score, the weighted mean over the guides; NaN if the score is no criterion.
        scores: label of a guide -> its score, or its novelty if the score is no criterion.
        judged: label of a judge -> its projected score, comparable only with other projected scores, or its novelty.
        gradient_norm: of the gradient with respect to x; not finite for an image that was not shifted.
        shift: the largest change of x in sampler units; 0 if the gradient was not finite.
        novelty: the weighted mean over the guides; empty if novelty is no criterion.
        push: what remained of the strength near the target, 0 to 1; empty without a target.
    """

    step: int
    sigma: float
    score: list[float]
    scores: dict[str, list[float]]
    judged: dict[str, list[float]]
    gradient_norm: list[float]
    shift: list[float]
    novelty: list[float] = field(default_factory=list)
    push: list[float] = field(default_factory=list)
    guided: ClassVar[bool] = True


Step = UnguidedStep | GuidedStep


@dataclass
class Trace:
    """What guidance did in one sampler call; it grows while the sampler runs.

    Attributes:
        guides, judges: labels of the encoders; empty if the gradient is not that of a score.
        how: how the gradient is computed, as a line for users.
        measure: what the score is called in the summary.
        total: how many steps the sampler takes.
        steps: the steps taken so far.
        notices: deviations from the settings, one line each.
        passes: within a guided step, (the step, guidance passes done); None elsewhere.
        places: for each finished image {criterion: percentage of the reference that is rarer}, NaN if the image is not
            finite; empty without a reference.
        instead: a text that replaces the summary, for a run that is not guided.
    """

    guides: Sequence[str] = ()
    judges: Sequence[str] = ()
    how: str = ""
    measure: str = SCORE
    total: int = 0
    steps: list[Step] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    passes: tuple[int, int] | None = None
    places: list[dict[str, float]] = field(default_factory=list)
    instead: str = ""

    @property
    def guided_steps(self) -> list[GuidedStep]:
        return [step for step in self.steps if isinstance(step, GuidedStep)]

    def add(self, step: Step) -> None:
        """Record a step."""
        self.steps.append(step)
        self.passes = None

    def notice(self, text: str) -> None:
        """Note a deviation from the settings in the log and in the message."""
        logging.warning("JEPA guidance: %s", text)
        self.notices.append(text)

    def as_json(self, first: int = 0) -> dict:
        """The trace from step `first` on, as JSON; numbers that are not finite become None."""
        return {
            "guides": list(self.guides),
            "judges": list(self.judges),
            "total": self.total,
            "message": self.message(),
            "places": _finite(self.places),
            "first": first,
            "steps": [_as_json(step) for step in self.steps[first:]],
        }

    def message(self) -> str:
        """A short summary for users."""
        if self.instead:
            return self.instead
        if self.passes is None:
            return self._summary()
        step, passes = self.passes
        return f"{self._summary()}\nstep {step + 1} of {self.total}: {passes} guidance passes done"

    def _summary(self) -> str:
        total, guided = self.total, self.guided_steps
        if not total:
            return "JEPA guidance: has not run yet"
        if not guided:
            done = len(self.steps)
            return (
                f"JEPA guidance: step {done} of {total}, not guided yet"
                if done < total
                else "JEPA guidance: no step of this run lies in the guided range; guidance changed nothing"
            )
        last = guided[-1]
        skipped = sum(not math.isfinite(norm) for step in guided for norm in step.gradient_norm)
        each = self.guides if len(self.guides) > 1 else ()
        moved = any(largest > 0 for step in guided for largest in step.shift)
        what = "steps guided" if moved else "steps in the guided range, no image was moved"
        # a node shows only some lines: notices first
        return "\n".join(
            [
                f"JEPA guidance: {len(guided)} of {total} {what}, {self._courses()}",
                *self.notices,
                *self._places(),
                *([f"{skipped} shift(s) skipped, their gradient was not finite"] if skipped else []),
                *(f"{name}: {_course([step.scores[name] for step in guided])}" for name in each),
                *(
                    f"judged by {name}: {_course([step.judged[name] for step in guided])}"
                    for name in self.judges
                ),
                f"step {last.step + 1}: sigma {last.sigma:.3g}, gradient norm {max(last.gradient_norm):.3g}",
                *([self.how] if self.how else []),
            ]
        )

    def _courses(self) -> str:
        """The criteria at the first and at the last guided step."""
        of = "mean " if len(self.guides) > 1 else ""
        guided = self.guided_steps
        columns = {self.measure: [step.score for step in guided], NOVELTY: [step.novelty for step in guided]}
        unused = {name for name, rows in columns.items() if all(map(math.isnan, chain.from_iterable(rows)))}
        # if every score is NaN, the score is what could not be found
        named = [name for name in columns if name not in unused] or [self.measure]
        return ", ".join(f"{of}{name} {_course(columns[name])}" for name in named)

    def _places(self) -> list[str]:
        shares = self.shares().items()
        return [f"{name}: rarer than {', '.join(own)} of the reference" for name, own in shares]

    def shares(self) -> dict[str, list[str]]:
        """For each criterion, how much of the reference each finished image is rarer than, as text."""
        found: dict[str, list[str]] = {}
        for place in self.places:
            for name, rarer in place.items():
                found.setdefault(name, []).append("?" if math.isnan(rarer) else f"{100 - rarer:.0f} %")
        return found


def _as_json(step: Step) -> dict:
    record = asdict(step)
    # the page relies on this order
    head = {"step": record.pop("step"), "sigma": record.pop("sigma"), "guided": step.guided}
    unused = [name for name in ("novelty", "push") if not record[name]] if step.guided else []
    return _finite(head | {name: value for name, value in record.items() if name not in unused})


def _finite(value: Any) -> Any:
    """The same nested lists and dicts, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _course(scores: list[list[float]]) -> str:
    """The mean over a batch at the first and the last guided step."""
    means = [sum(batch) / len(batch) for batch in scores]
    return f"{means[0]:.2f} to {means[-1]:.2f}" if len(means) > 1 else f"{means[0]:.2f}"
