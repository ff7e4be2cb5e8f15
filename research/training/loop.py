"""What every training shares: its state and checkpoint, its learning rate, its random draws and its curves."""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from research.harness.program import whole

Losses = dict[str, float]


class InputError(SystemExit):
    """What the command was given cannot be used; the message says why and what to do."""


@dataclass
class Training:
    """What a training changes as it goes, and its checkpoint `file`.

    average: exponential, of the model. identity: what a checkpoint must have been made with to be resumed. step: how many
    are done. rows: the losses that were reported. seconds: that all steps took.
    """

    file: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    rows: list[Losses] = field(default_factory=list)
    seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)

    def _parts(self) -> dict[str, Any]:
        average = {"average": self.average} if self.average is not None else {}
        return {"model": self.model, "optimizer": self.optimizer, **average}

    def save(self) -> None:
        """Write the checkpoint; what is there stays until the new one is whole."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        state = {name: part.state_dict() for name, part in self._parts().items()}
        with whole(self.file) as partial:
            torch.save(
                state
                | {"config": self.identity, "step": self.step, "rows": self.rows, "seconds": self.seconds},
                partial,
            )

    def resume(self) -> None:
        """Go on from the checkpoint if there is one. Raises InputError for one of another model."""
        if not self.file.exists():
            return
        state = torch.load(self.file, weights_only=True, map_location="cpu")
        if state["config"] != self.identity:
            raise InputError(
                f"{self.file} is of another model ({state['config']}); give another folder, "
                "or the sizes it was begun with"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.rows, self.seconds = state["step"], state["rows"], state["seconds"]
        self._since = time.monotonic()

    def advance(self, loss: Tensor, rate: float, clip: float = 1.0) -> None:
        """Take an optimizer step. Raises InputError where the gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(norm):
            raise InputError(
                f"step {self.step}: the gradient is not finite; lower --peak, or train in full precision"
            )
        self.optimizer.step()
        self.step += 1

    def follow(self, ema: float) -> None:
        """Move the average toward the model: by 1 - ema, more in the first steps."""
        assert self.average is not None
        decay = min(ema, self.step / (9 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def report(self, folder: Path, record: dict[str, Any], kinds: Mapping[str, str]) -> None:
        """Write loss.json (record and rows) and loss.png: curves of each kind (key of a row -> its axis), held out too."""
        (folder / "loss.json").write_text(json.dumps(record | {"rows": self.rows}) + "\n")
        figure = Figure((4.5 * len(kinds), 3.5), layout="constrained")
        plots = figure.subplots(1, len(kinds), squeeze=False)[0]
        for plot, (kind, label) in zip(plots, kinds.items(), strict=True):
            for key, name, style in ((kind, "trained on", "C0-"), (f"held_out_{kind}", "held out", "C1--")):
                points = [(row["step"], row[key]) for row in self.rows if row.get(key)]
                if points:
                    plot.plot(*zip(*points, strict=True), style, label=name)
            plot.set(xlabel="step", ylabel=label)
            if plot.lines:
                plot.legend()
        figure.savefig(folder / "loss.png", dpi=120)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device of a training: cpu or cuda, both in bfloat16 with float32 weights."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def learning_rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """Share of the peak: linear warm-up, then constant, then over the last share `decay` of the steps linearly to 0."""
    rate = min(1.0, (step + 1) / warmup)
    return min(rate, (steps - step) / (decay * steps)) if decay else rate


def step_generator(seed: int, step: int, process: int, purpose: int) -> torch.Generator:
    """A separate generator for each step, process and purpose."""
    words = np.random.SeedSequence([seed, step, process, purpose]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
