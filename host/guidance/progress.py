"""Progress within a guided step, counted in encoder passes."""

import time
from collections.abc import Callable

from ..comfy.required import ProgressBar

PARTS = 100  # the bar's parts of one sampler step


class StepProgress:
    """Moves the node's progress bar while a guided step computes its gradient.

    The stock sampler only moves it after each step, and a guided step can take as long as ten others. Within one, the bar
    moves with the encoder passes, relative to the number in the guided step before. In the first one that number is
    unknown, and only the count is reported.

    Args:
        total: steps of the sampler.
        report: called with (step, passes done) at most every REPORT_EVERY seconds.
    """

    REPORT_EVERY = 0.5

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self._bar = ProgressBar(total * PARTS)
        self._report = report
        self._step: int | None = 0
        self._passes = 0
        self._expected = 0
        self._reported = time.monotonic()

    def begin(self, step: int) -> None:
        """Begin a guided step, counted from 0."""
        self._step, self._expected, self._passes = step, self._passes, 0

    def end(self) -> None:
        """No guided step follows; passes after it, which measure finished images, do not count."""
        self._step = None

    def passed(self) -> None:
        """Count an encoder pass."""
        if self._step is None:
            return
        self._passes += 1
        if self._expected:
            within = min(PARTS * self._passes // self._expected, PARTS - 1)
            self._bar.update_absolute(self._step * PARTS + within)
        now = time.monotonic()
        if now - self._reported >= self.REPORT_EVERY:
            self._reported = now
            self._report(self._step, self._passes)
