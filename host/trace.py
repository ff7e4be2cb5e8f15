"""What guidance did in a run, step by step, and a few lines about it for people."""

import logging
import math
from dataclasses import dataclass, field


@dataclass
class Trace:
    """What guidance did in one sampler call.

    Attributes:
        steps: one dict a step: step, sigma, guided, and where guided score, gradient_norm, shift (a float per
            image; shift is the largest change of x in sampler units, 0 where a gradient was not finite).
        message: a few lines for people.
        how: how the gradient was computed, a line for people.
        notices: what had to be done otherwise, a line each.
    """

    steps: list[dict] = field(default_factory=list)
    message: str = "JEPA guidance: has not run yet"
    how: str = ""
    notices: list[str] = field(default_factory=list)

    def notice(self, text: str) -> None:
        """Say in the log and in the message that something was done otherwise than asked."""
        logging.warning("JEPA guidance: %s", text)
        self.notices.append(text)

    def summarise(self, total: int) -> None:
        """Write the message after some or all of `total` steps."""
        guided = [step for step in self.steps if step["guided"]]
        if not guided:
            done = len(self.steps)
            self.message = (
                f"JEPA guidance: step {done} of {total}, not guided yet"
                if done < total
                else "JEPA guidance: no step of this run lies in the guided range; the image is the stock sampler's"
            )
            return
        scores = [sum(step["score"]) / len(step["score"]) for step in guided]
        moved = f"{scores[0]:.2f} to {scores[-1]:.2f}" if len(scores) > 1 else f"{scores[0]:.2f}"
        last = guided[-1]
        skipped = sum(not math.isfinite(norm) for step in guided for norm in step["gradient_norm"])
        self.message = (
            f"JEPA guidance: {len(guided)} of {total} steps guided\nscore {moved}\n"
            f"step {last['step']}: sigma {last['sigma']:.3g}, gradient norm {max(last['gradient_norm']):.3g}"
            + (f"\n{self.how}" if self.how else "")
            + (f"\n{skipped} shift(s) skipped, their gradient was not finite" if skipped else "")
            + "".join(f"\n{notice}" for notice in self.notices)
        )
