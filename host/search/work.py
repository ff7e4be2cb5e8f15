"""How much of a search's work is done, on the node's progress bar: counted in candidates, not in steps."""

from collections.abc import Mapping
from itertools import accumulate

from ..comfy.required import ProgressBar


class Work:
    """The denoiser's work of a search, which gets less with every look.

    Args:
        steps: of the sampler. batch: candidates that are begun.
        looks: step -> how many are left after it.
    """

    def __init__(self, steps: int, looks: Mapping[int, int], batch: int) -> None:
        self._lefts: list[int] = []
        left = batch
        for step in range(steps):
            self._lefts.append(left)
            left = min(left, looks.get(step, left))
        self._bar = ProgressBar(steps)
        self._step = 0
        self._rows = 0

    @property
    def share(self) -> float:
        """The share that is done, 0 to 1."""
        before = list(accumulate(self._lefts, initial=0))
        left = self._lefts[self._step] if self._step < len(self._lefts) else 0
        return (before[self._step] + min(self._rows, left)) / before[-1]

    @property
    def step(self) -> float:
        """The share as a place in the schedule, from 0 to the number of steps."""
        return self.share * len(self._lefts)

    def add(self, rows: int) -> None:
        """Candidates went through the denoiser."""
        self._rows += rows
        self._bar.update_absolute(self.step)

    def end_step(self, step: int) -> None:
        """A step (from 0) is done."""
        self._step, self._rows = step + 1, 0
